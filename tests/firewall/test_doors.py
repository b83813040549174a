from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall import layout, nft
from nfpkd.firewall.doors import Door, Mode, door_of, parse_door
from nfpkd.firewall.kernel import Kernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, delete_grants, renew_grants, transaction_to
from nfpkd.firewall.state import Grant, State, parse_state
from nfpkd.rules.model import MAX_WINDOW, PortRange, Prefixes, Protocol, Rule, Secret, Service, TimedKey

SSH = Rule("ssh", (TimedKey(Secret(bytes(40))),), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,))
TCP22 = Service(Protocol.TCP, 22)
SOURCES = {4: "192.0.2.0", 6: "2001:db8::"}
USUAL = (Door(4, 32), Door(6, 128))

EVERY = [
    Door(family, prefix, mode, 60 if mode is Mode.EXTEND else 0, by_interface)
    for family, prefix in ((4, 32), (4, 24), (4, 8), (6, 128), (6, 64), (6, 16))
    for mode, by_interface in itertools.product(Mode, (False, True))
]
UNUSUAL = [door for door in EVERY if door not in USUAL]


@st.composite
def doors(draw: st.DrawFn) -> Door:
    family = draw(st.sampled_from([4, 6]))
    mode = draw(st.sampled_from(Mode))
    window = draw(st.integers(1, MAX_WINDOW)) if mode is Mode.EXTEND else 0
    return Door(family, draw(st.integers(0, 32 if family == 4 else 128)), mode, window, draw(st.booleans()))


def grant_for(door: Door) -> Grant:
    interface = "eth0" if door.by_interface else ""
    return Grant(SOURCES[door.family], TCP22, "ssh", 3600, 3600, None if door.is_usual else door, interface)


def state(kernel: Kernel) -> State:
    listing = kernel.list(TABLE)
    assert listing is not None
    return parse_state(listing)


# Names


@given(doors())
def test_a_name_says_all_there_is_to_know(door: Door) -> None:
    assert parse_door(door.name) == door


@given(doors(), doors())
def test_kinds_that_differ_have_names_that_differ(one: Door, other: Door) -> None:
    assert (one.name == other.name) is (one == other)


@given(st.from_regex(r"(grants|extend|once)[46](_net\d{1,3})?(_\d{1,4}s)?(_if)?", fullmatch=True) | st.text())
def test_a_name_is_read_only_as_it_would_be_written(name: str) -> None:
    door = parse_door(name)
    assert door is None or door.name == name


@pytest.mark.parametrize(
    ("door", "name"),
    [
        (Door(4, 32), "grants4"),
        (Door(6, 128), "grants6"),
        (Door(4, 24), "grants4_net24"),
        (Door(6, 64, Mode.EXTEND, 300), "extend6_net64_300s"),
        (Door(4, 32, Mode.ONCE, by_interface=True), "once4_if"),
    ],
)
def test_names(door: Door, name: str) -> None:
    assert door.name == name


@pytest.mark.parametrize(
    "name",
    [
        *("grants", "grants5", "grants4_net", "grants4_net32", "grants6_net128", "grants4_net024", "grants4_if_net24"),
        *("extend4", "extend4_s", "extend4_060s", "grants4_60s", "once4_60s", "grants4\n", "sessions4"),
    ],
)
def test_other_names_are_none_of_ours(name: str) -> None:
    assert parse_door(name) is None


def test_only_grants_for_one_address_are_the_usual_kind() -> None:
    assert [door for door in EVERY if door.is_usual] == list(USUAL)


@pytest.mark.parametrize("door", EVERY, ids=lambda door: door.name)
def test_grants_know_their_set(door: Door) -> None:
    assert grant_for(door).set_name == door.name


# door_of


@pytest.mark.parametrize(
    ("rule", "four", "six"),
    [
        (SSH, *USUAL),
        (replace(SSH, prefixes=Prefixes(24, 128)), Door(4, 24), Door(6, 128)),
        (replace(SSH, prefixes=Prefixes(32, 64), once=True), Door(4, 32, Mode.ONCE), Door(6, 64, Mode.ONCE)),
        (replace(SSH, extend=True, window=9), Door(4, 32, Mode.EXTEND, 9), Door(6, 128, Mode.EXTEND, 9)),
        (replace(SSH, interfaces=("lo",)), Door(4, 32, by_interface=True), Door(6, 128, by_interface=True)),
    ],
)
def test_a_rule_says_which_kind_of_grants_it_makes(rule: Rule, four: Door, six: Door) -> None:
    assert (door_of(rule, 4), door_of(rule, 6)) == (four, six)


# Rules


@pytest.mark.parametrize("door", EVERY, ids=lambda door: door.name)
def test_a_kind_ends_with_letting_in_and_counting(door: Door) -> None:
    *_, last = door.rules()
    assert last.chain == layout.DOORS
    assert last.statements[-2:] == (nft.count("admitted"), nft.ACCEPT)


@pytest.mark.parametrize("door", EVERY, ids=lambda door: door.name)
def test_what_a_full_set_ends_ends_nothing_else(door: Door) -> None:
    """On a full set, update ends the rule it stands in."""
    for rule in door.rules():
        for place, statement in enumerate(rule.statements):
            if statement.get("set", {}).get("op") == "update":
                assert place == len(rule.statements) - 1


@pytest.mark.parametrize("door", EVERY, ids=lambda door: door.name)
def test_the_rules_of_a_kind_look_only_into_its_set(door: Door) -> None:
    for rule in door.rules():
        matched = rule.statements[0]["match"]
        assert matched["right"] == f"@{door.name}"
        assert len(matched["left"]["concat"]) == len(door.to_set().type)


def test_a_grant_for_one_connection_is_used_up_before_anything_else_is_let_in() -> None:
    remembered, used = Door(4, 32, Mode.ONCE).rules()
    assert [statement["set"]["op"] for statement in remembered.statements if "set" in statement] == ["update"]
    assert nft.ACCEPT not in remembered.statements
    assert [statement["set"]["op"] for statement in used.statements if "set" in statement] == ["delete"]


def test_a_sliding_grant_is_renewed_to_its_window() -> None:
    renewed, _ = Door(6, 64, Mode.EXTEND, 300).rules()
    update = renewed.statements[-1]["set"]
    assert (update["op"], update["elem"]["elem"]["timeout"]) == ("update", 300)


def test_kinds_that_differ_have_rules_that_differ() -> None:
    comments = [rule.comment for door in EVERY for rule in door.rules()]
    assert len(set(comments)) == len(comments)
    assert all(nft.clean_comment(comment) == comment for comment in comments)


# In the kernel


@pytest.mark.parametrize("door", UNUSUAL, ids=lambda door: door.name)
def test_a_kind_comes_and_goes_while_the_table_stays(kernel: Kernel, door: Door) -> None:
    empty = compile_ruleset([], Options())
    kernel.apply(transaction_to(empty, None))
    rules = tuple(door.rules())
    kernel.apply(Transaction((nft.add(door.to_set()), *map(nft.add, rules))))
    kernel.apply(renew_grants([grant_for(door)]))
    found = state(kernel)
    assert found.intact
    assert found.doors == {door}
    assert found.chains[layout.DOORS] == tuple(rule.comment for rule in rules)
    [grant] = found.grants
    assert grant._replace(expires=3600) == grant_for(door)
    kernel.apply(transaction_to(empty, found))
    assert (state(kernel).doors, state(kernel).grants, state(kernel).intact) == (frozenset(), (), True)


def test_all_kinds_live_side_by_side(kernel: Kernel) -> None:
    kernel.apply(transaction_to(compile_ruleset([SSH], Options()), None))
    commands = [nft.add(door.to_set()) for door in UNUSUAL]
    commands += [nft.add(rule) for door in UNUSUAL for rule in door.rules()]
    kernel.apply(Transaction(tuple(commands)))
    grants = [grant_for(door) for door in EVERY]
    kernel.apply(renew_grants(grants))
    found = state(kernel)
    assert found.intact
    assert found.doors == set(UNUSUAL)
    assert {grant._replace(expires=3600) for grant in found.grants} == set(grants)
    kernel.apply(delete_grants(grants))
    assert state(kernel).grants == ()
