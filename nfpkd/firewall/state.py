"""What the kernel holds: nfpkd's table as listed, read back into rules' terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from nfpkd.firewall import layout
from nfpkd.firewall.nft import Json, Set
from nfpkd.rules.model import Protocol, Reject, Service


class Grant(NamedTuple):
    """An open door: *source* may reach *service*; *timeout* and *expires* are seconds, *rule* the rule's name."""

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
    return State(
        intact=_is_intact(sets.keys(), rules),
        queue=queue,
        queue_target=target,
        tags=_parse_tags(rules.get(layout.TAGS, [])),
        gated={_service(*value): comment for value, comment, _ in _elements(sets, layout.GATED)},
        rejects=_parse_rejects(sets.get(layout.REJECTS, [])),
        grants=tuple(_parse_grants(sets)),
        sessions=tuple(_parse_sessions(sets)),
        counters=counters,
    )


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


def _parse_tags(rules: list[Json]) -> frozenset[bytes]:
    if not rules:
        return frozenset()
    members = rules[0]["expr"][0]["match"]["right"]
    values = members["set"] if isinstance(members, dict) else [members]
    return frozenset(value.to_bytes(4, "big") for value in values)


def _parse_rejects(elements: list[Any]) -> dict[Service, Reject]:
    by_chain = {chain: way for way, chain in layout.REFUSALS.items()}
    return {_service(*key["concat"]): by_chain[verdict["goto"]["target"]] for key, verdict in elements}


def _parse_grants(sets: dict[str, list[Any]]) -> Iterator[Grant]:
    for name in layout.GRANTS.values():
        for (source, protocol, port), comment, described in _elements(sets, name):
            yield Grant(source, _service(protocol, port), comment, described["timeout"], described.get("expires", 0))


def _parse_sessions(sets: dict[str, list[Any]]) -> Iterator[tuple[Session, int]]:
    for name in layout.SESSIONS.values():
        for (source, source_port, protocol, port), _, described in _elements(sets, name):
            yield Session(source, source_port, _service(protocol, port)), described.get("expires", 0)


def _elements(sets: dict[str, list[Any]], name: str) -> Iterator[tuple[list[Any], str, Json]]:
    """Yield each element's key, its comment, and all that is listed of it."""
    for listed in sets.get(name, []):
        described = listed.get("elem", {"val": listed})
        yield described["val"]["concat"], described.get("comment", ""), described


def _service(protocol: int, port: int) -> Service:
    return Service(Protocol(protocol), port)
