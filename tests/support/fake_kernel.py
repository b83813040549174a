"""A kernel in memory: it interprets nft's transactions and refuses what nf_tables refuses."""

from __future__ import annotations

import ipaddress
import json
import math
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from nfpkd.errors import KernelError
from nfpkd.firewall.kernel import Listing
from nfpkd.firewall.nft import Expression, Json, Table, Transaction

_T = TypeVar("_T")

# nft 1.0.6 takes longer comments and double quotes as JSON, but cannot read back
# what it then lists; at 254 bytes libnftables ends the process.
_MAX_COMMENT = 128
_MAX_TIMEOUT = 2**63 // 10**6
_PLAIN_VERDICTS = {"accept", "drop", "return", "continue"}


class FakeKernel:
    """Implements `nfpkd.firewall.kernel.Kernel`.

    *now* is the clock, in seconds, by which timeouts run out; the test sets it.
    *applied* holds every transaction that was done.  Without
    *has_queue_statement* queue rules are listed the way nft_compat's are.

    An element added once more keeps its timeout, as in older kernels.  Linux 6.18
    takes the new one, and none for a bare key.  nfpkd must rely on neither.
    """

    def __init__(self, *, has_queue_statement: bool = True) -> None:
        self.now = 0.0
        self.applied: list[Transaction] = []
        self.before_apply: Callable[[], None] | None = None
        self._has_queue_statement = has_queue_statement
        self._failures: list[Callable[[Json], bool]] = []
        self._tables: dict[Table, _Table] = {}

    def fail_next(self, times: int = 1, *, torn: Callable[[Json], bool] = lambda _: False) -> None:
        """Refuse the next *times* transactions to be applied, but do those of their commands that *torn* picks."""
        self._failures += [torn] * times

    def check(self, transaction: Transaction) -> None:
        self._perform(transaction)

    def apply(self, transaction: Transaction) -> None:
        if self.before_apply is not None:
            # Once only, so that it can itself apply something: what another tool does in between.
            interfere, self.before_apply = self.before_apply, None
            interfere()
        if self._failures:
            torn = self._failures.pop(0)
            self._tables = self._perform(Transaction(tuple(c for c in transaction.commands if torn(c))))
            raise KernelError("the fake was told to fail")
        self._tables = self._perform(transaction)
        self.applied.append(transaction)

    def list(self, table: Table) -> Listing | None:
        found = self._alive().get(table)
        return None if found is None else list(_list_table(table, found, self.now, self._has_queue_statement))

    def survey(self, table: Table, passed_over: Collection[str]) -> Listing | None:
        listing = self.list(table)
        return None if listing is None else [found for entry in listing if (found := _outline(entry, passed_over))]

    def _alive(self) -> dict[Table, _Table]:
        return {name: table.copy_alive(self.now) for name, table in self._tables.items()}

    def _perform(self, transaction: Transaction) -> dict[Table, _Table]:
        """Return the tables as *transaction* leaves them; those held are not touched."""
        tables = self._alive()
        # What arrives is JSON: the enumerations of Python do not.
        for command in json.loads(transaction.to_json())["nftables"]:
            _perform_command(tables, command, self.now)
        return tables


@dataclass(frozen=True)
class _Element:
    value: Expression
    data: Json | None
    comment: str | None
    timeout: int
    ends: float


@dataclass
class _Set:
    """A set, or a map if its declaration says what it maps to; *is_new* while the transaction that made it runs."""

    declared: Json
    elements: dict[tuple[object, ...], _Element] = field(default_factory=dict)
    is_new: bool = True

    @property
    def is_map(self) -> bool:
        return "map" in self.declared

    @property
    def types(self) -> tuple[str, ...]:
        kind = self.declared["type"]
        return (kind,) if isinstance(kind, str) else tuple(kind)

    @property
    def has_timeouts(self) -> bool:
        return "timeout" in self.declared.get("flags", ())

    def copy_alive(self, now: float) -> _Set:
        return replace(self, elements={key: e for key, e in self.elements.items() if e.ends > now}, is_new=False)


@dataclass
class _Chain:
    declared: Json
    rules: list[Json] = field(default_factory=list)


@dataclass
class _Table:
    sets: dict[str, _Set] = field(default_factory=dict)
    counters: dict[str, Json] = field(default_factory=dict)
    chains: dict[str, _Chain] = field(default_factory=dict)

    def copy_alive(self, now: float) -> _Table:
        return _Table(
            {name: found.copy_alive(now) for name, found in self.sets.items()},
            dict(self.counters),
            {name: replace(chain, rules=list(chain.rules)) for name, chain in self.chains.items()},
        )

    def references(self) -> Iterator[tuple[str, str]]:
        for chain in self.chains.values():
            yield from _references(chain.rules)
        for found in self.sets.values():
            yield from _references([element.data for element in found.elements.values()])


def _perform_command(tables: dict[Table, _Table], command: Json, now: float) -> None:
    [(verb, what)] = command.items()
    if verb not in ("add", "delete", "flush"):
        raise KernelError(f"nft 1.0.6 does not know {verb}")
    [(kind, described)] = what.items()
    if kind == "table":
        _perform_on_table(tables, verb, Table(described["family"], described["name"]))
        return
    table = _find(tables, Table(described["family"], described["table"]), "table")
    match verb, kind:
        case "add", "set" | "map":
            _declare(table.sets, described, _Set(described))
            for name in table.sets[described["name"]].types:
                _find(_PARTS, name, "data type")
        case "add", "counter":
            _check_comment(described)
            table.counters.setdefault(described["name"], described)
        case "add", "chain":
            _declare(table.chains, described, _Chain(described))
        case "add", "rule":
            chain = _find(table.chains, described["chain"], "chain")
            _check_comment(described)
            _check_rule(table, described["expr"])
            chain.rules.append(described)
        case "add" | "delete", "element":
            found = _find(table.sets, described["name"], "set")
            if not described["elem"]:
                raise KernelError("no elements given")
            for entry in described["elem"]:
                if verb == "add":
                    _add_element(table, found, entry, now)
                else:
                    _delete_element(found, entry)
        case "delete", "chain":
            _delete_unused(table, "chain", table.chains, described["name"])
        case "delete", "set" | "map":
            _delete_unused(table, "set", table.sets, described["name"])
        case "flush", "chain":
            _find(table.chains, described["name"], "chain").rules.clear()
        case "flush", "set" | "map":
            _find(table.sets, described["name"], "set").elements.clear()
        case _:
            raise NotImplementedError(f"the fake does not know how to {verb} a {kind}")


def _perform_on_table(tables: dict[Table, _Table], verb: str, name: Table) -> None:
    if verb == "add":
        tables.setdefault(name, _Table())
    elif verb == "delete":
        _find(tables, name, "table")
        del tables[name]
    else:
        raise NotImplementedError(f"the fake does not know how to {verb} a table")


def _find(held: dict[Any, _T], name: object, kind: str) -> _T:
    if name not in held:
        raise KernelError(f"no such {kind}: {name}")
    return held[name]


def _declare(held: dict[str, Any], described: Json, made: _Set | _Chain) -> None:
    """Add what is new; the same declaration once more changes nothing, another one of that name is refused."""
    if held.setdefault(described["name"], made).declared != described:
        raise KernelError(f"{described['name']} is there already, and is something else")


def _delete_unused(table: _Table, kind: str, held: dict[str, Any], name: str) -> None:
    _find(held, name, kind)
    if kind == "chain":
        # Its own rules go with it.
        table.chains[name].rules.clear()
    if (kind, name) in table.references():
        raise KernelError(f"{kind} {name} is in use")
    del held[name]


def _check_comment(described: Json) -> None:
    comment = described.get("comment", "")
    if len(comment.encode()) > _MAX_COMMENT or '"' in comment:
        raise KernelError(f"nft could not read this comment back: {comment}")


# Elements


def _split_entry(found: _Set, entry: Expression) -> tuple[Json, Json | None]:
    """Return what an entry says of the element, and its data; in a map both stand in a list."""
    key, data = entry if isinstance(entry, list) else (entry, None)
    if data is not None and not found.is_map:
        raise KernelError(f"set {found.declared['name']} is not a map")
    described: Json = key["elem"] if isinstance(key, dict) and "elem" in key else {"val": key}
    return described, data


def _add_element(table: _Table, found: _Set, entry: Expression, now: float) -> None:
    described, data = _split_entry(found, entry)
    key = _parse_key(found, described["val"])
    timeout, expires = described.get("timeout", 0), described.get("expires", 0)
    _check_comment(described)
    if (timeout or expires) and not found.has_timeouts:
        raise KernelError("this set knows no timeouts")
    if not 0 <= timeout < _MAX_TIMEOUT or not 0 <= expires <= timeout:
        raise KernelError(f"timeout {timeout} and expires {expires} do not go together")
    if found.is_map:
        if data is None:
            raise KernelError("an element of a map needs a verdict")
        _check_verdict(table, data)
    if key in found.elements:
        if found.elements[key].data != data:
            raise KernelError(f"{key} is there already, with another verdict")
        return
    size = found.declared.get("size", 0)
    if size and len(found.elements) >= size:
        raise KernelError(f"set {found.declared['name']} is full")
    ends = now + (expires or timeout) if timeout else math.inf
    value = key[0] if len(key) == 1 else {"concat": list(key)}
    found.elements[key] = _Element(value, data, described.get("comment"), timeout, ends)


def _delete_element(found: _Set, entry: Expression) -> None:
    described, _ = _split_entry(found, entry)
    key = _parse_key(found, described["val"])
    _find(found.elements, key, "element")
    del found.elements[key]


def _parse_key(found: _Set, value: Expression) -> tuple[object, ...]:
    """Return the parts of a key as nft lists them."""
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    if len(parts) != len(found.types):
        raise KernelError(f"a key of {found.declared['name']} has {len(found.types)} parts, not {len(parts)}")
    try:
        return tuple(_PARTS[kind](part) for kind, part in zip(found.types, parts, strict=True))
    except ValueError as error:
        raise KernelError(f"bad key for {found.declared['name']}: {error}") from None


def _integer(limit: int) -> Callable[[Any], object]:
    def parse(part: Any) -> object:
        # nft also takes names, out of files that a small host need not have.
        if type(part) is not int or not 0 <= part < limit:
            raise ValueError(f"{part!r} is not a number below {limit}")
        return part

    return parse


def _interface(part: Any) -> object:
    if not isinstance(part, str) or not 0 < len(part.encode()) < 16 or part.endswith("*"):
        raise ValueError(f"{part!r} is not the name of an interface")
    return part


# Each data type's reader, which returns the part as nft lists it or raises ValueError.
_PARTS: dict[str, Callable[[Any], object]] = {
    "ipv4_addr": lambda part: str(ipaddress.IPv4Address(part)),
    "ipv6_addr": lambda part: socket.inet_ntop(socket.AF_INET6, ipaddress.IPv6Address(part).packed),
    "inet_proto": _integer(2**8),
    "inet_service": _integer(2**16),
    "mark": _integer(2**32),
    "ifname": _interface,
}


# Rules


def _check_verdict(table: _Table, verdict: Json) -> None:
    if not verdict.keys() <= _PLAIN_VERDICTS:
        _check_rule(table, [verdict])


def _check_rule(table: _Table, expr: list[Json]) -> None:
    for kind, name in _references(expr):
        if kind == "chain":
            if "hook" in _find(table.chains, name, kind).declared:
                raise KernelError(f"{name} is a base chain: nothing can jump there")
        elif kind == "counter":
            _find(table.counters, name, kind)
        else:
            _find(table.sets, name, kind)
    for statement in expr:
        match statement:
            case {"match": {"left": left, "right": {"set": members}}}:
                _check_members(left, members)
            case {"match": {"left": key, "right": str(name)}} if name.startswith("@"):
                _check_width(table, key, name)
            case {"vmap": {"key": key, "data": str(name)}}:
                _check_width(table, key, name)
                if not table.sets[name[1:]].is_map:
                    raise KernelError(f"{name} is not a map")
            case {"set": update}:
                _check_update(table, update)
            case {"queue": {"num": int(number)}} if not 0 <= number < 2**16:
                raise KernelError(f"{number} is not the number of a queue")


def _check_members(left: Expression, members: list[Expression]) -> None:
    if not members:
        raise KernelError("an anonymous set needs members")
    match left:
        case {"meta": {"key": "iifname"}}:
            read = _PARTS["ifname"]
        case {"payload": {"field": "dport"}}:
            read = _PARTS["inet_service"]
        case _:
            return
    try:
        for member in members:
            first, last = member["range"] if isinstance(member, dict) else (member, member)
            read(first)
            read(last)
            if first > last:
                raise ValueError(f"{first} to {last} is no range")
    except ValueError as error:
        raise KernelError(f"bad member of an anonymous set: {error}") from None


def _check_update(table: _Table, update: Json) -> None:
    """Check what a rule does to a set from the packet path."""
    found = table.sets[update["set"][1:]]
    element = update["elem"].get("elem", {"val": update["elem"]})
    _check_width(table, element["val"], update["set"])
    if found.is_map:
        raise KernelError(f"{update['set']} is a map")
    if "timeout" in element and not found.has_timeouts:
        raise KernelError("this set knows no timeouts")
    for statement in update.get("stmt", ()):
        # The kernel gives a set its statements from the first rule that uses it, and only while it is made.
        if not found.is_new:
            raise KernelError(f"{update['set']} was made without this statement")
        if statement["limit"]["rate"] < 1:
            raise KernelError("a limit of nothing")


def _check_width(table: _Table, key: Expression, name: str) -> None:
    width = len(key["concat"]) if "concat" in key else 1
    if width != len(table.sets[name[1:]].types):
        raise KernelError(f"{name} has keys of another type")


def _references(node: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of everything in the table that *node* needs."""
    match node:
        case {"goto": {"target": chain}} | {"jump": {"target": chain}}:
            yield "chain", chain
        case {"counter": str(name)}:
            yield "counter", name
        case str() if node.startswith("@"):
            yield "set", node[1:]
        case dict():
            yield from _references(list(node.values()))
        case list():
            for child in node:
                yield from _references(child)


# Listing, in the order and shape of nft 1.0.6


def _list_table(name: Table, table: _Table, now: float, has_queue_statement: bool) -> Iterator[Json]:
    yield {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}}
    yield {"table": {**name._asdict(), "handle": 1}}
    for counter in table.counters.values():
        yield {"counter": {**counter, "handle": 1, "packets": 0, "bytes": 0}}
    for found in table.sets.values():
        listed = {**found.declared, "handle": 1}
        if found.elements:
            listed["elem"] = [_list_element(element, now) for element in found.elements.values()]
        yield {"map" if found.is_map else "set": listed}
    for chain in table.chains.values():
        yield {"chain": {**chain.declared, "handle": 1}}
    for chain in table.chains.values():
        for rule in chain.rules:
            yield {
                "rule": {**rule, "handle": 1, "expr": [_list_statement(s, has_queue_statement) for s in rule["expr"]]}
            }


def _outline(entry: Json, passed_over: Collection[str]) -> Json:
    """Return what a survey says of one entry of a listing; nothing if nothing."""
    match entry:
        case {"counter": _}:
            return entry
        case {"set": found} | {"map": found}:
            return {kind: {"name": found["name"]} for kind in entry} if found["name"] in passed_over else entry
        case {"rule": {"chain": chain, "expr": expr, **more}}:
            comment = {"comment": more["comment"]} if "comment" in more else {}
            return {"rule": {"chain": chain, **comment, "expr": [dict.fromkeys(s) for s in expr]}}
    return {}


def _list_element(element: _Element, now: float) -> Expression:
    described: Json = {"val": element.value}
    if element.timeout:
        described |= {"timeout": element.timeout, "expires": math.floor(element.ends - now)}
    if element.comment is not None:
        described["comment"] = element.comment
    shown = {"elem": described} if len(described) > 1 else element.value
    return shown if element.data is None else [shown, element.data]


def _list_statement(statement: Json, has_queue_statement: bool) -> Json:
    match statement:
        case {"match": {"right": {"set": [member]}} as found}:
            return {"match": {**found, "right": member}}
        case {"match": {"left": {"meta": {"key": "iifname"}}, "right": {"set": members}} as found}:
            # As numbers, in the byte order of the machine.
            return {"match": {**found, "right": {"set": sorted(members, key=_little_endian)}}}
        case {"match": {"right": {"set": members}} as found} if any(
            "range" in m for m in members if isinstance(m, dict)
        ):
            return {"match": {**found, "right": {"set": _join_ranges(members)}}}
        case {"match": {"right": {"set": [int(), *_] as members}} as found}:
            return {"match": {**found, "right": {"set": sorted(set(members))}}}
        case {"queue": _} if not has_queue_statement:
            return {"xt": {"type": "target", "name": "NFQUEUE"}}
    return statement


def _little_endian(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


def _join_ranges(members: list[Expression]) -> list[Expression]:
    """Return ranges and numbers in order; those that touch are one."""
    joined: list[list[int]] = []
    for first, last in sorted(m["range"] if isinstance(m, dict) else [m, m] for m in members):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    return [first if first == last else {"range": [first, last]} for first, last in joined]
