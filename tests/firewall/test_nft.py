from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfpkd.firewall import nft
from nfpkd.firewall.nft import Chain, Counter, Json, Rule, Set, Table, Transaction

TABLE = Table("inet", "house")
IN_TABLE = {"family": "inet", "table": "house"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (nft.add_table(TABLE), {"add": {"table": {"family": "inet", "name": "house"}}}),
        (nft.delete_table(TABLE), {"delete": {"table": {"family": "inet", "name": "house"}}}),
        (nft.list_table(TABLE), {"list": {"table": {"family": "inet", "name": "house"}}}),
        (nft.flush_chain(TABLE, "door"), {"flush": {"chain": {**IN_TABLE, "name": "door"}}}),
        (nft.add(Chain(TABLE, "door")), {"add": {"chain": {**IN_TABLE, "name": "door"}}}),
        (nft.delete_set(TABLE, "keys"), {"delete": {"set": {**IN_TABLE, "name": "keys"}}}),
        (
            nft.add_elements(TABLE, "keys", (1, 2)),
            {"add": {"element": {**IN_TABLE, "name": "keys", "elem": [1, 2]}}},
        ),
        (
            nft.delete_elements(TABLE, "keys", (1, 2)),
            {"delete": {"element": {**IN_TABLE, "name": "keys", "elem": [1, 2]}}},
        ),
    ],
)
def test_commands(command: Json, expected: Json) -> None:
    assert command == expected


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        (
            Chain(TABLE, "door", "prerouting", -150),
            {
                "chain": {
                    **IN_TABLE,
                    "name": "door",
                    "type": "filter",
                    "hook": "prerouting",
                    "prio": -150,
                    "policy": "accept",
                }
            },
        ),
        (Set(TABLE, "keys", "ipv4_addr"), {"set": {**IN_TABLE, "name": "keys", "type": "ipv4_addr"}}),
        (
            Set(TABLE, "keys", ("ipv4_addr", "inet_service"), ("timeout",), 9),
            {
                "set": {
                    **IN_TABLE,
                    "name": "keys",
                    "type": ["ipv4_addr", "inet_service"],
                    "flags": ["timeout"],
                    "size": 9,
                }
            },
        ),
        (
            Set(TABLE, "ways", "inet_service", maps_to="verdict"),
            {"map": {**IN_TABLE, "name": "ways", "type": "inet_service", "map": "verdict"}},
        ),
        (Counter(TABLE, "hits"), {"counter": {**IN_TABLE, "name": "hits"}}),
        (Counter(TABLE, "hits", "seen"), {"counter": {**IN_TABLE, "name": "hits", "comment": "seen"}}),
        (Rule(TABLE, "door", (nft.DROP,)), {"rule": {**IN_TABLE, "chain": "door", "expr": [{"drop": None}]}}),
        (
            Rule(TABLE, "door", (nft.DROP,), "shut"),
            {"rule": {**IN_TABLE, "chain": "door", "expr": [{"drop": None}], "comment": "shut"}},
        ),
    ],
)
def test_declarations(declaration: nft.Declaration, expected: Json) -> None:
    assert declaration.to_json() == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (nft.element(22), 22),
        (nft.element(22, comment="ssh"), {"elem": {"val": 22, "comment": "ssh"}}),
        (nft.element(22, timeout=5), {"elem": {"val": 22, "timeout": 5}}),
        (nft.element(22, timeout=5, expires=3), {"elem": {"val": 22, "timeout": 5, "expires": 3}}),
        (nft.concat("192.0.2.1", 6, 22), {"concat": ["192.0.2.1", 6, 22]}),
        (nft.anonymous_set(range(2)), {"set": [0, 1]}),
        (nft.raw_payload("th", 64, 32), {"payload": {"base": "th", "offset": 64, "len": 32}}),
        (nft.match(1, 2), {"match": {"op": "==", "left": 1, "right": 2}}),
        (nft.match(1, 2, "!="), {"match": {"op": "!=", "left": 1, "right": 2}}),
        (nft.vmap(1, "ways"), {"vmap": {"key": 1, "data": "@ways"}}),
        (nft.masked(1, "255.255.255.0"), {"&": [1, "255.255.255.0"]}),
        (nft.port_range(5, 5), 5),
        (nft.port_range(5, 9), {"range": [5, 9]}),
        (nft.over_limit(20, 10), {"limit": {"rate": 20, "burst": 10, "per": "second", "inv": True}}),
        (nft.update("keys", 1), {"set": {"op": "update", "elem": 1, "set": "@keys"}}),
        (
            nft.update("keys", 1, nft.count("hits")),
            {"set": {"op": "update", "elem": 1, "set": "@keys", "stmt": [{"counter": "hits"}]}},
        ),
        (nft.remove("keys", 1), {"set": {"op": "delete", "elem": 1, "set": "@keys"}}),
        (nft.queue_bypass(3), {"queue": {"num": 3, "flags": ["bypass"]}}),
        (nft.reject("tcp reset"), {"reject": {"type": "tcp reset"}}),
        (nft.reject("icmpx", "admin-prohibited"), {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
    ],
)
def test_expressions_and_statements(made: Any, expected: Any) -> None:
    assert made == expected


def test_a_transaction_is_true_if_it_does_anything() -> None:
    assert not Transaction()
    assert Transaction((nft.add_table(TABLE),))


def test_transactions_join_in_order() -> None:
    first, second = nft.add_table(TABLE), nft.delete_table(TABLE)
    assert (Transaction((first,)) + Transaction((second,))).commands == (first, second)


def test_a_transaction_is_written_as_libnftables_takes_it() -> None:
    transaction = Transaction((nft.add_table(TABLE), nft.delete_table(TABLE)))
    assert json.loads(transaction.to_json()) == {"nftables": list(transaction.commands)}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("web: the shop", "web: the shop"),
        ('the "shop"', "the 'shop'"),
        ("two\nlines\tand \x1b[0m", "two lines and  [0m"),
        ("  space around  ", "space around"),
        ("x" * 200, "x" * 127),
        # Cut between characters, not inside one.
        ("ü" * 100, "ü" * 63),
        ("\ud800", ""),
    ],
)
def test_clean_comment(text: str, cleaned: str) -> None:
    assert nft.clean_comment(text) == cleaned


@given(st.text())
@example("x" * 126 + " y")
def test_cleaned_comments_fit_and_stay_as_they_are(text: str) -> None:
    cleaned = nft.clean_comment(text)
    assert len(cleaned.encode()) <= nft.MAX_COMMENT
    assert '"' not in cleaned
    assert not cleaned or cleaned.isprintable()
    assert nft.clean_comment(cleaned) == cleaned
