from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall import layout, nft
from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Rule, Set, Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, renew_grants, transaction_to
from nfpkd.firewall.state import Grant, Session, State, Traffic, parse_state
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Reject, Secret, Service, TimedKey
from nfpkd.rules.model import Rule as NfpkdRule
from support import strategies
from support.fake_kernel import FakeKernel

TCP22 = Service(Protocol.TCP, 22)
SSH = NfpkdRule(
    "ssh", (TimedKey(Secret(bytes(40))),), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,), reject=Reject.RESET
)
IN_TABLE = {"family": TABLE.family, "table": TABLE.name}


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.apply(transaction_to(compile_ruleset([SSH], Options(3)), None, [Session("192.0.2.1", 5, TCP22)]))
    return made


def state(kernel: FakeKernel) -> State:
    listing = kernel.survey(TABLE, layout.TRANSIENT)
    assert listing is not None
    return parse_state(listing)


def change(kernel: FakeKernel, *commands: Json) -> State:
    kernel.apply(Transaction(commands))
    return state(kernel)


@given(strategies.rule_lists, strategies.options, st.booleans())
def test_what_is_listed_is_what_was_compiled(rules: list[NfpkdRule], options: Options, native: bool) -> None:
    kernel = FakeKernel(has_queue_statement=native)
    wanted = compile_ruleset(rules, options)
    kernel.apply(transaction_to(wanted, None))
    found = state(kernel)
    assert found.intact
    assert (found.queue, found.queue_target) == (options.queue, "nft_queue" if native else "nft_compat")
    assert found.source_limit == options.source_limit
    assert (found.gated, found.gated_on, found.rejects) == (wanted.gated, wanted.gated_on, wanted.rejects)
    assert found.doors == wanted.doors
    for chain, expected in wanted.chains.items():
        assert found.chains[chain] == tuple(rule.comment for rule in expected)
    assert (found.grants, found.sessions) == ((), ())


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_grants_are_listed_with_their_remaining_time(kernel: FakeKernel, source: str) -> None:
    kernel.apply(renew_grants([Grant(source, TCP22, "ssh", 60, 60)]))
    kernel.now += 12.5
    assert state(kernel).grants == (Grant(source, TCP22, "ssh", 60, 47),)


def test_grants_of_every_kind_are_listed(kernel: FakeKernel) -> None:
    rules = [
        replace(SSH, name="wide", prefixes=Prefixes(24, 64)),
        replace(SSH, name="sliding", extend=True),
        replace(SSH, name="once", once=True, interfaces=("eth0", "lo")),
    ]
    held = state(kernel)
    kernel.apply(transaction_to(compile_ruleset(rules, Options(3)), held))
    grants = [
        Grant("192.0.2.0", TCP22, "wide", 60, 60, Door(4, 24)),
        Grant("2001:db8::", TCP22, "wide", 60, 60, Door(6, 64)),
        Grant("192.0.2.1", TCP22, "sliding", 60, 60, Door(4, 32, Mode.EXTEND, 60)),
        Grant("192.0.2.1", TCP22, "once", 60, 60, Door(4, 32, Mode.ONCE, by_interface=True), "lo"),
        Grant("192.0.2.1", TCP22, "once", 60, 60, Door(4, 32, Mode.ONCE, by_interface=True), "eth0"),
    ]
    kernel.apply(renew_grants(grants))
    assert set(state(kernel).grants) == set(grants)


@pytest.mark.parametrize(
    ("grant", "who"),
    [
        (Grant("192.0.2.1", TCP22, "ssh", 1, 1), "192.0.2.1"),
        (Grant("192.0.2.0", TCP22, "ssh", 1, 1, Door(4, 24)), "192.0.2.0/24"),
        (Grant("2001:db8::", TCP22, "ssh", 1, 1, Door(6, 32)), "2001:db8::/32"),
        (Grant("2001:db8::1", TCP22, "ssh", 1, 1, Door(6, 128, Mode.ONCE)), "2001:db8::1"),
        (Grant("192.0.2.1", TCP22, "ssh", 1, 1, Door(4, 32, by_interface=True), "lo"), "192.0.2.1"),
    ],
)
def test_who_a_grant_lets_in(grant: Grant, who: str) -> None:
    assert grant.who == who


def test_sessions_are_listed_with_their_remaining_time(kernel: FakeKernel) -> None:
    kernel.apply(transaction_to(compile_ruleset([SSH], Options(3)), None, [Session("192.0.2.1", 5, TCP22)]))
    kernel.now += 100
    [(session, expires)] = state(kernel).sessions
    assert session == Session("192.0.2.1", 5, TCP22)
    assert expires == 5 * 24 * 3600 - 100


def test_counters() -> None:
    listing = [{"counter": {**IN_TABLE, "name": "knocks", "packets": 2, "bytes": 128}}]
    assert parse_state(listing).counters == {"knocks": Traffic(2, 128)}


def test_without_a_queue_rule_nobody_judges(kernel: FakeKernel) -> None:
    found = change(kernel, nft.flush_chain(TABLE, layout.VERIFY))
    assert (found.queue, found.queue_target, found.intact) == (None, "", True)


def test_a_rule_that_queues_nothing_is_no_queue_rule(kernel: FakeKernel) -> None:
    found = change(
        kernel, nft.flush_chain(TABLE, layout.VERIFY), nft.add(Rule(TABLE, layout.VERIFY, (nft.ACCEPT,), "hello"))
    )
    assert found.queue is None


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(nft.flush_chain(TABLE, "gate"), id="a chain was flushed"),
        pytest.param(nft.flush_chain(TABLE, "guard"), id="the fingerprint is gone"),
        pytest.param(nft.add(Rule(TABLE, "gate", (nft.ACCEPT,))), id="a rule was added"),
        pytest.param(nft.add(Rule(TABLE, "gate", (nft.ACCEPT,), "hello")), id="a rule with comment was added"),
        pytest.param(nft.add(Set(TABLE, "more", "ipv4_addr")), id="a set was added"),
        pytest.param(nft.add(Set(TABLE, "extend4", "ipv4_addr")), id="a set was added whose name is nearly ours"),
    ],
)
def test_a_changed_table_is_not_intact(kernel: FakeKernel, command: Json) -> None:
    assert state(kernel).intact
    assert not change(kernel, command).intact


def test_an_empty_table_is_not_intact() -> None:
    kernel = FakeKernel()
    found = change(kernel, nft.add_table(TABLE))
    assert not found.intact
    assert (found.queue, found.gated, found.grants) == (None, {}, ())
    assert (found.source_limit, found.doors, set(found.chains.values())) == (0, frozenset(), {()})


FOREIGN: dict[str, tuple[Json, ...]] = {
    "a gated protocol without ports": (nft.add_elements(TABLE, "gated", [nft.concat(1, 0)]),),
    "a verdict that is none of ours": (nft.add_elements(TABLE, "rejects", [[nft.concat(6, 99), nft.ACCEPT]]),),
    "a verdict to another chain": (nft.add_elements(TABLE, "rejects", [[nft.concat(6, 99), nft.goto("hold")]]),),
    "a grant of a protocol without ports": (
        nft.add_elements(TABLE, "grants4", [nft.element(nft.concat("192.0.2.9", 1, 0), timeout=60)]),
    ),
    "another rule in front of the tags": (
        nft.flush_chain(TABLE, layout.TAGS),
        nft.add(Rule(TABLE, layout.TAGS, (nft.count("knocks"),))),
        *map(nft.add, layout.tag_rules({(): frozenset({b"PKD0"})})),
    ),
    "a guarded place without ports": (nft.add_elements(TABLE, "gated_on", [nft.concat("lo", 1, 0)]),),
    "a door for other keys": (
        nft.add(Set(TABLE, "once4", ("ipv4_addr", "inet_service"), ("timeout",))),
        nft.add_elements(TABLE, "once4", [nft.concat("192.0.2.9", 22)]),
    ),
    "a door for interfaces, by the name of one without": (
        nft.add(Set(TABLE, "once4", ("ifname", "ipv4_addr", "inet_proto", "inet_service"), ("timeout",))),
        nft.add_elements(TABLE, "once4", [nft.concat("lo", "192.0.2.9", 6, 22)]),
    ),
    "a door without an interface, by the name of one with": (
        nft.add(Set(TABLE, "once4_if", ("ipv4_addr", "inet_proto", "inet_service"), ("timeout",))),
        nft.add_elements(TABLE, "once4_if", [nft.concat("192.0.2.9", 6, 22)]),
    ),
    "a door of a width that no address has": (
        nft.add(Set(TABLE, "grants4_net99", ("ipv4_addr", "inet_proto", "inet_service"), ("timeout",))),
        nft.add_elements(TABLE, "grants4_net99", [nft.element(nft.concat("192.0.2.9", 6, 22), comment="ssh")]),
    ),
    "tags that are a named set": (
        nft.flush_chain(TABLE, layout.TAGS),
        nft.add(Rule(TABLE, layout.TAGS, (nft.match(nft.payload("ip", "saddr"), "@knocking4"), nft.goto("knock")))),
    ),
}


@pytest.mark.parametrize("commands", [pytest.param(commands, id=name) for name, commands in FOREIGN.items()])
def test_what_nfpkd_does_not_make_does_not_stop_it(kernel: FakeKernel, commands: tuple[Json, ...]) -> None:
    """An admin, or another version, put it there: `apply` must be able to repair the table."""
    kernel.apply(Transaction(commands))
    found = state(kernel)
    assert TCP22 in found.gated
    wanted = compile_ruleset([SSH], Options(3))
    kernel.apply(transaction_to(wanted, found))
    repaired = state(kernel)
    assert (repaired.intact, repaired.gated, repaired.doors) == (True, wanted.gated, frozenset())


def test_a_grant_for_good_is_listed(kernel: FakeKernel) -> None:
    """`nft add element inet nfpkd grants4 { 192.0.2.9 . tcp . 22 }`, by hand."""
    kernel.apply(Transaction((nft.add_elements(TABLE, "grants4", [nft.concat("192.0.2.9", 6, 22)]),)))
    [grant] = state(kernel).grants
    assert (grant.source, grant.service) == ("192.0.2.9", TCP22)


@pytest.mark.parametrize(
    ("name", "kind", "elements"),
    [
        ("gated", "inet_service", [22]),
        ("grants4", "ipv4_addr", ["192.0.2.1"]),
        ("grants4", ("ipv4_addr", "inet_service"), [nft.concat("192.0.2.1", 22)]),
        ("sessions4", ("ipv4_addr", "inet_service"), [nft.concat("192.0.2.1", 22)]),
        ("rejects", "inet_service", [22]),
    ],
)
def test_a_table_of_another_layout_is_not_intact(name: str, kind: Any, elements: list[Any]) -> None:
    kernel = FakeKernel()
    found = change(
        kernel, nft.add_table(TABLE), nft.add(Set(TABLE, name, kind)), nft.add_elements(TABLE, name, elements)
    )
    assert not found.intact


LISTED: dict[str, Json] = {
    "a set without a name": {"set": {}},
    "a set whose name is a number": {"set": {"name": 5}},
    "a set of no list": {"set": {"name": "gated", "elem": 5}},
    "a map of an object": {"map": {"name": "rejects", "elem": {}}},
    "a rule of no chain": {"rule": {"expr": []}},
    "a rule without statements": {"rule": {"chain": "guard"}},
    "a rule of numbers": {"rule": {"chain": layout.VERIFY, "expr": [5], "comment": "queue 3"}},
    "a rule whose comment is a number": {"rule": {"chain": "guard", "expr": [], "comment": 5}},
    "a counter that counts nothing": {"counter": {"name": "knocks"}},
    "a limit with very many digits": {
        "rule": {"chain": "guard", "expr": [], "comment": "layout 0 limit " + "9" * 5000}
    },
    "a door with very many digits": {"set": {"name": f"extend4_{'9' * 5000}s"}},
    "a flag, with which the table guards nothing": {"table": {**IN_TABLE, "flags": "dormant"}},
}


@pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in LISTED.items()])
def test_a_listing_that_nft_would_not_make_does_not_stop_it(kernel: FakeKernel, entry: Json) -> None:
    listing = kernel.list(TABLE)
    assert listing is not None
    found = parse_state([entry, *listing])
    assert (found.intact, found.gated) == (False, {TCP22: "ssh"})


def test_a_queue_of_very_many_digits_is_none(kernel: FakeKernel) -> None:
    listing = kernel.list(TABLE)
    assert listing is not None
    strange = {"rule": {"chain": layout.VERIFY, "expr": [], "comment": "queue " + "9" * 5000}}
    assert parse_state([strange]).queue is None
    assert parse_state([strange, *listing]).queue == 3


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        (layout.GATED, [nft.concat(6, {"range": [1, 2]}), nft.concat(6, "ssh"), nft.concat(6), 5, None, [], "x"]),
        (layout.GATED, [{"elem": 5}, {"elem": {}}, {"elem": {"val": nft.concat(6, 23), "comment": 5}}]),
        (layout.GATED, [nft.concat(6, 65536), nft.concat(6, -1)]),
        (layout.GATED_ON, [nft.concat(5, 6, 22), nft.concat([], 6, 22), nft.concat("lo", 6)]),
        (layout.REJECTS, [[], 5, {}, [nft.concat(6, 22), {"goto": {"target": []}}], [nft.concat(6, 22), "drop"]]),
        ("grants4", [nft.concat(5, 6, 22), nft.concat("x", 6, 22), nft.concat("::1", 6, 22), nft.concat([], 6, 22)]),
        ("grants4", [{"elem": {"val": nft.concat("192.0.2.1", 6, 22), "timeout": "1m"}}]),
        ("grants4", [{"elem": {"val": nft.concat("192.0.2.1", 6, 22), "expires": None}}]),
        ("grants4", [{"elem": {"val": nft.concat("192.0.2.1", 6, 22), "timeout": -1}}]),
        ("grants4", [{"elem": {"val": nft.concat("192.0.2.1", 6, 22), "expires": 2**64}}]),
        ("grants4", [{"elem": {"val": nft.concat("192.0.2.1", 6, 22), "comment": "\ud800"}}]),
        ("grants4", [nft.concat("192.0.2.1", 6, 65536)]),
        ("grants6", [nft.concat("fe80::1%lo", 6, 22)]),
        ("grants6_if", [nft.concat(5, "::1", 6, 22), nft.concat("\ud800", "::1", 6, 22)]),
        ("sessions4", [nft.concat("x", 5, 6, 22), nft.concat("192.0.2.1", "x", 6, 22)]),
        ("sessions4", [nft.concat("192.0.2.1", 65536, 6, 22), nft.concat("fe80::1%lo", 5, 6, 22)]),
    ],
)
def test_an_element_that_is_none_of_ours_is_no_more_than_that(name: str, elements: list[Any]) -> None:
    for element in elements:
        found = parse_state([{"set": {**IN_TABLE, "name": name, "elem": [element]}}])
        held = (found.gated, found.gated_on, found.rejects, found.grants, found.sessions)
        assert not any(held), element


_FIELDS = st.sampled_from(["name", "chain", "elem", "expr", "comment", "packets", "bytes", "flags"])
_DESCRIBED = st.dictionaries(_FIELDS, strategies.json_values | st.sampled_from(["gated", "grants4", "tags", "verify"]))
_KINDS = st.sampled_from(["table", "set", "map", "rule", "counter", "chain", "metainfo"])


@given(st.lists(st.dictionaries(_KINDS, _DESCRIBED, max_size=1)))
def test_any_listing_can_be_read(listing: list[Json]) -> None:
    assert parse_state(listing).intact is False


def test_a_grant_with_bits_behind_its_prefix_lets_in_what_it_says() -> None:
    """`nft add element inet nfpkd grants4_net24 { 192.0.2.1 . tcp . 22 }`, by hand."""
    grant = Grant("192.0.2.1", TCP22, "", 0, 0, Door(4, 24))
    assert grant.lets_in("192.0.2.9")
    assert not grant.lets_in("192.0.3.1")


def test_layouts_of_other_limits_are_not_remembered_for_ever() -> None:
    for limit in range(1, 100):
        parse_state([{"rule": {"chain": "guard", "expr": [], "comment": f"layout 0 limit {limit}"}}])
    assert layout.rule_comments.cache_info().currsize < 10
