"""What the kernel holds: nfpkd's table as listed, read back into rules' terms."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from nfpkd.firewall import layout
from nfpkd.firewall.doors import Door, parse_door
from nfpkd.firewall.nft import Json, Set
from nfpkd.rules.model import Protocol, Reject, Service

_T = TypeVar("_T")
_MAX_PORT = 65535
# What the kernel counts, in milliseconds, fits into 64 bits.
_MAX_SECONDS = 2**64 // 1000 - 1
_REJECTS = {chain: way for way, chain in layout.REFUSALS.items()}


class Grant(NamedTuple):
    """An open door: *source* may reach *service*; *rule* is the rule's name.

    *timeout* and *expires* are seconds; a *timeout* of 0, which only an admin makes, has no end.
    *door* is the kind of grant, None standing for the usual one; *source* is the first address
    of what a wider door lets in, and *interface* where, if the door is for one.
    """

    source: str
    service: Service
    rule: str
    timeout: int
    expires: int
    door: Door | None = None
    interface: str = ""

    @property
    def set_name(self) -> str:
        return self.door.name if self.door else layout.GRANTS[family_of(self.source)]

    @property
    def place(self) -> tuple[str, str, str, Service]:
        """Which element it is: two grants in one place are one, for the kernel."""
        return self.set_name, self.interface, self.source, self.service

    @property
    def who(self) -> str:
        """Who is let in, as a person would write it: an address, or a network."""
        return f"{self.source}/{self.door.prefix}" if self.door and self.door.is_wide else self.source

    def lets_in(self, address: str) -> bool:
        """Tell whether *address*, numeric, is the one or among those that are let in."""
        # One that was made by hand may have bits behind its prefix.
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.who, strict=False)


class Session(NamedTuple):
    """A connection that was open before its port was guarded, or that a grant for one connection let in."""

    source: str
    source_port: int
    service: Service


class Place(NamedTuple):
    """A service that is guarded on one interface only."""

    interface: str
    service: Service


class Traffic(NamedTuple):
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """nfpkd's table in the kernel.

    *intact* is False if the constant part is not what this version makes for *source_limit*.
    *gated* and *gated_on* map what is guarded to comments; *chains* maps each data chain to its
    rules' comments, and *doors* is the kinds of grants that have sets of their own.  *queue*
    is None while the table hands packets to nobody; *queue_target* is "nft_queue" or "nft_compat".
    """

    intact: bool
    source_limit: int
    queue: int | None
    queue_target: str
    gated: dict[Service, str]
    gated_on: dict[Place, str]
    rejects: dict[Service, Reject]
    doors: frozenset[Door]
    chains: dict[str, tuple[str, ...]]
    grants: tuple[Grant, ...]
    sessions: tuple[tuple[Session, int], ...]
    counters: dict[str, Traffic]


def family_of(address: str) -> int:
    """Return 4 or 6, the version of the IP that *address* belongs to."""
    return 6 if ":" in address else 4


def parse_state(listing: Iterable[Json]) -> State:
    """Return the state that `Kernel.survey`, or `Kernel.list`, shows."""
    foreign: list[Any] = []
    sets, rules, counters = _sort(listing, foreign)
    queue, target = _parse_queue(rules.get(layout.VERIFY, []))
    comments = {chain: tuple(rule.get("comment", "") for rule in found) for chain, found in rules.items()}
    source_limit = layout.parse_source_limit(comments.get("guard", ("",))[-1])
    doors = {name: door for name in sets if (door := parse_door(name))}
    grants = [grant for name, door in doors.items() for grant in _read_ours(_grant_reader(door), sets[name], foreign)]
    sessions = [listed for name in layout.SESSIONS.values() for listed in sets.get(name, [])]
    return State(
        gated=dict(_read_ours(_read_gated, sets.get(layout.GATED, []), foreign)),
        gated_on=dict(_read_ours(_read_gated_on, sets.get(layout.GATED_ON, []), foreign)),
        rejects=dict(_read_ours(_read_reject, sets.get(layout.REJECTS, []), foreign)),
        grants=tuple(grants),
        sessions=tuple(_read_ours(_read_session, sessions, foreign)),
        doors=frozenset(door for door in doors.values() if not door.is_usual),
        chains={chain: comments.get(chain, ()) for chain in layout.DATA_CHAINS},
        queue=queue,
        queue_target=target,
        counters=counters,
        source_limit=source_limit or 0,
        intact=not foreign
        and source_limit is not None
        and _is_intact(sets.keys() - {door.name for door in doors.values()}, comments, source_limit),
    )


def _sort(
    listing: Iterable[Json], foreign: list[Any]
) -> tuple[dict[str, list[Any]], dict[str, list[Json]], dict[str, Traffic]]:
    """Return the elements of each set, the rules of each chain, and the counters; what cannot be read joins *foreign*.

    Our table has no flags: with the flag ``dormant`` it would guard nothing.
    """
    sets: dict[str, list[Any]] = {}
    rules: dict[str, list[Json]] = {}
    counters: dict[str, Traffic] = {}
    for entry in listing:
        for kind, described in entry.items():
            match kind, {"elem": [], "comment": "", **described}:
                case "set" | "map", {"name": str(name), "elem": list(elements)}:
                    sets[name] = elements
                case "rule", {"chain": str(chain), "expr": list(statements), "comment": str()} if all(
                    isinstance(statement, dict) for statement in statements
                ):
                    rules.setdefault(chain, []).append(described)
                case "counter", {"name": str(name), "packets": int(packets), "bytes": int(size)}:
                    counters[name] = Traffic(packets, size)
                case ("set" | "map" | "rule" | "counter", _) | ("table", {"flags": _}):
                    foreign.append(described)
    return sets, rules, counters


def _read_ours(read: Callable[[Any], _T], listed: Iterable[Any], foreign: list[Any]) -> list[_T]:
    """Return what *read* makes of what is *listed*; what it cannot read joins *foreign*.

    An admin or another version of nfpkd put it there.  It must not keep `apply`
    from making the table anew.
    """
    found = []
    for entry in listed:
        try:
            found.append(read(entry))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            foreign.append(entry)
    return found


def _is_intact(set_names: Iterable[str], comments: dict[str, tuple[str, ...]], source_limit: int) -> bool:
    """Tell the constant part by its rules' comments, one of which is a fingerprint of all the rest."""
    expected = layout.rule_comments(source_limit)
    sets = {d.name for d in layout.declarations(source_limit) if isinstance(d, Set)} - set(layout.GRANTS.values())
    return sets == set(set_names) and all(comments.get(chain) == found for chain, found in expected.items())


def _parse_queue(rules: list[Json]) -> tuple[int | None, str]:
    """Read the queue's number from the comment, for an xtables target is listed without its options."""
    for rule in rules:
        found = re.fullmatch(r"queue ([0-9]{1,5})", rule.get("comment", ""))
        if found:
            native = any("queue" in statement for statement in rule["expr"])
            return int(found[1]), "nft_queue" if native else "nft_compat"
    return None, ""


def _read_gated(listed: Any) -> tuple[Service, str]:
    key, described = _read_element(listed)
    return _service(*key), _text(described.get("comment", ""))


def _read_gated_on(listed: Any) -> tuple[Place, str]:
    (interface, *service), described = _read_element(listed)
    return Place(_text(interface), _service(*service)), _text(described.get("comment", ""))


def _read_reject(listed: Any) -> tuple[Service, Reject]:
    key, verdict = listed
    return _service(*key["concat"]), _REJECTS[verdict["goto"]["target"]]


def _grant_reader(door: Door) -> Callable[[Any], Grant]:
    def read(listed: Any) -> Grant:
        key, described = _read_element(listed)
        *interface, source, protocol, port = key
        if len(interface) != door.by_interface or family_of(_address(source)) != door.family:
            raise ValueError("not a grant of this kind")
        return Grant(
            source,
            _service(protocol, port),
            _text(described.get("comment", "")),
            _number(described.get("timeout", 0), _MAX_SECONDS),
            _number(described.get("expires", 0), _MAX_SECONDS),
            None if door.is_usual else door,
            *map(_text, interface),
        )

    return read


def _read_session(listed: Any) -> tuple[Session, int]:
    (source, source_port, protocol, port), described = _read_element(listed)
    left = _number(described.get("expires", 0), _MAX_SECONDS)
    return Session(_address(source), _number(source_port, _MAX_PORT), _service(protocol, port)), left


def _read_element(listed: Any) -> tuple[list[Any], Json]:
    """Return an element's key and all that is listed of it."""
    described = listed.get("elem", {"val": listed})
    return described["val"]["concat"], described


def _service(protocol: Any, port: Any) -> Service:
    return Service(Protocol(protocol), _number(port, _MAX_PORT))


def _address(value: Any) -> str:
    if "%" in _text(value):
        raise ValueError("an address with a scope")
    ipaddress.ip_address(value)
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    # A lone surrogate cannot be sent back.
    value.encode()
    return value


def _number(value: Any, most: int) -> int:
    if not isinstance(value, int):
        raise TypeError("not a number")
    if not 0 <= value <= most:
        raise ValueError("a number that is too large")
    return value
