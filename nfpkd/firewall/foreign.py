"""Other tables' chains: what they do to a new connection to a guarded port.

A packet that a grant lets through still has to pass every other base chain.
Their rules are read as far as nfpkd understands them, and three answers are told apart:
a rule matches every new connection to the port, some, or none.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nfpkd.firewall.nft import Expression, Json, Statement, Table
from nfpkd.rules.model import Protocol, Service

HOOKS = ("prerouting", "input")

# Kernel: NFT_JUMP_STACK_SIZE.  The other bound is ours: rules may be shared by many ways through a ruleset.
_MAX_DEPTH = 16
_MAX_VISITS = 20_000

_PROTOCOLS = {protocol.label: protocol for protocol in Protocol}
# Transport headers of which a packet has one: a match on another's never holds.
_TRANSPORTS = {*_PROTOCOLS, "icmp", "icmpv6", "igmp", "esp", "ah", "comp"}
_NEUTRAL = {"counter", "log", "mangle", "notrack"}
_COMPARE = {
    "<": int.__lt__,
    ">": int.__gt__,
    "<=": int.__le__,
    ">=": int.__ge__,
}


class BaseChain(NamedTuple):
    """A chain of another table that the kernel calls at *hook*."""

    table: Table
    name: str
    hook: str
    priority: int
    policy: str


class ChainId(NamedTuple):
    """The name of a chain, or of a set, in its table."""

    table: Table
    name: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is listed of other tables; *sets* maps sets and maps to their elements."""

    bases: tuple[BaseChain, ...] = ()
    rules: Mapping[ChainId, list[Json]] = field(default_factory=dict)
    sets: Mapping[ChainId, list[Any]] = field(default_factory=dict)


class Obstacle(NamedTuple):
    """What *base* does to new connections to *services*.

    *kind* is ``drop`` for all of them, ``rest`` for all but some that rules accept, ``unsure``
    if there are rules that cannot be read, ``some`` for some of them, and
    ``notrack`` if they are hidden from conntrack.  *rule* is the rule that does it, None for the policy.
    """

    base: BaseChain
    kind: str
    rule: Json | None
    services: tuple[Service, ...]


class References(NamedTuple):
    """The chains and sets that a rule leads to, by name."""

    chains: frozenset[str]
    sets: frozenset[str]


def find_references(listed: object) -> References:
    """Return what *listed*, a rule or the elements of a map, refers to; of sets, those of ports and verdicts only."""
    chains: set[str] = set()
    sets: set[str] = set()

    def visit(part: object) -> None:
        if isinstance(part, list):
            for inner in part:
                visit(inner)
        if not isinstance(part, dict):
            return
        for kind, body in part.items():
            match kind, body:
                case "jump" | "goto", {"target": str(chain)}:
                    chains.add(chain)
                case "match", {"left": left, "right": str(right)} if "dport" in str(left):
                    sets.add(right)
                case "vmap", {"data": str(data)}:
                    sets.add(data)
            visit(body)

    visit(listed)
    return References(frozenset(chains), frozenset(name[1:] for name in sets if name.startswith("@")))


def find_obstacles(ruleset: Ruleset, services: Iterable[Service]) -> Iterator[Obstacle]:
    """Yield what in *ruleset* stands in the way of *services*, services with the same fate together."""
    classes = _group_services(ruleset, services)
    for base in ruleset.bases:
        found: dict[tuple[str, object], tuple[Json | None, list[Service]]] = {}
        for alike in classes:
            for kind, rule in _try_to_judge(ruleset, base, alike[0]):
                key = kind, None if rule is None else rule.get("handle")
                found.setdefault(key, (rule, []))[1].extend(alike)
        for (kind, _), (rule, met) in found.items():
            yield Obstacle(base, kind, rule, tuple(sorted(met)))


def _group_services(ruleset: Ruleset, services: Iterable[Service]) -> list[list[Service]]:
    """Put together what no rule tells apart, so that a rule for 4096 ports costs no more than one for a few."""
    edges: set[int] = set()

    def visit(part: object) -> None:
        if isinstance(part, bool):
            return
        if isinstance(part, int):
            edges.update((part, part + 1))
        elif isinstance(part, dict):
            for inner in part.values():
                visit(inner)
        elif isinstance(part, list):
            for inner in part:
                visit(inner)

    for rules in ruleset.rules.values():
        for rule in rules:
            visit(rule["expr"])
    for elements in ruleset.sets.values():
        visit(elements)
    steps = sorted(edges)
    alike: dict[tuple[Protocol, int], list[Service]] = {}
    for service in sorted(set(services)):
        alike.setdefault((service.protocol, bisect.bisect_right(steps, service.port)), []).append(service)
    return list(alike.values())


class _Match(NamedTuple):
    """A match that holds: *sure* for all packets, *names* if by naming the port, *readable* if understood."""

    sure: bool = True
    names: bool = False
    readable: bool = True

    def __and__(self, other: _Match) -> _Match:
        return _Match(self.sure and other.sure, self.names or other.names, self.readable and other.readable)


_ALWAYS = _Match()
_SOMETIMES = _Match(sure=False)
_UNREADABLE = _Match(sure=False, readable=False)


class _Event(NamedTuple):
    kind: str
    match: _Match
    rule: Json


def _try_to_judge(ruleset: Ruleset, base: BaseChain, service: Service) -> list[tuple[str, Json | None]]:
    """Judge, unless nft lists something in a way that is not known: newer versions may."""
    try:
        return list(_judge(ruleset, base, service))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return [("unsure", None)] if base.policy == "drop" else []


def _judge(ruleset: Ruleset, base: BaseChain, service: Service) -> Iterator[tuple[str, Json | None]]:
    walk = _Walk(ruleset, base.table, service)
    walk.follow(base.name, _ALWAYS)
    named = unreadable = False
    for kind, match, rule in walk.events:
        if kind == "notrack":
            if base.hook == "prerouting" and (match.names or match.sure):
                yield "notrack", rule
        elif kind == "accept":
            if match.sure:
                return
            named = named or match.names
            unreadable = unreadable or not match.readable
        elif kind == "drop" and match.sure:
            yield _kind(named=named, unreadable=unreadable), rule
            return
        elif kind == "drop" and match.names:
            yield "some", rule
    if base.policy == "drop":
        yield _kind(named=named, unreadable=unreadable or walk.is_exhausted), None


def _kind(*, named: bool, unreadable: bool) -> str:
    return "rest" if named else "unsure" if unreadable else "drop"


class _Walk:
    """One packet's ways through a base chain and all that it jumps to; *events* are what may meet it, in order."""

    def __init__(self, ruleset: Ruleset, table: Table, service: Service) -> None:
        self._ruleset = ruleset
        self._table = table
        self._service = service
        self._visits = 0
        self.events: list[_Event] = []

    @property
    def is_exhausted(self) -> bool:
        return self._visits >= _MAX_VISITS

    def follow(self, chain: str, entry: _Match, depth: int = 0) -> bool:
        """Walk *chain*, entered on the terms of *entry*; tell whether no packet that enters comes out again."""
        if depth > _MAX_DEPTH:
            return False
        for rule in self._ruleset.rules.get(ChainId(self._table, chain), ()):
            self._visits += 1
            if self.is_exhausted:
                return False
            match = _ALWAYS
            for statement in rule["expr"]:
                for verdict, terms in self._verdicts(statement, match):
                    ended, left = self._meet(verdict, terms, entry, rule, depth)
                    if ended or (left and terms.sure):
                        return ended
                    if left:
                        # What follows is met by those that did not leave here.
                        entry = entry & _SOMETIMES
                holds = self._hold(statement)
                if holds is None:
                    break
                match = match & holds
                if "notrack" in statement:
                    self.events.append(_Event("notrack", entry & match, rule))
        return False

    def _verdicts(self, statement: Statement, match: _Match) -> Iterator[tuple[Statement, _Match]]:
        """Yield each verdict that *statement* may give, and on what terms."""
        vmap = statement.get("vmap")
        if vmap is None:
            yield statement, match
            return
        data = vmap["data"]
        pairs = self._elements(data) if isinstance(data, str) else data.get("set", [])
        for key, verdict in pairs or ():
            holds = self._compare("==", vmap["key"], key)
            if holds is not None and isinstance(verdict, dict):
                yield verdict, match & holds

    def _meet(self, verdict: Statement, terms: _Match, entry: _Match, rule: Json, depth: int) -> tuple[bool, bool]:
        """Return whether all packets end here, and whether those that match leave the chain."""
        kind = next(iter(verdict), "")
        if kind == "xt" and isinstance(verdict[kind], dict) and verdict[kind].get("name") == "REJECT":
            kind = "reject"
        if kind in ("accept", "drop", "reject"):
            self.events.append(_Event("accept" if kind == "accept" else "drop", entry & terms, rule))
            return terms.sure, False
        if kind == "queue":
            # Who knows what the other program says.
            self.events.append(_Event("accept", entry & terms & _UNREADABLE, rule))
            return False, False
        if kind in ("jump", "goto"):
            ended = self.follow(verdict[kind]["target"], entry & terms, depth + 1)
            return ended and terms.sure, kind == "goto"
        return False, kind == "return"

    def _hold(self, statement: Statement) -> _Match | None:
        """Return on what terms a statement that is no verdict lets a rule go on, or None if it never does."""
        kind = next(iter(statement), "")
        if kind == "match":
            body = statement["match"]
            return self._compare(body["op"], body["left"], body["right"])
        if kind == "xt":
            return _UNREADABLE
        return _ALWAYS if kind in _NEUTRAL else _SOMETIMES

    def _compare(self, op: str, left: Expression, right: Expression) -> _Match | None:
        if isinstance(right, str) and right.startswith("@"):
            members = self._elements(right)
        elif isinstance(right, dict) and "set" in right:
            members = right["set"]
        else:
            members = [right]
        if not isinstance(left, dict):
            return _SOMETIMES
        if "concat" in left:
            return _SOMETIMES if op == "!=" else self._compare_concat(left["concat"], members)
        if not self._may_have(left.get("payload", {})):
            # Neither equal nor unequal: there is nothing to compare.
            return None
        if op in _COMPARE:
            return self._compare_order(op, left, right)
        answer = self._contains(left, members)
        return _negate(answer) if op == "!=" else answer

    def _compare_concat(self, parts: list[Expression], members: list[Any] | None) -> _Match | None:
        if members is None:
            return _SOMETIMES
        best: _Match | None = None
        for member in members:
            values = _bare(member)
            values = values.get("concat", []) if isinstance(values, dict) else []
            found: _Match | None = _ALWAYS
            for part, value in zip(parts, values, strict=False):
                holds = self._compare("==", part, value)
                found = None if holds is None or found is None else found & holds
            if found is not None and (best is None or found.sure):
                best = found
        return best

    def _compare_order(self, op: str, left: Json, right: Expression) -> _Match | None:
        payload = left.get("payload", {})
        if payload.get("field") != "dport" or not isinstance(right, int):
            return _SOMETIMES
        return _ALWAYS if _COMPARE[op](self._service.port, right) else None

    def _may_have(self, payload: Json) -> bool:
        protocol = payload.get("protocol")
        return protocol == self._service.protocol.label or protocol not in _TRANSPORTS

    def _contains(self, left: Json, members: list[Any] | None) -> _Match | None:
        """Return whether what *left* reads is among *members*, None standing for members that are not known."""
        payload, meta, ct = left.get("payload", {}), left.get("meta", {}).get("key"), left.get("ct", {}).get("key")
        if payload.get("field") == "dport":
            if members is None:
                return _UNREADABLE
            return _Match(names=True) if any(_has_port(m, self._service.port) for m in members) else None
        if meta == "l4proto" or (payload.get("protocol"), payload.get("field")) in (
            ("ip", "protocol"),
            ("ip6", "nexthdr"),
        ):
            if members is None:
                return _SOMETIMES
            if not any(_bare(m) in (self._service.protocol, self._service.protocol.label) for m in members):
                return None
            whole = meta == "l4proto" or payload["protocol"] == self._table.family
            return _ALWAYS if whole else _SOMETIMES
        if ct == "state" and members is not None:
            return _ALWAYS if "new" in _words(members) else None
        if meta in ("iif", "iifname") and members == ["lo"]:
            # The connections that matter come from elsewhere.
            return None
        if "fib" in left and left["fib"].get("result") == "type" and members is not None:
            return _ALWAYS if "local" in _words(members) else None
        return _SOMETIMES

    def _elements(self, reference: str) -> list[Any] | None:
        return self._ruleset.sets.get(ChainId(self._table, reference.removeprefix("@")))


def _negate(answer: _Match | None) -> _Match | None:
    if answer is None:
        return _ALWAYS
    return None if answer.sure else answer


def _bare(member: Expression) -> Expression:
    """Return a set element without what else may be listed of it."""
    return member["elem"]["val"] if isinstance(member, dict) and "elem" in member else member


def _has_port(member: Expression, port: int) -> bool:
    bare = _bare(member)
    if isinstance(bare, dict) and "range" in bare:
        first, last = bare["range"]
        return isinstance(first, int) and isinstance(last, int) and first <= port <= last
    if isinstance(bare, dict) and "set" in bare:
        return any(_has_port(inner, port) for inner in bare["set"])
    return bool(bare == port)


def _words(part: object) -> set[str]:
    if isinstance(part, str):
        return {part}
    if isinstance(part, dict):
        part = list(part.values())
    return set().union(*map(_words, part)) if isinstance(part, list) else set()
