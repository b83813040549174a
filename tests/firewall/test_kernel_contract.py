"""What nfpkd relies on the kernel for: the same tests for the fake and the real one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nfpkd.errors import KernelError
from nfpkd.firewall import nft
from nfpkd.firewall.kernel import Kernel, NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Chain, Counter, Expression, Json, Rule, Set, Table, Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, renew_grants, transaction_to
from nfpkd.firewall.state import Grant, Session
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Reject, Secret, Service, TimedKey
from nfpkd.rules.model import Rule as NfpkdRule
from support.fake_kernel import FakeKernel

CONTRACT = Table("inet", "contract")
MISSING = Table("inet", "missing")
SERVICE = (nft.meta("l4proto"), nft.payload("th", "dport"))
SOURCE = nft.payload("ip", "saddr")
SOURCE6 = nft.payload("ip6", "saddr")
LIMITED = nft.update("sources6", nft.element(SOURCE6, timeout=10), nft.over_limit(20, 20))
KEY = nft.concat("192.0.2.1", 6, 22)
OTHER = nft.concat("192.0.2.2", 6, 22)

MADE = (
    nft.add_table(CONTRACT),
    nft.add(Set(CONTRACT, "grants", ("ipv4_addr", "inet_proto", "inet_service"), ("timeout",), 3)),
    nft.add(Set(CONTRACT, "sources6", "ipv6_addr", ("timeout",))),
    nft.add(Set(CONTRACT, "services", ("inet_proto", "inet_service"))),
    nft.add(Set(CONTRACT, "doors", ("ifname", "inet_service"))),
    nft.add(Set(CONTRACT, "verdicts", ("inet_proto", "inet_service"), maps_to="verdict")),
    nft.add(Counter(CONTRACT, "hits", "packets that hit")),
    nft.add(Chain(CONTRACT, "base", "prerouting", -150)),
    nft.add(Chain(CONTRACT, "first")),
    nft.add(Chain(CONTRACT, "second")),
)


def apply(kernel: Kernel, *commands: Json) -> None:
    kernel.apply(Transaction(commands))


def listing(kernel: Kernel, table: Table = CONTRACT) -> list[Json]:
    found = kernel.list(table)
    assert found is not None
    return found


def described(kernel: Kernel, kind: str) -> dict[str, Json]:
    return {entry[kind]["name"]: entry[kind] for entry in listing(kernel) if kind in entry}


def elements(kernel: Kernel, name: str) -> list[Any]:
    found: list[Any] = (described(kernel, "set") | described(kernel, "map"))[name].get("elem", [])
    return found


def chain_rules(kernel: Kernel, chain: str) -> list[Json]:
    return [entry["rule"] for entry in listing(kernel) if "rule" in entry and entry["rule"]["chain"] == chain]


def add(name: str, *members: Expression) -> Json:
    return nft.add_elements(CONTRACT, name, members)


def delete(name: str, *members: Expression) -> Json:
    return nft.delete_elements(CONTRACT, name, members)


def rule(*statements: Json, chain: str = "first", comment: str = "") -> Json:
    return nft.add(Rule(CONTRACT, chain, statements, comment))


def ports(*members: Expression) -> Json:
    return rule(nft.match(nft.payload("udp", "dport"), nft.anonymous_set(members)))


def until(kernel: Kernel, condition: Callable[[], bool]) -> None:
    """Let time pass until *condition* holds: the fake's own, or the world's."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        if isinstance(kernel, FakeKernel):
            kernel.now += 0.25
        else:
            time.sleep(0.02)


def granted(address: str, **options: Any) -> Expression:
    return nft.element(nft.concat(address, 6, 22), **options)


# Tables, chains, sets


def test_without_a_table_there_is_nothing_to_list(kernel: Kernel) -> None:
    assert kernel.list(CONTRACT) is None


def test_a_table_of_another_family_is_another_table(kernel: Kernel) -> None:
    apply(kernel, nft.add_table(Table("ip", CONTRACT.name)))
    assert kernel.list(CONTRACT) is None


def test_table_is_added_twice_without_harm(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", KEY))
    apply(kernel, nft.add_table(CONTRACT))
    assert elements(kernel, "grants") == [KEY]


def test_delete_takes_the_whole_table(kernel: Kernel) -> None:
    apply(kernel, *MADE)
    apply(kernel, nft.delete_table(CONTRACT))
    assert kernel.list(CONTRACT) is None


def test_add_delete_add_empties_a_table_in_one_transaction(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", KEY), rule(nft.ACCEPT))
    apply(kernel, nft.add_table(CONTRACT), nft.delete_table(CONTRACT), *MADE)
    assert elements(kernel, "grants") == []
    assert chain_rules(kernel, "first") == []


def test_add_delete_is_legal_without_a_table(kernel: Kernel) -> None:
    apply(kernel, nft.add_table(CONTRACT), nft.delete_table(CONTRACT))
    assert kernel.list(CONTRACT) is None


def test_same_declarations_again_change_nothing(kernel: Kernel) -> None:
    apply(kernel, *MADE)
    before = listing(kernel)
    apply(kernel, *MADE)
    assert listing(kernel) == before


def test_declarations_are_listed_as_made(kernel: Kernel) -> None:
    apply(kernel, *MADE)
    found = described(kernel, "set")["grants"]
    assert (found["type"], found["flags"], found["size"]) == (
        ["ipv4_addr", "inet_proto", "inet_service"],
        ["timeout"],
        3,
    )
    assert described(kernel, "map")["verdicts"]["map"] == "verdict"
    assert described(kernel, "set")["sources6"]["type"] == "ipv6_addr"
    base = described(kernel, "chain")["base"]
    assert (base["hook"], base["prio"], base["policy"]) == ("prerouting", -150, "accept")
    assert "hook" not in described(kernel, "chain")["first"]


def test_counter_starts_at_zero_and_keeps_its_comment(kernel: Kernel) -> None:
    apply(kernel, *MADE)
    hits = described(kernel, "counter")["hits"]
    assert (hits["packets"], hits["bytes"], hits["comment"]) == (0, 0, "packets that hit")


def test_empty_transaction_is_accepted(kernel: Kernel) -> None:
    kernel.check(Transaction())
    kernel.apply(Transaction())
    assert kernel.list(CONTRACT) is None


# Elements


def test_element_without_options_is_listed_as_its_key(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", KEY))
    assert elements(kernel, "grants") == [KEY]


def test_element_lists_its_comment(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("services", nft.element(nft.concat(17, 53), comment="name service")))
    assert elements(kernel, "services") == [{"elem": {"val": {"concat": [17, 53]}, "comment": "name service"}}]


@pytest.mark.parametrize("comment", ["x" * nft.MAX_COMMENT, "ü" * 63, "back\\slash 'quoted'", "日本"])
def test_comments_come_back_unchanged(kernel: Kernel, comment: str) -> None:
    apply(kernel, *MADE, add("grants", nft.element(KEY, comment=comment)), rule(nft.ACCEPT, comment=comment))
    assert elements(kernel, "grants")[0]["elem"]["comment"] == comment
    assert chain_rules(kernel, "first")[0]["comment"] == comment


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:0:1::", "2001:db8:0:1::"),
        ("::", "::"),
        ("::102:304", "::1.2.3.4"),
    ],
)
def test_ipv6_addresses_are_listed_in_their_short_form(kernel: Kernel, written: str, listed: str) -> None:
    apply(kernel, *MADE, add("sources6", written))
    assert elements(kernel, "sources6") == [listed]


def test_element_takes_an_interface(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("doors", nft.concat("eth0", 22)))
    assert elements(kernel, "doors") == [nft.concat("eth0", 22)]


def test_remaining_time_is_what_was_asked_for(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=3600, expires=600, comment="ssh")))
    [listed] = elements(kernel, "grants")
    # The kernel rounds down, and a slow machine may have used some of it.
    assert 500 < listed["elem"].pop("expires") <= 600
    assert listed == {"elem": {"val": KEY, "timeout": 3600, "comment": "ssh"}}


def test_year_long_timeouts_are_taken(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=365 * 24 * 3600)))
    assert elements(kernel, "grants")[0]["elem"]["timeout"] == 365 * 24 * 3600


def test_elements_run_out(kernel: Kernel) -> None:
    apply(
        kernel, *MADE, add("grants", granted("192.0.2.1", timeout=3600, expires=1), granted("192.0.2.2", timeout=3600))
    )
    until(kernel, lambda: len(elements(kernel, "grants")) == 1)
    assert elements(kernel, "grants")[0]["elem"]["val"] == OTHER


def test_an_element_that_ran_out_cannot_be_deleted(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=1)))
    until(kernel, lambda: not elements(kernel, "grants"))
    with pytest.raises(KernelError):
        apply(kernel, delete("grants", KEY))


def test_add_delete_is_legal_for_an_element_that_ran_out(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=1)))
    until(kernel, lambda: not elements(kernel, "grants"))
    apply(kernel, add("grants", KEY), delete("grants", KEY))
    assert elements(kernel, "grants") == []


def test_adding_an_element_again_is_legal_and_keeps_its_comment(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=60, comment="one")))
    apply(kernel, add("grants", granted("192.0.2.1", timeout=60, comment="two")))
    [listed] = elements(kernel, "grants")
    assert listed["elem"]["comment"] == "one"


def test_add_delete_add_refreshes_timeout_and_comment(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=60, expires=30, comment="one")))
    fresh = granted("192.0.2.1", timeout=7200, expires=7200, comment="two")
    apply(kernel, add("grants", KEY), delete("grants", KEY), add("grants", fresh))
    [listed] = elements(kernel, "grants")
    assert listed["elem"]["expires"] > 7000
    assert (listed["elem"]["timeout"], listed["elem"]["comment"]) == (7200, "two")


def test_add_takes_a_key_twice_in_one_command(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", KEY, KEY))
    assert elements(kernel, "grants") == [KEY]


def test_delete_looks_at_the_key_alone(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", granted("192.0.2.1", timeout=60, comment="one")))
    apply(kernel, delete("grants", granted("192.0.2.1", timeout=5, comment="two")))
    assert elements(kernel, "grants") == []


def test_a_full_set_still_takes_what_it_holds(kernel: Kernel) -> None:
    full = [granted(f"192.0.2.{i}", timeout=60) for i in range(1, 4)]
    apply(kernel, *MADE, add("grants", *full))
    apply(kernel, add("grants", KEY), delete("grants", KEY), add("grants", granted("192.0.2.1", timeout=90)))
    assert {e["elem"]["timeout"] for e in elements(kernel, "grants")} == {60, 90}


def test_what_leaves_a_full_set_makes_room_at_once(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("grants", *(nft.concat(f"192.0.2.{i}", 6, 22) for i in range(1, 4))))
    apply(kernel, delete("grants", KEY), add("grants", nft.concat("192.0.2.9", 6, 22)))
    assert nft.concat("192.0.2.9", 6, 22) in elements(kernel, "grants")


# Maps


@pytest.mark.parametrize("verdict", [nft.goto("first"), nft.jump("first"), nft.ACCEPT, nft.DROP, nft.RETURN])
def test_map_lists_keys_with_verdicts(kernel: Kernel, verdict: Json) -> None:
    apply(kernel, *MADE, add("verdicts", [nft.concat(6, 22), verdict]))
    assert elements(kernel, "verdicts") == [[nft.concat(6, 22), verdict]]


def test_map_element_lists_its_comment(kernel: Kernel) -> None:
    entry = [nft.element(nft.concat(6, 22), comment="ssh"), nft.goto("first")]
    apply(kernel, *MADE, add("verdicts", entry))
    assert elements(kernel, "verdicts") == [entry]


def test_verdict_changes_in_one_transaction(kernel: Kernel) -> None:
    key = nft.concat(6, 22)
    apply(kernel, *MADE, add("verdicts", [key, nft.goto("first")]))
    apply(kernel, delete("verdicts", key), add("verdicts", [key, nft.goto("second")]))
    assert elements(kernel, "verdicts") == [[key, nft.goto("second")]]


def test_same_verdict_again_is_legal(kernel: Kernel) -> None:
    entry = [nft.concat(6, 22), nft.goto("first")]
    apply(kernel, *MADE, add("verdicts", entry))
    apply(kernel, add("verdicts", entry))
    assert elements(kernel, "verdicts") == [entry]


# Rules


def test_rules_are_listed_in_order_with_comments(kernel: Kernel) -> None:
    apply(kernel, *MADE, rule(nft.count("hits"), nft.goto("second"), comment="one"), rule(nft.DROP))
    first, second = chain_rules(kernel, "first")
    assert (first["comment"], first["expr"]) == ("one", [nft.count("hits"), nft.goto("second")])
    assert ("comment" in second, second["expr"]) == (False, [nft.DROP])


def test_flush_empties_a_chain_alone(kernel: Kernel) -> None:
    apply(kernel, *MADE, rule(nft.ACCEPT), rule(nft.ACCEPT, chain="second"))
    apply(kernel, nft.flush_chain(CONTRACT, "first"), rule(nft.DROP))
    assert [r["expr"] for r in chain_rules(kernel, "first")] == [[nft.DROP]]
    assert [r["expr"] for r in chain_rules(kernel, "second")] == [[nft.ACCEPT]]


@pytest.mark.parametrize(
    ("members", "listed"),
    [
        ([17, 6], {"set": [6, 17]}),
        ([6, 6, 5], {"set": [5, 6]}),
        ([2**32 - 1, 5, 7, 6], {"set": [5, 6, 7, 2**32 - 1]}),
        ([2**32 - 1], 2**32 - 1),
    ],
)
def test_raw_payload_is_listed_sorted_and_a_lone_value_without_a_set(
    kernel: Kernel, members: list[int], listed: object
) -> None:
    apply(kernel, *MADE, rule(nft.match(nft.raw_payload("th", 64, 32), nft.anonymous_set(members)), nft.ACCEPT))
    [found] = chain_rules(kernel, "first")
    assert found["expr"][0]["match"]["right"] == listed


@pytest.mark.parametrize(
    ("members", "listed"),
    [
        ([nft.port_range(80, 90)], {"range": [80, 90]}),
        ([nft.port_range(5, 5)], 5),
        ([nft.port_range(80, 90), nft.port_range(5, 5)], {"set": [5, {"range": [80, 90]}]}),
        ([nft.port_range(80, 90), nft.port_range(85, 95), 82], {"set": [{"range": [80, 95]}]}),
        ([nft.port_range(80, 90), 91, 92, 1], {"set": [1, {"range": [80, 92]}]}),
        ([nft.port_range(1, 65535)], {"range": [1, 65535]}),
    ],
)
def test_anonymous_ranges_are_listed_in_order_and_joined(
    kernel: Kernel, members: list[Expression], listed: object
) -> None:
    apply(kernel, *MADE, rule(nft.match(nft.payload("udp", "dport"), nft.anonymous_set(members)), nft.ACCEPT))
    [found] = chain_rules(kernel, "first")
    assert found["expr"][0]["match"]["right"] == listed


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["lo"], "lo"),
        (["eth0", "lo"], {"set": ["lo", "eth0"]}),
        (["eth0", "br0", "wg0"], {"set": ["wg0", "br0", "eth0"]}),
    ],
)
def test_interfaces_are_matched_by_name(kernel: Kernel, names: list[str], listed: object) -> None:
    apply(kernel, *MADE, rule(nft.match(nft.meta("iifname"), nft.anonymous_set(names)), nft.ACCEPT))
    [found] = chain_rules(kernel, "first")
    assert found["expr"][0]["match"]["right"] == listed


USES = [
    nft.match(nft.concat(nft.masked(SOURCE, "255.255.255.0"), *SERVICE), "@grants"),
    nft.match(nft.concat(nft.masked(SOURCE, "255.0.0.0"), *SERVICE), "@grants"),
    nft.match(nft.concat(nft.meta("iifname"), nft.payload("th", "dport")), "@doors"),
    nft.update("sources6", nft.element(nft.masked(SOURCE6, "ffff:ffff:ffff:ffff::"), timeout=10)),
    nft.update("grants", nft.element(nft.concat(nft.masked(SOURCE, "255.255.255.0"), *SERVICE), timeout=10)),
    nft.remove("grants", nft.concat(SOURCE, *SERVICE)),
    nft.remove("doors", nft.concat(nft.meta("iifname"), nft.payload("th", "dport"))),
]


@pytest.mark.parametrize("statement", USES)
def test_rules_that_come_later_use_sets_that_were_there(kernel: Kernel, statement: Json) -> None:
    apply(kernel, *MADE)
    apply(kernel, rule(statement))
    assert chain_rules(kernel, "first")[0]["expr"] == [statement]


def test_a_set_made_with_its_rule_holds_a_limit_for_each_element(kernel: Kernel) -> None:
    apply(kernel, *MADE, rule(LIMITED, nft.count("hits"), nft.RETURN))
    assert chain_rules(kernel, "first")[0]["expr"] == [LIMITED, nft.count("hits"), nft.RETURN]


def test_a_set_that_was_there_takes_no_limit(kernel: Kernel) -> None:
    """So the limit is part of the layout, and another one makes the table anew."""
    apply(kernel, *MADE)
    with pytest.raises(KernelError):
        apply(kernel, rule(LIMITED))
    assert chain_rules(kernel, "first") == []
    apply(kernel, nft.delete_table(CONTRACT), *MADE, rule(LIMITED))
    assert chain_rules(kernel, "first")[0]["expr"] == [LIMITED]


@pytest.mark.parametrize(
    "use",
    [
        nft.match(nft.concat(SOURCE, *SERVICE), "@grants"),
        nft.update("grants", nft.element(nft.concat(SOURCE, *SERVICE), timeout=10)),
        nft.remove("grants", nft.concat(SOURCE, *SERVICE)),
    ],
)
def test_a_set_goes_once_its_rule_is_gone(kernel: Kernel, use: Json) -> None:
    apply(kernel, *MADE, add("grants", KEY), rule(use))
    with pytest.raises(KernelError):
        apply(kernel, nft.delete_set(CONTRACT, "grants"))
    # In this order only.
    with pytest.raises(KernelError):
        apply(kernel, nft.delete_set(CONTRACT, "grants"), nft.flush_chain(CONTRACT, "first"))
    apply(kernel, nft.flush_chain(CONTRACT, "first"), nft.delete_set(CONTRACT, "grants"))
    assert "grants" not in described(kernel, "set")


def test_a_set_goes_with_what_it_holds_and_comes_back_empty(kernel: Kernel) -> None:
    apply(kernel, *MADE, add("services", nft.concat(6, 22)))
    again = Set(CONTRACT, "services", ("inet_proto", "inet_service"))
    apply(kernel, nft.delete_set(CONTRACT, "services"), nft.add(again))
    assert elements(kernel, "services") == []


@pytest.mark.parametrize(
    "statement",
    [
        nft.match(nft.concat(*SERVICE), "@services"),
        nft.match(nft.concat(SOURCE, *SERVICE), "@grants", "!="),
        nft.vmap(nft.concat(*SERVICE), "verdicts"),
        nft.update("sources6", nft.element(nft.payload("ip6", "saddr"), timeout=1)),
    ],
)
def test_rules_use_sets_and_maps(kernel: Kernel, statement: Json) -> None:
    apply(kernel, *MADE, rule(statement))
    assert chain_rules(kernel, "first")[0]["expr"] == [statement]


def test_queue_rule_is_taken_with_its_comment(kernel: Kernel) -> None:
    apply(kernel, *MADE, rule(nft.queue_bypass(7), comment="queue 7"))
    [found] = chain_rules(kernel, "first")
    # Kernels without nft_queue list an xtables target.
    assert (found["comment"], found["expr"][0].keys() <= {"queue", "xt"}) == ("queue 7", True)


def test_chain_and_set_can_be_deleted_once_unused(kernel: Kernel) -> None:
    apply(kernel, *MADE, rule(nft.match(nft.concat(*SERVICE), "@services"), nft.goto("second")))
    apply(
        kernel,
        nft.flush_chain(CONTRACT, "first"),
        {"delete": {"chain": {**CONTRACT_ITEM, "name": "second"}}},
        {"delete": {"set": {**CONTRACT_ITEM, "name": "services"}}},
    )
    assert "second" not in described(kernel, "chain")
    assert "services" not in described(kernel, "set")


CONTRACT_ITEM = {"family": CONTRACT.family, "table": CONTRACT.name}


# Refusals

REFUSED: dict[str, Json] = {
    "deleting a missing table": nft.delete_table(MISSING),
    "a chain in a missing table": nft.add(Chain(MISSING, "chain")),
    "a set in a missing table": nft.add(Set(MISSING, "set", "ipv4_addr")),
    "a counter in a missing table": nft.add(Counter(MISSING, "counter")),
    "a rule in a missing chain": rule(nft.ACCEPT, chain="missing"),
    "elements of a missing set": add("missing", KEY),
    "elements in a missing table": nft.add_elements(MISSING, "grants", [KEY]),
    "flushing a missing chain": nft.flush_chain(CONTRACT, "missing"),
    "flushing in a missing table": nft.flush_chain(MISSING, "first"),
    "deleting a missing element": delete("grants", OTHER),
    "deleting an element twice": delete("grants", KEY, KEY),
    "no elements": add("grants"),
    "deleting no elements": delete("grants"),
    "too few parts": add("grants", nft.concat("192.0.2.1", 6)),
    "too many parts": add("grants", nft.concat("192.0.2.1", 6, 22, 1)),
    "a bare value in a concatenation": add("grants", "192.0.2.1"),
    "a concatenation for a bare value": add("sources6", nft.concat("2001:db8::1", 22)),
    "an IPv6 address among IPv4's": add("grants", nft.concat("2001:db8::1", 6, 22)),
    "an IPv4 address among IPv6's": add("sources6", "192.0.2.1"),
    "a port too high": add("grants", nft.concat("192.0.2.1", 6, 65536)),
    "a port below zero": add("grants", nft.concat("192.0.2.1", 6, -1)),
    "a protocol too high": add("grants", nft.concat("192.0.2.1", 256, 22)),
    "a long interface name": add("doors", nft.concat("e" * 16, 22)),
    "a timeout where none is": add("services", nft.element(nft.concat(6, 23), timeout=60)),
    "expiry without timeout": add("grants", nft.element(OTHER, expires=60)),
    "expiry behind the timeout": add("grants", nft.element(OTHER, timeout=60, expires=61)),
    "a timeout below zero": add("grants", nft.element(OTHER, timeout=-1)),
    "a timeout too high": add("grants", nft.element(OTHER, timeout=10**15)),
    "more elements than fit": add("grants", *(nft.concat(f"192.0.2.{i}", 6, 22) for i in range(1, 5))),
    "a verdict in a set": add("services", [nft.concat(6, 23), nft.goto("first")]),
    "a map's element without verdict": add("verdicts", nft.concat(6, 23)),
    "another verdict for a key": add("verdicts", [nft.concat(6, 22), nft.goto("first")]),
    "a verdict to a missing chain": add("verdicts", [nft.concat(6, 23), nft.goto("missing")]),
    "a verdict to a base chain": add("verdicts", [nft.concat(6, 23), nft.jump("base")]),
    "a rule that jumps to a missing chain": rule(nft.jump("missing")),
    "a rule that jumps to a base chain": rule(nft.goto("base")),
    "a rule with a missing set": rule(nft.match(SOURCE, "@missing")),
    "a rule with a missing map": rule(nft.vmap(nft.concat(*SERVICE), "missing")),
    "a rule that updates a missing set": rule(nft.update("missing", SOURCE)),
    "a rule with a missing counter": rule(nft.count("missing")),
    "a rule with a set of other width": rule(nft.match(SOURCE, "@grants")),
    "a rule with a map of other width": rule(nft.vmap(SOURCE, "verdicts")),
    "a rule that updates a set of other width": rule(nft.update("grants", SOURCE)),
    "a verdict map that is a set": rule(nft.vmap(nft.concat(*SERVICE), "services")),
    "an anonymous set without members": rule(nft.match(nft.meta("l4proto"), nft.anonymous_set([]))),
    "a rule that updates a map": rule(nft.update("verdicts", nft.concat(*SERVICE))),
    "a rule that times what has no timeouts": rule(
        nft.update("services", nft.element(nft.concat(*SERVICE), timeout=10))
    ),
    "a rule that removes from a missing set": rule(nft.remove("missing", SOURCE)),
    "a rule that removes from a set of other width": rule(nft.remove("grants", SOURCE)),
    "a rule that limits in a set that was there": rule(LIMITED),
    "a rule that limits to nothing": rule(nft.update("sources6", SOURCE6, nft.over_limit(0, 1))),
    "a range from high to low": ports(nft.port_range(90, 80)),
    "a range that ends too high": ports(nft.port_range(80, 65536)),
    "a port too high in an anonymous set": ports(65536, 80),
    "a long interface name in an anonymous set": rule(nft.match(nft.meta("iifname"), nft.anonymous_set(["e" * 16]))),
    "deleting a missing set": nft.delete_set(CONTRACT, "missing"),
    "a set of other type by a name in use": nft.add(Set(CONTRACT, "services", "inet_service")),
    "a map by a set's name": nft.add(Set(CONTRACT, "services", ("inet_proto", "inet_service"), maps_to="verdict")),
    "a set of an unknown type": nft.add(Set(CONTRACT, "new", "nonsense")),
    "a base chain by another priority": nft.add(Chain(CONTRACT, "base", "prerouting", -100)),
    "deleting a chain in use by a map": {"delete": {"chain": {**CONTRACT_ITEM, "name": "second"}}},
    "deleting a chain in use by a rule": {"delete": {"chain": {**CONTRACT_ITEM, "name": "first"}}},
    "deleting a set in use": {"delete": {"set": {**CONTRACT_ITEM, "name": "sources6"}}},
    "deleting a missing chain": {"delete": {"chain": {**CONTRACT_ITEM, "name": "missing"}}},
    "a verb that there is not": {"remove": {"table": CONTRACT._asdict()}},
}

HELD = (
    add("grants", KEY),
    add("verdicts", [nft.concat(6, 22), nft.goto("second")]),
    rule(nft.match(nft.payload("ip6", "saddr"), "@sources6"), nft.jump("first"), chain="base"),
)


each_refused = pytest.mark.parametrize("refused", [pytest.param(command, id=name) for name, command in REFUSED.items()])


@each_refused
def test_refusal_undoes_the_whole_transaction(kernel: Kernel, refused: Json) -> None:
    apply(kernel, *MADE, *HELD)
    before = listing(kernel)
    around = (delete("grants", KEY), add("services", nft.concat(17, 53)), rule(nft.DROP))
    with pytest.raises(KernelError):
        apply(kernel, add("services", nft.concat(6, 443)), refused, *around)
    assert listing(kernel) == before


@each_refused
def test_check_refuses_what_apply_refuses(kernel: Kernel, refused: Json) -> None:
    apply(kernel, *MADE, *HELD)
    with pytest.raises(KernelError):
        kernel.check(Transaction((refused,)))


def test_a_survey_tells_what_a_listing_tells_but_for_the_elements_passed_over(kernel: Kernel) -> None:
    sources = nft.anonymous_set(["192.0.2.1", "192.0.2.2"])
    more = (
        rule(nft.match(SOURCE, sources), nft.count("hits"), nft.ACCEPT, comment="all"),
        rule(nft.queue_bypass(1), chain="second", comment="queue 1"),
    )
    apply(kernel, *MADE, *HELD, add("sources6", nft.element("2001:db8::", timeout=60)), *more)
    surveyed = kernel.survey(CONTRACT, {"sources6"})
    assert surveyed is not None

    def named(kind: str) -> dict[str, Json]:
        return {entry[kind]["name"]: entry[kind] for entry in surveyed if kind in entry}

    for kind in ("set", "map", "counter"):
        assert named(kind).keys() == described(kernel, kind).keys()
    for name, found in (named("set") | named("map")).items():
        assert found.get("elem") == (None if name == "sources6" else elements(kernel, name) or None)
    assert elements(kernel, "sources6")
    assert named("counter")["hits"].items() >= {"packets": 0, "bytes": 0}.items()
    rules = [entry["rule"] for entry in surveyed if "rule" in entry]
    listed = [entry["rule"] for entry in listing(kernel) if "rule" in entry]
    assert [(r["chain"], r.get("comment")) for r in rules] == [(r["chain"], r.get("comment")) for r in listed]


def test_a_table_that_is_not_there_is_not_surveyed(kernel: Kernel) -> None:
    assert kernel.survey(MISSING, ()) is None
    apply(kernel, nft.add_table(CONTRACT))
    assert kernel.survey(CONTRACT, ()) == []


def test_check_changes_nothing(kernel: Kernel) -> None:
    kernel.check(Transaction(MADE))
    assert kernel.list(CONTRACT) is None
    apply(kernel, *MADE, *HELD)
    before = listing(kernel)
    kernel.check(Transaction((delete("grants", KEY), rule(nft.queue_bypass(1)), nft.delete_table(CONTRACT))))
    assert listing(kernel) == before


def test_kernel_goes_on_after_a_refusal(kernel: Kernel) -> None:
    with pytest.raises(KernelError):
        apply(kernel, add("missing", KEY))
    apply(kernel, *MADE, add("grants", KEY))
    assert elements(kernel, "grants") == [KEY]


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (rule(nft.match(SOURCE, "@later")), nft.add(Set(CONTRACT, "later", "ipv4_addr"))),
        (rule(nft.jump("later")), nft.add(Chain(CONTRACT, "later"))),
        (add("verdicts", [nft.concat(6, 1), nft.goto("later")]), nft.add(Chain(CONTRACT, "later"))),
    ],
)
def test_names_must_be_declared_before_their_use(kernel: Kernel, early: Json, late: Json) -> None:
    with pytest.raises(KernelError):
        apply(kernel, *MADE, early, late)
    apply(kernel, *MADE, late, early)


# nfpkd's own table


def make_rule(
    name: str, ports: PortRange, protocols: tuple[Protocol, ...], way: Reject, tag: bytes, **more: Any
) -> NfpkdRule:
    keys = (TimedKey(Secret(bytes(40))),)
    return NfpkdRule(name, keys, tag, (ports,), protocols, reject=way, description="for äll", **more)


def normalised(found: list[Json]) -> Iterator[Json]:
    """Yield what a listing says, without what the kernel makes up, in an order that does not matter to nft."""
    for entry in found:
        [(kind, shown)] = entry.items()
        if kind == "metainfo":
            continue
        shown = {key: value for key, value in shown.items() if key != "handle"}
        if "elem" in shown:
            for element in shown["elem"]:
                if isinstance(element, dict) and "expires" in element.get("elem", {}):
                    del element["elem"]["expires"]
            shown["elem"] = sorted(shown["elem"], key=repr)
        if "dynamic" in shown.get("flags", ()):
            # nft 1.1 finds out by itself that packets update it.
            shown["flags"].remove("dynamic")
        if kind == "rule":
            # nft leaves out what another match implies; kernels without nft_queue list an xtables target.
            wanted = ("match", "xt", "queue")
            shown["expr"] = [s for s in shown["expr"] if not s.keys() & set(wanted)]
        yield {kind: shown}


@pytest.mark.netns
def test_fake_lists_nfpkds_table_as_the_real_kernel_does(real_kernel: NftablesKernel) -> None:
    every = tuple(Protocol)
    rules = [
        make_rule("one", PortRange(22, 23), every, Reject.RESET, b"PKD0"),
        make_rule("two", PortRange(80, 80), (Protocol.TCP,), Reject.ICMP, b"PKD1"),
        make_rule("three", PortRange(90, 90), (Protocol.UDP,), Reject.DROP, b"\xff\0\0\0"),
        make_rule("wide", PortRange(91, 91), every, Reject.DROP, b"PKD2", prefixes=Prefixes(24, 64), extend=True),
        make_rule("once", PortRange(92, 92), (Protocol.TCP,), Reject.DROP, b"PKD3", once=True),
        make_rule("on", PortRange(93, 93), every, Reject.RESET, b"PKD4", interfaces=("eth0", "lo")),
        make_rule("at", PortRange(94, 94), every, Reject.DROP, b"PKD5", knock_ports=(PortRange(5, 9), PortRange(1, 1))),
    ]
    options = Options(3, ("lo", "eth1"), 5)
    sources = ("192.0.2.1", "2001:db8::1")
    sessions = [Session(source, 50000, Service(Protocol.TCP, 80)) for source in sources]
    grants = [Grant(source, Service(Protocol.UDP, 90), "three", 60, 60) for source in sources]
    fake = FakeKernel()
    for kernel in (fake, real_kernel):
        kernel.apply(transaction_to(compile_ruleset(rules, options), None, sessions))
        kernel.apply(renew_grants(grants))
    # By kind: nft 1.1 tells of counters before chains, 1.0 behind them.
    fakes, reals = (sorted(normalised(listing(kernel, TABLE)), key=list) for kernel in (fake, real_kernel))
    for one, other in itertools.zip_longest(fakes, reals):
        assert one == other
