"""What `nfpkd status --format prometheus` says: the kernel's state in Prometheus's text exposition format.

Source: "Exposition formats" in Prometheus's documentation (version 0.0.4 of the text format).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from nfpkd.firewall.state import Grant, State
from nfpkd.instance import Report
from nfpkd.verifier.listeners import Listener

# Those of the table, by the names that they have there.
_COUNTERS = {
    "knocks": ("knock", "that looked like a knock and were handed to the verifier"),
    "limited": ("limited", "over the limit of their source, knocks and first packets behind them"),
    "held": ("held", "that waited behind a knock"),
    "admitted": ("admitted", "that were let in by a grant"),
    "refused": ("refused", "that were refused at a guarded port"),
}


class _Metric(NamedTuple):
    """One family of samples: *samples* are pairs of labels and value."""

    name: str
    kind: str
    help: str
    samples: Iterable[tuple[dict[str, str], int]]

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {_escape(self.help)}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            pairs = ",".join(f'{name}="{_escape_label(text)}"' for name, text in labels.items())
            yield f"{self.name}{{{pairs}}} {value}" if pairs else f"{self.name} {value}"


def render_prometheus(state: State | None, listeners: Mapping[int, Listener], report: Report | None = None) -> str:
    """Return *state*, None without a table, as metrics.

    *listeners* are the packet queues in use, *report* is what `nfpkd run` says of itself.
    """
    return "\n".join(line for metric in _metrics(state, listeners, report) for line in metric.lines())


def _metrics(state: State | None, listeners: Mapping[int, Listener], report: Report | None) -> Iterator[_Metric]:
    listener = None if state is None or state.queue is None else listeners.get(state.queue)
    yield _gauge("nfpkd_up", "Whether a verifier judges knocks: 1 or 0.", listener is not None)
    yield _gauge("nfpkd_table_present", "Whether nfpkd's table guards this host: 1 or 0.", state is not None)
    if state is None:
        return
    yield _gauge("nfpkd_table_intact", "Whether the table is as this version of nfpkd makes it: 1 or 0.", state.intact)
    services = state.gated.keys() | {place.service for place in state.gated_on}
    yield _gauge("nfpkd_guarded_services", "Pairs of protocol and port that are guarded.", len(services))
    by_rule = _group_by_rule(state.grants)
    yield _Metric(
        "nfpkd_grants",
        "gauge",
        "Live grants, one for each address and service, by rule.",
        [({"rule": rule}, len(grants)) for rule, grants in by_rule.items()],
    )
    yield _Metric(
        "nfpkd_granted_sources",
        "gauge",
        "Addresses and networks that are let in, by rule.",
        [({"rule": rule}, len({grant.who for grant in grants})) for rule, grants in by_rule.items()],
    )
    text = "Connections that are open since before the guard, or let in by a grant for one connection."
    yield _gauge("nfpkd_sessions", text, len(state.sessions))
    yield _gauge(
        "nfpkd_source_limit_packets_per_second",
        "Packets of one source, knocks and first packets behind them, that are judged or held in a second at most.",
        state.source_limit,
    )
    for name, (label, text) in _COUNTERS.items():
        if name in state.counters:
            for unit, value in state.counters[name]._asdict().items():
                what = "Packets" if unit == "packets" else "Bytes in packets"
                yield _Metric(f"nfpkd_{label}_{unit}_total", "counter", f"{what} {text}.", [({}, value)])
    if listener is not None and report is not None:
        text = "Whether the rules in force are of before, because the rule files are refused: 1 or 0."
        yield _gauge("nfpkd_rules_stale", text, report.stale)
    if listener is not None:
        text = "Packets in the verifier's queue that have no verdict yet."
        yield _gauge("nfpkd_queue_waiting_packets", text, listener.waiting)
        yield _Metric(
            "nfpkd_queue_lost_packets_total",
            "counter",
            "Packets dropped because too many waited (queue) or the verifier was too slow to read them (socket).",
            [({"full": "queue"}, listener.queue_full), ({"full": "socket"}, listener.socket_full)],
        )


def _gauge(name: str, text: str, value: int) -> _Metric:
    return _Metric(name, "gauge", text, [({}, int(value))])


def _group_by_rule(grants: Iterable[Grant]) -> dict[str, list[Grant]]:
    found: dict[str, list[Grant]] = {}
    for grant in sorted(grants, key=lambda grant: grant.rule):
        found.setdefault(grant.rule, []).append(grant)
    return found


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', r"\"")
