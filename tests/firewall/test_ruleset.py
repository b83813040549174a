from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from nfpkd.firewall import layout, nft
from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Transaction
from nfpkd.firewall.ruleset import (
    SESSION_TIMEOUT,
    Options,
    Ruleset,
    compile_ruleset,
    delete_grants,
    delete_table,
    renew_grants,
    transaction_to,
)
from nfpkd.firewall.state import Grant, Place, Session, State
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Rate, Reject, Rule, Secret, Service, TimedKey, Trigger

TCP22, UDP22 = Service(Protocol.TCP, 22), Service(Protocol.UDP, 22)
SSH = Rule("ssh", (TimedKey(Secret(bytes(40))),), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,))
WEB = replace(SSH, name="web", tag=b"PKD1", ports=(PortRange(80, 80),), reject=Reject.RESET, description="the shop")
TCP80 = Service(Protocol.TCP, 80)
OPTIONS = Options()
GRANT = Grant("192.0.2.1", TCP22, "ssh", 60, 60)


def held(ruleset: Ruleset, **changes: Any) -> State:
    """Return the state of a kernel that holds *ruleset*."""
    doors = sorted(ruleset.doors, key=lambda door: door.name)
    rules = {**ruleset.chains, layout.DOORS: [rule for door in doors for rule in door.rules()]}
    state = State(
        intact=True,
        source_limit=ruleset.source_limit,
        queue=0,
        queue_target="nft_queue",
        gated=dict(ruleset.gated),
        gated_on=dict(ruleset.gated_on),
        rejects=dict(ruleset.rejects),
        doors=ruleset.doors,
        chains={chain: tuple(rule.comment for rule in found) for chain, found in rules.items()},
        grants=(),
        sessions=(),
        counters={},
    )
    return replace(state, **changes)


def brief(transaction: Transaction) -> list[tuple[str, str, str]]:
    """Return verb, kind and name of each command."""
    found = []
    for command in transaction.commands:
        [(verb, what)] = command.items()
        [(kind, described)] = what.items()
        found.append((verb, kind, described.get("name") or described.get("chain")))
    return found


def members(transaction: Transaction, verb: str, name: str) -> list[Any]:
    elements = [command[verb]["element"] for command in transaction.commands if "element" in command.get(verb, {})]
    return [member for element in elements if element["name"] == name for member in element["elem"]]


# compile_ruleset


def test_nothing_to_guard() -> None:
    ruleset = compile_ruleset([], Options(3))
    assert (ruleset.gated, ruleset.gated_on, ruleset.rejects, ruleset.doors) == ({}, {}, {}, frozenset())
    assert ruleset.chains == {
        layout.TAGS: (),
        layout.VERIFY: (layout.queue_rule(3),),
        layout.TRUSTED: (),
        layout.INTERFACES: (),
    }


def test_every_service_is_gated_and_only_refusals_with_an_answer_are_named() -> None:
    ruleset = compile_ruleset([SSH, WEB], OPTIONS)
    assert ruleset.gated == {TCP22: "ssh", TCP80: "web: the shop"}
    assert ruleset.rejects == {TCP80: Reject.RESET}
    assert ruleset.chains[layout.TAGS] == tuple(layout.tag_rules({(): frozenset({b"PKD0", b"PKD1"})}))


def test_a_shared_port_names_all_its_rules() -> None:
    ruleset = compile_ruleset([SSH, replace(SSH, name="backup")], OPTIONS)
    assert ruleset.gated == {TCP22: "ssh; backup"}


def test_overlapping_ranges_name_their_rule_once() -> None:
    ruleset = compile_ruleset([replace(SSH, ports=(PortRange(22, 23), PortRange(22, 22)))], OPTIONS)
    assert ruleset.gated[TCP22] == "ssh"


def test_a_rule_for_some_interfaces_guards_there_alone() -> None:
    ruleset = compile_ruleset([replace(SSH, interfaces=("eth0", "lo"))], OPTIONS)
    assert ruleset.gated == {}
    assert ruleset.gated_on == {Place("eth0", TCP22): "ssh", Place("lo", TCP22): "ssh"}
    assert ruleset.chains[layout.INTERFACES] == tuple(layout.interface_rules(in_use=True))
    assert ruleset.guards(TCP22)
    assert not ruleset.guards(TCP80)


def test_a_port_may_be_guarded_everywhere_by_one_rule_and_on_an_interface_by_another() -> None:
    ruleset = compile_ruleset([SSH, replace(SSH, name="inside", interfaces=("eth0",))], OPTIONS)
    assert ruleset.gated == {TCP22: "ssh"}
    assert ruleset.gated_on == {Place("eth0", TCP22): "inside"}


def test_a_rule_without_ports_guards_nothing_and_still_has_its_tag() -> None:
    command = replace(SSH, ports=(), interfaces=("eth0",), extend=True, prefixes=Prefixes(24, 64))
    ruleset = compile_ruleset([command], OPTIONS)
    assert (ruleset.gated, ruleset.gated_on, ruleset.doors) == ({}, {}, frozenset())
    assert len(ruleset.chains[layout.TAGS]) == 1
    assert ruleset.chains[layout.INTERFACES] == ()


def test_tags_are_grouped_by_where_their_knocks_are_taken() -> None:
    at_ten = replace(SSH, name="ten", knock_ports=(PortRange(12, 13), PortRange(10, 10)))
    same = replace(WEB, knock_ports=(PortRange(10, 10), PortRange(12, 13)))
    ruleset = compile_ruleset([SSH, at_ten, same], OPTIONS)
    by_ports = {(): frozenset({b"PKD0"}), (PortRange(10, 10), PortRange(12, 13)): frozenset({b"PKD0", b"PKD1"})}
    assert ruleset.chains[layout.TAGS] == tuple(layout.tag_rules(by_ports))


def test_what_is_set_for_the_host_stands_in_the_ruleset() -> None:
    ruleset = compile_ruleset([], Options(trusted=("lo", "eth0", "lo"), source_limit=5))
    assert ruleset.source_limit == 5
    assert ruleset.chains[layout.TRUSTED] == tuple(layout.trusted_rules(["eth0", "lo"]))


@pytest.mark.parametrize(
    ("changes", "doors"),
    [
        ({}, set()),
        ({"prefixes": Prefixes(24, 128)}, {Door(4, 24)}),
        ({"prefixes": Prefixes(24, 64)}, {Door(4, 24), Door(6, 64)}),
        ({"extend": True, "window": 9}, {Door(4, 32, Mode.EXTEND, 9), Door(6, 128, Mode.EXTEND, 9)}),
        ({"once": True, "window": 9}, {Door(4, 32, Mode.ONCE), Door(6, 128, Mode.ONCE)}),
        ({"interfaces": ("lo",)}, {Door(4, 32, by_interface=True), Door(6, 128, by_interface=True)}),
    ],
)
def test_a_rule_needs_the_doors_of_its_grants(changes: dict[str, Any], doors: set[Door]) -> None:
    assert compile_ruleset([replace(SSH, **changes)], OPTIONS).doors == doors


def test_labels_are_made_fit_for_nft() -> None:
    ruleset = compile_ruleset([replace(SSH, description='"' + "ü" * 100)], OPTIONS)
    assert nft.clean_comment(ruleset.gated[TCP22]) == ruleset.gated[TCP22]
    assert ruleset.gated[TCP22].startswith("ssh: 'ü")


@pytest.mark.parametrize(
    ("grant", "kept"),
    [
        (GRANT, True),
        (GRANT._replace(rule="web"), False),
        (GRANT._replace(service=UDP22), False),
        (GRANT._replace(service=TCP80), False),
    ],
)
def test_a_grant_is_kept_while_its_rule_opens_its_port(grant: Grant, kept: bool) -> None:
    assert compile_ruleset([SSH], OPTIONS).keeps(grant) is kept


WIDE = GRANT._replace(source="192.0.2.0", door=Door(4, 24))
ON_ETH0 = GRANT._replace(door=Door(4, 32, by_interface=True), interface="eth0")


@pytest.mark.parametrize(
    ("grant", "changes", "kept"),
    [
        pytest.param(GRANT, {"prefixes": Prefixes(24, 128)}, False, id="wider now: not who it was for"),
        pytest.param(WIDE, {}, False, id="narrower now"),
        pytest.param(WIDE, {"prefixes": Prefixes(25, 128)}, False, id="another width"),
        pytest.param(WIDE, {"prefixes": Prefixes(24, 64)}, True, id="as wide"),
        pytest.param(GRANT, {"prefixes": Prefixes(32, 64)}, True, id="the other family's width"),
        pytest.param(GRANT, {"interfaces": ("eth0",)}, False, id="everywhere was too much"),
        pytest.param(ON_ETH0, {"interfaces": ("lo", "eth0")}, True, id="its interface is among them"),
        pytest.param(ON_ETH0, {"interfaces": ("lo",)}, False, id="another interface"),
        pytest.param(ON_ETH0, {}, False, id="everywhere is another kind"),
        pytest.param(GRANT, {"extend": True}, True, id="renewed by traffic now"),
        pytest.param(GRANT, {"once": True}, True, id="for one connection now: it runs out"),
        pytest.param(GRANT._replace(door=Door(4, 32, Mode.ONCE)), {}, True, id="for one connection before"),
    ],
)
def test_a_grant_is_kept_while_its_rule_opens_as_much(grant: Grant, changes: dict[str, Any], kept: bool) -> None:
    assert compile_ruleset([replace(SSH, **changes)], OPTIONS).keeps(grant) is kept


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        pytest.param({"extend": True, "window": 60}, True, id="unchanged"),
        pytest.param({"extend": False, "window": 60}, False, id="no longer renewed"),
        pytest.param({"once": True, "window": 60}, False, id="for one connection now"),
        pytest.param({"extend": True, "window": 5}, False, id="renewed for a shorter time"),
        pytest.param({"extend": True, "window": 90}, True, id="renewed for a longer time"),
    ],
)
def test_a_grant_that_traffic_renews_goes_with_its_kind(changes: dict[str, Any], kept: bool) -> None:
    """Else it could go on for ever, renewed to a window that no rule has any more."""
    renewed = GRANT._replace(door=Door(4, 32, Mode.EXTEND, 60))
    assert compile_ruleset([replace(SSH, **changes)], OPTIONS).keeps(renewed) is kept


def test_a_ruleset_shows_no_keys() -> None:
    secret = replace(SSH, keys=(TimedKey(Secret(b"do not show this".ljust(40))),))
    assert "do not show" not in repr(compile_ruleset([secret], OPTIONS))


# transaction_to


def test_without_a_table_all_of_it_is_made() -> None:
    commands = brief(transaction_to(compile_ruleset([SSH], OPTIONS), None))
    assert commands[:3] == [("add", "table", "nfpkd"), ("delete", "table", "nfpkd"), ("add", "table", "nfpkd")]
    constant = len(layout.declarations())
    assert commands[3 + constant :] == [
        ("add", "element", "gated"),
        ("flush", "chain", "tags"),
        ("add", "rule", "tags"),
        ("flush", "chain", "verify"),
        ("add", "rule", "verify"),
    ]


def test_nothing_changes_without_a_difference() -> None:
    ruleset = compile_ruleset([SSH, WEB], OPTIONS)
    assert not transaction_to(ruleset, held(ruleset))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [SSH], [("add", "element", "gated"), ("flush", "chain", "tags"), ("add", "rule", "tags")]),
        # Without tags, no rule: an anonymous set must not be empty.
        ([SSH], [], [("delete", "element", "gated"), ("flush", "chain", "tags")]),
        (
            [SSH],
            [replace(SSH, ports=(PortRange(23, 23),))],
            [("delete", "element", "gated"), ("add", "element", "gated")],
        ),
        (
            [SSH],
            [replace(SSH, description="door")],
            [("delete", "element", "gated"), ("add", "element", "gated")],
        ),
        ([SSH], [replace(SSH, reject=Reject.ICMP)], [("add", "element", "rejects")]),
        ([WEB], [replace(WEB, reject=Reject.DROP)], [("delete", "element", "rejects")]),
        (
            [WEB],
            [replace(WEB, reject=Reject.ICMP_ADMIN)],
            [("delete", "element", "rejects"), ("add", "element", "rejects")],
        ),
        ([SSH], [replace(SSH, tag=b"PKD9")], [("flush", "chain", "tags"), ("add", "rule", "tags")]),
        # What the kernel does not hold costs it nothing.
        ([SSH], [replace(SSH, keys=(TimedKey(Secret(b"x" * 40)),), window=5, skew=None, old=True)], []),
    ],
)
def test_only_the_difference_is_sent(
    before: list[Rule], after: list[Rule], expected: list[tuple[str, str, str]]
) -> None:
    transaction = transaction_to(compile_ruleset(after, OPTIONS), held(compile_ruleset(before, OPTIONS)))
    assert brief(transaction) == expected


WIDENED = replace(SSH, prefixes=Prefixes(24, 128))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            [SSH],
            [WIDENED],
            [("add", "set", "grants4_net24"), ("flush", "chain", "doors"), ("add", "rule", "doors")],
        ),
        # A set that a rule uses cannot be deleted: first the rule goes.
        ([WIDENED], [SSH], [("flush", "chain", "doors"), ("delete", "set", "grants4_net24")]),
        ([WIDENED], [replace(WIDENED, window=5)], []),
        (
            [SSH],
            [replace(SSH, interfaces=("eth0",))],
            [
                ("delete", "element", "gated"),
                ("add", "element", "gated_on"),
                ("add", "set", "grants4_if"),
                ("add", "set", "grants6_if"),
                ("flush", "chain", "interfaces"),
                ("add", "rule", "interfaces"),
                ("flush", "chain", "doors"),
                ("add", "rule", "doors"),
                ("add", "rule", "doors"),
            ],
        ),
        ([SSH], [replace(SSH, knock_ports=(PortRange(5, 9),))], [("flush", "chain", "tags"), ("add", "rule", "tags")]),
        # What user space judges by costs the kernel nothing.
        ([SSH], [replace(SSH, rate=Rate(9, 9, 9), sources=(ip_network("::/0"),), trigger=Trigger(("/bin/true",)))], []),
    ],
)
def test_only_the_difference_in_what_is_new_is_sent(
    before: list[Rule], after: list[Rule], expected: list[tuple[str, str, str]]
) -> None:
    transaction = transaction_to(compile_ruleset(after, OPTIONS), held(compile_ruleset(before, OPTIONS)))
    assert brief(transaction) == expected


def test_other_trusted_interfaces_replace_their_rule() -> None:
    state = held(compile_ruleset([SSH], Options(trusted=("lo",))))
    transaction = transaction_to(compile_ruleset([SSH], Options(trusted=("lo", "eth0"))), state)
    assert brief(transaction) == [("flush", "chain", "trusted"), ("add", "rule", "trusted")]
    assert not transaction_to(compile_ruleset([SSH], Options(trusted=("lo", "lo"))), state)


def test_another_source_limit_makes_the_table_anew_with_its_grants() -> None:
    state = held(compile_ruleset([WIDENED], OPTIONS), grants=(WIDE,))
    transaction = transaction_to(compile_ruleset([WIDENED], Options(source_limit=5)), state)
    assert brief(transaction)[1] == ("delete", "table", "nfpkd")
    assert members(transaction, "add", "grants4_net24") == [
        {"elem": {"val": nft.concat("192.0.2.0", 6, 22), "comment": "ssh", "timeout": 60, "expires": 60}}
    ]


def test_a_set_of_doors_stays_while_a_kept_grant_lives_in_it() -> None:
    once = replace(SSH, once=True)
    ticket = GRANT._replace(door=Door(4, 32, Mode.ONCE))
    transaction = transaction_to(
        compile_ruleset([SSH], OPTIONS), held(compile_ruleset([once], OPTIONS), grants=(ticket,))
    )
    assert brief(transaction) == [
        ("flush", "chain", "doors"),
        ("add", "rule", "doors"),
        ("add", "rule", "doors"),
        ("delete", "set", "once6"),
    ]


@pytest.mark.parametrize("comment", [None, "queue 1"])
def test_another_queue_replaces_the_queue_rule(comment: str | None) -> None:
    ruleset = compile_ruleset([SSH], OPTIONS)
    state = held(ruleset)
    state.chains[layout.VERIFY] = () if comment is None else (comment,)
    transaction = transaction_to(ruleset, state)
    assert transaction.commands == (nft.flush_chain(TABLE, "verify"), nft.add(layout.queue_rule(0)))


def test_a_verdict_is_a_jump_to_the_rejecting_chain() -> None:
    transaction = transaction_to(compile_ruleset([WEB], OPTIONS), None)
    assert members(transaction, "add", "rejects") == [[nft.concat(6, 80), nft.goto("refuse-reset")]]


def test_grants_of_a_rule_that_goes_go_with_it() -> None:
    state = held(compile_ruleset([SSH, WEB], OPTIONS), grants=(GRANT, GRANT._replace(service=TCP80, rule="web")))
    transaction = transaction_to(compile_ruleset([WEB], OPTIONS), state)
    assert members(transaction, "delete", "grants4") == [nft.concat("192.0.2.1", 6, 22)]


def test_a_broken_table_is_made_anew_with_its_grants() -> None:
    six = GRANT._replace(source="2001:db8::1", expires=0)
    state = held(compile_ruleset([SSH], OPTIONS), intact=False, grants=(GRANT, six, GRANT._replace(rule="gone")))
    transaction = transaction_to(compile_ruleset([SSH], OPTIONS), state)
    assert brief(transaction)[1] == ("delete", "table", "nfpkd")
    assert members(transaction, "add", "grants4") == [
        {"elem": {"val": nft.concat("192.0.2.1", 6, 22), "comment": "ssh", "timeout": 60, "expires": 60}}
    ]
    # One that runs out at this very moment gets a second, for none at all would be refused.
    assert members(transaction, "add", "grants6")[0]["elem"]["expires"] == 1


def test_a_broken_table_is_made_anew_with_its_sessions() -> None:
    sessions = ((Session("192.0.2.1", 5, TCP22), 17), (Session("2001:db8::1", 5, TCP22), 0))
    state = held(compile_ruleset([SSH], OPTIONS), intact=False, sessions=sessions)
    transaction = transaction_to(compile_ruleset([SSH], OPTIONS), state)
    assert members(transaction, "add", "sessions4") == [
        {"elem": {"val": nft.concat("192.0.2.1", 5, 6, 22), "timeout": 17}}
    ]
    assert members(transaction, "add", "sessions6")[0]["elem"]["timeout"] == 1


# Sessions


def test_sessions_go_on_where_a_guard_is_new() -> None:
    sessions = [Session("192.0.2.1", 5, TCP22), Session("2001:db8::1", 5, TCP80), Session("192.0.2.1", 5, UDP22)]
    transaction = transaction_to(compile_ruleset([SSH, WEB], OPTIONS), held(compile_ruleset([SSH], OPTIONS)), sessions)
    assert members(transaction, "add", "sessions4") == []
    assert members(transaction, "add", "sessions6") == [
        {"elem": {"val": nft.concat("2001:db8::1", 5, 6, 80), "timeout": SESSION_TIMEOUT}}
    ]


def test_sessions_go_on_where_a_guard_moves_to_an_interface() -> None:
    on_eth0 = compile_ruleset([replace(SSH, interfaces=("eth0",))], OPTIONS)
    state = held(compile_ruleset([SSH], OPTIONS), sessions=((Session("192.0.2.1", 5, TCP22), 17),))
    transaction = transaction_to(on_eth0, state, map(pytest.fail, ["looked up"]))
    assert members(transaction, "delete", "sessions4") == []
    assert members(transaction_to(on_eth0, None, [Session("192.0.2.1", 5, TCP22)]), "add", "sessions4")


def test_sessions_are_not_looked_up_where_no_guard_is_new() -> None:
    ruleset = compile_ruleset([SSH], OPTIONS)
    assert not transaction_to(ruleset, held(ruleset), map(pytest.fail, ["looked up"]))


def test_sessions_of_a_new_table_fit_their_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_SESSIONS", 2)
    sessions = [Session("192.0.2.1", port, TCP22) for port in range(5)]
    transaction = transaction_to(compile_ruleset([SSH], OPTIONS), None, sessions)
    assert len(members(transaction, "add", "sessions4")) == 2


def test_sessions_fit_beside_those_the_set_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_SESSIONS", 4)
    old = tuple((Session("192.0.2.1", port, TCP22), 60) for port in range(3))
    new = [Session("192.0.2.1", port, TCP80) for port in range(3)]
    state = held(compile_ruleset([SSH], OPTIONS), sessions=old)
    transaction = transaction_to(compile_ruleset([SSH, WEB], OPTIONS), state, new)
    assert len(members(transaction, "add", "sessions4")) == 1


def test_sessions_go_with_the_guard_they_passed() -> None:
    sessions = ((Session("192.0.2.1", 5, TCP22), 17), (Session("192.0.2.1", 5, TCP80), 17))
    state = held(compile_ruleset([SSH, WEB], OPTIONS), sessions=sessions)
    transaction = transaction_to(compile_ruleset([WEB], OPTIONS), state)
    assert members(transaction, "delete", "sessions4") == [nft.concat("192.0.2.1", 5, 6, 22)]


# Grants


def test_renewing_adds_deletes_and_adds() -> None:
    key = nft.concat("192.0.2.1", 6, 22)
    assert renew_grants([GRANT]).commands == (
        nft.add_elements(TABLE, "grants4", [key]),
        nft.delete_elements(TABLE, "grants4", [key]),
        nft.add_elements(TABLE, "grants4", [nft.element(key, timeout=60, expires=60, comment="ssh")]),
    )


def test_deleting_is_legal_for_grants_that_ran_out() -> None:
    key = nft.concat("192.0.2.1", 6, 22)
    assert delete_grants([GRANT]).commands == (
        nft.add_elements(TABLE, "grants4", [key]),
        nft.delete_elements(TABLE, "grants4", [key]),
    )


def test_grants_of_both_families_take_their_own_sets() -> None:
    transaction = renew_grants([GRANT, GRANT._replace(source="2001:db8::1"), GRANT._replace(service=UDP22)])
    assert len(members(transaction, "delete", "grants4")) == 2
    assert len(members(transaction, "delete", "grants6")) == 1


def test_grants_of_every_kind_take_their_own_sets() -> None:
    transaction = renew_grants([GRANT, WIDE, ON_ETH0, ON_ETH0._replace(interface="lo")])
    assert members(transaction, "delete", "grants4") == [nft.concat("192.0.2.1", 6, 22)]
    assert members(transaction, "delete", "grants4_net24") == [nft.concat("192.0.2.0", 6, 22)]
    assert members(transaction, "delete", "grants4_if") == [
        nft.concat("eth0", "192.0.2.1", 6, 22),
        nft.concat("lo", "192.0.2.1", 6, 22),
    ]


def test_no_grants_need_no_transaction() -> None:
    assert not renew_grants([])
    assert not delete_grants([])


def test_the_table_is_deleted_whether_there_is_one_or_not() -> None:
    expected: tuple[Json, ...] = (nft.add_table(TABLE), nft.delete_table(TABLE))
    assert delete_table().commands == expected
