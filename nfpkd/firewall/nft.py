"""nft's own words, as the JSON that libnftables takes (libnftables-json(5)).

Nothing here knows what nfpkd is for: these functions spell commands,
statements and expressions, and nft's names are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]
Statement = Json
Expression = Any

# Linux: NFTNL_UDATA_COMMENT_MAXLEN, with the closing zero byte.
MAX_COMMENT = 127


class Table(NamedTuple):
    family: str
    name: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """Commands of which the kernel applies all or none, in their order."""

    commands: tuple[Json, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.commands)

    def __add__(self, other: Transaction) -> Transaction:
        return Transaction(self.commands + other.commands)

    def to_json(self) -> str:
        return json.dumps({"nftables": self.commands}, indent=2)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; with a *hook* it is a base chain, called at that point of a packet's way."""

    table: Table
    name: str
    hook: str = ""
    priority: int = 0

    def to_json(self) -> Json:
        described = _in(self.table, name=self.name)
        if self.hook:
            described |= {"type": "filter", "hook": self.hook, "prio": self.priority, "policy": "accept"}
        return {"chain": described}


@dataclass(frozen=True, slots=True)
class Set:
    """A named set, or, with *maps_to*, a map; *type* is one or several data types."""

    table: Table
    name: str
    type: str | tuple[str, ...]
    flags: tuple[str, ...] = ()
    size: int = 0
    maps_to: str = ""

    def to_json(self) -> Json:
        kind = self.type if isinstance(self.type, str) else list(self.type)
        described = _in(self.table, name=self.name, type=kind)
        if self.flags:
            described["flags"] = list(self.flags)
        if self.size:
            described["size"] = self.size
        if self.maps_to:
            return {"map": described | {"map": self.maps_to}}
        return {"set": described}


@dataclass(frozen=True, slots=True)
class Counter:
    table: Table
    name: str
    comment: str = ""

    def to_json(self) -> Json:
        return {"counter": _in(self.table, name=self.name) | _comment(self.comment)}


@dataclass(frozen=True, slots=True)
class Rule:
    table: Table
    chain: str
    statements: tuple[Statement, ...] = field(hash=False)
    comment: str = ""

    def to_json(self) -> Json:
        described = _in(self.table, chain=self.chain, expr=list(self.statements))
        return {"rule": described | _comment(self.comment)}


Declaration = Chain | Set | Counter | Rule


# Commands


def add_table(table: Table) -> Json:
    return {"add": {"table": table._asdict()}}


def delete_table(table: Table) -> Json:
    return {"delete": {"table": table._asdict()}}


def list_table(table: Table) -> Json:
    return {"list": {"table": table._asdict()}}


def list_set(table: Table, kind: str, name: str) -> Json:
    """*kind* is ``set`` or ``map``."""
    return {"list": {kind: _in(table, name=name)}}


def add(declaration: Declaration) -> Json:
    return {"add": declaration.to_json()}


def add_elements(table: Table, set_name: str, elements: Sequence[Expression]) -> Json:
    return {"add": {"element": _in(table, name=set_name, elem=list(elements))}}


def delete_elements(table: Table, set_name: str, elements: Sequence[Expression]) -> Json:
    return {"delete": {"element": _in(table, name=set_name, elem=list(elements))}}


def delete_set(table: Table, name: str) -> Json:
    return {"delete": {"set": _in(table, name=name)}}


def flush_chain(table: Table, chain: str) -> Json:
    return {"flush": {"chain": _in(table, name=chain)}}


# Expressions


def meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def payload(protocol: str, name: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": name}}


def raw_payload(base: str, offset: int, length: int) -> Expression:
    """Return *length* bits, *offset* bits behind the header *base* (``ll``, ``nh`` or ``th``)."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def ct(key: str) -> Expression:
    return {"ct": {"key": key}}


def fib_type_of_destination() -> Expression:
    return {"fib": {"result": "type", "flags": ["daddr"]}}


def concat(*parts: Expression) -> Expression:
    return {"concat": list(parts)}


def masked(value: Expression, mask: str) -> Expression:
    return {"&": [value, mask]}


def anonymous_set(members: Iterable[Expression]) -> Expression:
    return {"set": list(members)}


def element(
    value: Expression, *, timeout: int | None = None, expires: int | None = None, comment: str = ""
) -> Expression:
    """Return a set element; *timeout* and *expires* are seconds."""
    described = {"val": value} | _comment(comment)
    if timeout is not None:
        described["timeout"] = timeout
    if expires is not None:
        described["expires"] = expires
    return {"elem": described} if len(described) > 1 else value


# Statements


def match(left: Expression, right: Expression, op: str = "==") -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def vmap(key: Expression, name: str) -> Statement:
    return {"vmap": {"key": key, "data": f"@{name}"}}


def jump(chain: str) -> Statement:
    return {"jump": {"target": chain}}


def goto(chain: str) -> Statement:
    return {"goto": {"target": chain}}


def count(counter: str) -> Statement:
    return {"counter": counter}


def queue_bypass(number: int) -> Statement:
    return {"queue": {"num": number, "flags": ["bypass"]}}


def reject(kind: str, code: str = "") -> Statement:
    return {"reject": {"type": kind} | ({"expr": code} if code else {})}


def update(set_name: str, value: Expression, *statements: Statement) -> Statement:
    """Add *value* to the set from the packet path, or refresh its timeout; *statements* are kept for each element."""
    described = {"op": "update", "elem": value, "set": f"@{set_name}"}
    return {"set": described | ({"stmt": list(statements)} if statements else {})}


def remove(set_name: str, value: Expression) -> Statement:
    """Delete *value* from the set from the packet path."""
    return {"set": {"op": "delete", "elem": value, "set": f"@{set_name}"}}


def over_limit(packets: int, burst: int) -> Statement:
    """Match what exceeds *packets* a second, after *burst* at once."""
    return {"limit": {"rate": packets, "burst": burst, "per": "second", "inv": True}}


def port_range(first: int, last: int) -> Expression:
    return first if first == last else {"range": [first, last]}


ACCEPT: Statement = {"accept": None}
DROP: Statement = {"drop": None}
RETURN: Statement = {"return": None}


def clean_comment(text: str) -> str:
    """Return *text* as nft can store and list it: printable, without double quotes, at most 127 bytes.

    nft lists a comment between double quotes and knows no escapes, so a quote
    would make the listing unreadable to ``nft -f``.
    """
    shown = "".join(c if c.isprintable() else " " for c in text.replace('"', "'"))
    return shown.encode()[:MAX_COMMENT].decode(errors="ignore").strip()


def _in(table: Table, **fields: Any) -> Json:
    return {"family": table.family, "table": table.name, **fields}


def _comment(text: str) -> Json:
    return {"comment": text} if text else {}
