"""What `nfpkd status` says of the kernel's state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from nfpkd.firewall.state import State
from nfpkd.rules.model import Service, format_tag
from nfpkd.verifier.listeners import Listener

_COUNTERS = {
    "knocks": "packets looked like a knock and were judged",
    "held": "first packets waited behind a knock",
    "admitted": "packets were let in by a grant",
    "refused": "packets were refused at a gate",
}


def render_text(state: State | None, listeners: Mapping[int, Listener]) -> str:
    """Return *state* for people; *listeners* are the packet queues in use."""
    if state is None:
        return "nfpkd guards nothing here: there is no table inet nfpkd"
    return "\n".join(_lines(state, listeners))


def _lines(state: State, listeners: Mapping[int, Listener]) -> Iterator[str]:
    yield _describe_verifier(state, listeners)
    if not state.intact:
        yield "the table is not as this version of nfpkd makes it; `nfpkd apply` will make it anew"
    yield ""
    yield f"guarded ({len(state.gated)} services)"
    yield from _align(_guarded_rows(state))
    yield ""
    yield f"let in ({len(state.grants)} grants)"
    grants = sorted(state.grants, key=lambda grant: (grant.rule, grant.source, grant.service))
    yield from _align([(g.source, str(g.service), g.rule, f"{g.expires} s left of {g.timeout}") for g in grants])
    if state.sessions:
        yield ""
        yield f"open since before the guard ({len(state.sessions)} connections)"
        yield from _align([(s.source, f"from port {s.source_port}", str(s.service)) for s, _ in state.sessions])
    yield ""
    yield "counters"
    rows = [(str(state.counters[name].packets), text) for name, text in _COUNTERS.items() if name in state.counters]
    yield from _align(rows)


def _describe_verifier(state: State, listeners: Mapping[int, Listener]) -> str:
    if state.queue is None:
        return "verifier: none; knocks are not looked at"
    way = f"queue {state.queue}, by {state.queue_target}"
    listener = listeners.get(state.queue)
    if listener is None:
        return f"verifier: not running ({way}): nobody can open anything; start `nfpkd run`"
    lost = listener.queue_full + listener.socket_full
    return f"verifier: process {listener.port_id} ({way}); {listener.waiting} packets waiting, {lost} lost"


def _guarded_rows(state: State) -> list[tuple[str, str, str]]:
    """Return a row for each run of neighbouring ports that are guarded the same way by the same rules."""

    def key(item: tuple[int, Service]) -> tuple[object, ...]:
        index, service = item
        reject = state.rejects.get(service)
        return service.protocol, service.port - index, state.gated[service], reject

    rows = []
    for _, run in groupby(enumerate(sorted(state.gated)), key):
        services = [service for _, service in run]
        first, last = services[0], services[-1]
        ports = str(first) if first == last else f"{first.port}-{last}"
        reject = state.rejects.get(first)
        rows.append((ports, reject.value if reject else "drop", state.gated[first]))
    return rows


def _align(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def render_json(state: State | None, listeners: Mapping[int, Listener]) -> str:
    """Return *state* for programs; null without a table."""
    if state is None:
        return json.dumps(None)
    listener = None if state.queue is None else listeners.get(state.queue)
    return json.dumps(
        {
            "intact": state.intact,
            "queue": state.queue,
            "queue_target": state.queue_target,
            "verifier": None if listener is None else listener._asdict(),
            "tags": sorted(map(format_tag, state.tags)),
            "guarded": [
                {
                    **_service_fields(service),
                    "reject": state.rejects[service].value if service in state.rejects else "drop",
                    "comment": comment,
                }
                for service, comment in sorted(state.gated.items())
            ],
            "grants": [
                {
                    "source": grant.source,
                    **_service_fields(grant.service),
                    "rule": grant.rule,
                    "timeout": grant.timeout,
                    "expires": grant.expires,
                }
                for grant in state.grants
            ],
            "sessions": [
                {
                    "source": s.source,
                    "source_port": s.source_port,
                    **_service_fields(s.service),
                    "expires": expires,
                }
                for s, expires in state.sessions
            ],
            "counters": {name: counter._asdict() for name, counter in state.counters.items()},
        },
        indent=2,
    )


def _service_fields(service: Service) -> dict[str, object]:
    return {"protocol": service.protocol.label, "port": service.port}
