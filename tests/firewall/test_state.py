from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies
from support.fake_kernel import FakeKernel

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Rule, Set, Transaction
from nfpkd.firewall.ruleset import compile_ruleset, renew_grants, transaction_to
from nfpkd.firewall.state import Grant, Session, State, Traffic, parse_state
from nfpkd.rules.model import PortRange, Protocol, Reject, Secret, Service
from nfpkd.rules.model import Rule as NfpkdRule

TCP22 = Service(Protocol.TCP, 22)
SSH = NfpkdRule("ssh", Secret(bytes(40)), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,), reject=Reject.RESET)
IN_TABLE = {"family": TABLE.family, "table": TABLE.name}


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.apply(transaction_to(compile_ruleset([SSH], 3), None, [Session("192.0.2.1", 5, TCP22)]))
    return made


def state(kernel: FakeKernel) -> State:
    listing = kernel.list(TABLE)
    assert listing is not None
    return parse_state(listing)


def change(kernel: FakeKernel, *commands: Json) -> State:
    kernel.apply(Transaction(commands))
    return state(kernel)


@given(strategies.rule_lists, st.integers(0, 65535), st.booleans())
def test_what_is_listed_is_what_was_compiled(rules: list[NfpkdRule], queue: int, native: bool) -> None:
    kernel = FakeKernel(has_queue_statement=native)
    wanted = compile_ruleset(rules, queue)
    kernel.apply(transaction_to(wanted, None))
    found = state(kernel)
    assert found.intact
    assert (found.queue, found.queue_target) == (queue, "nft_queue" if native else "nft_compat")
    assert (found.tags, found.gated, found.rejects) == (wanted.tags, wanted.gated, wanted.rejects)
    assert (found.grants, found.sessions) == ((), ())


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_grants_are_listed_with_their_remaining_time(kernel: FakeKernel, source: str) -> None:
    kernel.apply(renew_grants([Grant(source, TCP22, "ssh", 60, 60)]))
    kernel.now += 12.5
    assert state(kernel).grants == (Grant(source, TCP22, "ssh", 60, 47),)


def test_sessions_are_listed_with_their_remaining_time(kernel: FakeKernel) -> None:
    kernel.apply(transaction_to(compile_ruleset([SSH], 3), None, [Session("192.0.2.1", 5, TCP22)]))
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


def test_without_a_tag_rule_there_are_no_tags(kernel: FakeKernel) -> None:
    found = change(kernel, nft.flush_chain(TABLE, layout.TAGS))
    assert (found.tags, found.intact) == (frozenset(), True)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(nft.flush_chain(TABLE, "gate"), id="a chain was flushed"),
        pytest.param(nft.flush_chain(TABLE, "guard"), id="the fingerprint is gone"),
        pytest.param(nft.add(Rule(TABLE, "gate", (nft.ACCEPT,))), id="a rule was added"),
        pytest.param(nft.add(Rule(TABLE, "gate", (nft.ACCEPT,), "hello")), id="a rule with comment was added"),
        pytest.param(nft.add(Set(TABLE, "more", "ipv4_addr")), id="a set was added"),
    ],
)
def test_a_changed_table_is_not_intact(kernel: FakeKernel, command: Json) -> None:
    assert state(kernel).intact
    assert not change(kernel, command).intact


def test_an_empty_table_is_not_intact() -> None:
    kernel = FakeKernel()
    found = change(kernel, nft.add_table(TABLE))
    assert not found.intact
    assert (found.queue, found.tags, found.gated, found.grants) == (None, frozenset(), {}, ())


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
        nft.add(layout.tag_rule(frozenset({b"PKD0"}))),
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
    listing = kernel.list(TABLE)
    assert listing is not None
    assert TCP22 in parse_state(listing).gated


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
