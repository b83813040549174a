"""What the kernel holds: nfpkd's table as listed, read back into rules' terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from nfpkd.firewall import layout
from nfpkd.firewall.nft import Json, Set
from nfpkd.rules.model import Protocol, Reject, Service

_T = TypeVar("_T")
_REJECTS = {chain: way for way, chain in layout.REFUSALS.items()}


class Grant(NamedTuple):
    """An open door: *source* may reach *service*; *rule* is the rule's name.

    *timeout* and *expires* are seconds; a *timeout* of 0, which only an admin makes, has no end.
    """

    source: str
    service: Service
    rule: str
    timeout: int
    expires: int


class Session(NamedTuple):
    """A connection that was open before its port was guarded."""

    source: str
    source_port: int
    service: Service


class Traffic(NamedTuple):
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """nfpkd's table in the kernel.

    *intact* is False if the constant part is not what this version makes.
    *gated* maps each guarded service to its comment.  *queue* is None while
    the table hands packets to nobody; *queue_target* is "nft_queue" or "nft_compat".
    """

    intact: bool
    queue: int | None
    queue_target: str
    tags: frozenset[bytes]
    gated: dict[Service, str]
    rejects: dict[Service, Reject]
    grants: tuple[Grant, ...]
    sessions: tuple[tuple[Session, int], ...]
    counters: dict[str, Traffic]


def parse_state(listing: Iterable[Json]) -> State:
    """Return the state that ``list table`` shows, *listing* being the objects in its answer."""
    sets: dict[str, list[Any]] = {}
    rules: dict[str, list[Json]] = {}
    counters = {}
    for entry in listing:
        for kind, described in entry.items():
            if kind in ("set", "map"):
                sets[described["name"]] = described.get("elem", [])
            elif kind == "rule":
                rules.setdefault(described["chain"], []).append(described)
            elif kind == "counter":
                counters[described["name"]] = Traffic(described["packets"], described["bytes"])
    queue, target = _parse_queue(rules.get(layout.VERIFY, []))
    foreign: list[Any] = []
    grants = [listed for name in layout.GRANTS.values() for listed in sets.get(name, [])]
    sessions = [listed for name in layout.SESSIONS.values() for listed in sets.get(name, [])]
    tags = _read_ours(_read_tags, rules.get(layout.TAGS, []), foreign)
    return State(
        gated=dict(_read_ours(_read_gated, sets.get(layout.GATED, []), foreign)),
        rejects=dict(_read_ours(_read_reject, sets.get(layout.REJECTS, []), foreign)),
        grants=tuple(_read_ours(_read_grant, grants, foreign)),
        sessions=tuple(_read_ours(_read_session, sessions, foreign)),
        tags=frozenset().union(*tags),
        queue=queue,
        queue_target=target,
        counters=counters,
        intact=not foreign
        and max(len(rules.get(chain, ())) for chain in (layout.TAGS, layout.VERIFY)) <= 1
        and _is_intact(sets.keys(), rules),
    )


def _read_ours(read: Callable[[Any], _T], listed: Iterable[Any], foreign: list[Any]) -> list[_T]:
    """Return what *read* makes of what is *listed*; what it cannot read joins *foreign*.

    An admin or another version of nfpkd put it there.  It must not keep `apply`
    from making the table anew.
    """
    found = []
    for entry in listed:
        try:
            found.append(read(entry))
        except (AttributeError, LookupError, TypeError, ValueError):
            foreign.append(entry)
    return found


def _is_intact(set_names: Iterable[str], rules: dict[str, list[Json]]) -> bool:
    """Tell the constant part by its rules' comments, one of which is a fingerprint of all the rest."""
    comments = {
        chain: tuple(rule.get("comment", "") for rule in rules.get(chain, ())) for chain in layout.rule_comments()
    }
    expected = {d.name for d in layout.declarations() if isinstance(d, Set)}
    return comments == layout.rule_comments() and expected == set(set_names)


def _parse_queue(rules: list[Json]) -> tuple[int | None, str]:
    """Read the queue's number from the comment, for an xtables target is listed without its options."""
    for rule in rules:
        found = re.fullmatch(r"queue (\d+)", rule.get("comment", ""))
        if found:
            native = any("queue" in statement for statement in rule["expr"])
            return int(found[1]), "nft_queue" if native else "nft_compat"
    return None, ""


def _read_tags(rule: Json) -> frozenset[bytes]:
    members = rule["expr"][0]["match"]["right"]
    values = members["set"] if isinstance(members, dict) else [members]
    return frozenset(value.to_bytes(4, "big") for value in values)


def _read_gated(listed: Any) -> tuple[Service, str]:
    key, described = _read_element(listed)
    return _service(*key), described.get("comment", "")


def _read_reject(listed: Any) -> tuple[Service, Reject]:
    key, verdict = listed
    return _service(*key["concat"]), _REJECTS[verdict["goto"]["target"]]


def _read_grant(listed: Any) -> Grant:
    (source, protocol, port), described = _read_element(listed)
    timeout, expires = described.get("timeout", 0), described.get("expires", 0)
    return Grant(source, _service(protocol, port), described.get("comment", ""), timeout, expires)


def _read_session(listed: Any) -> tuple[Session, int]:
    (source, source_port, protocol, port), described = _read_element(listed)
    return Session(source, source_port, _service(protocol, port)), described.get("expires", 0)


def _read_element(listed: Any) -> tuple[list[Any], Json]:
    """Return an element's key and all that is listed of it."""
    described = listed.get("elem", {"val": listed})
    return described["val"]["concat"], described


def _service(protocol: int, port: int) -> Service:
    return Service(Protocol(protocol), port)
