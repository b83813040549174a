"""What `nfpkd status` says of the kernel's state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from nfpkd.firewall.doors import Mode
from nfpkd.firewall.ruleset import Ruleset
from nfpkd.firewall.state import Grant, State, family_of
from nfpkd.instance import Report
from nfpkd.rules.model import PortRange, Protocol, Reject, Service
from nfpkd.text import Paint, Role, align, plain
from nfpkd.verifier.listeners import Listener

_COUNTERS = {
    "knocks": "packets looked like a knock and were judged",
    "limited": "packets were over the limit of their source",
    "held": "first packets waited behind a knock",
    "admitted": "packets were let in by a grant",
    "refused": "packets were refused at a gate",
}

_MODES = {Mode.PLAIN: "plain", Mode.EXTEND: "extend", Mode.ONCE: "once"}
_NOTES = {Mode.PLAIN: "", Mode.EXTEND: "renewed by traffic", Mode.ONCE: "one connection"}

# What one knock opened is listed a moment apart, and in whole seconds.
_SAME_END = 2


def render_text(
    state: State | None, listeners: Mapping[int, Listener], report: Report | None = None, paint: Paint = plain
) -> str:
    """Return *state* for people; *listeners* are the packet queues in use, *report* is what `nfpkd run` says."""
    if state is None:
        return paint(Role.WARNING, "nfpkd guards nothing here: there is no table inet nfpkd")
    return "\n".join(_lines(state, listeners, report, paint))


def render_changes(held: State | None, wanted: Ruleset, paint: Paint = plain) -> list[str]:
    """Return what enforcing *wanted* changes for ports and people, a line each: ``+`` new, ``-`` gone."""
    before = set(_guarded_rows(held)) if held else set()
    after = set(_guarded_rows(wanted))
    changed = sorted([(*row, "-") for row in before - after] + [(*row, "+") for row in after - before])
    lines = list(align([(sign, *row) for *row, sign in changed], indent=""))
    lost = [grant for grant in held.grants if not wanted.keeps(grant)] if held else []
    lines += [f"- let in: {'  '.join(filter(None, row))}" for row in _grant_rows(lost)]
    return [paint(Role.NEW if line.startswith("+") else Role.GONE, line) for line in lines]


def _lines(state: State, listeners: Mapping[int, Listener], report: Report | None, paint: Paint) -> Iterator[str]:
    yield _describe_verifier(state, listeners, paint)
    # Without a verifier, it may be anybody's.
    if report is not None and report.stale and state.queue in listeners:
        yield paint(Role.WARNING, f"rules: {report.status}; `nfpkd check` says what is wrong")
    if not state.intact:
        text = "the table is not as this version of nfpkd makes it; `nfpkd apply` will make it anew"
        yield paint(Role.WARNING, text)
    yield ""
    services = state.gated.keys() | {place.service for place in state.gated_on}
    yield paint(Role.HEADING, f"guarded ({len(services)})")
    yield from align(_guarded_rows(state))
    yield ""
    yield paint(Role.HEADING, f"let in ({len(state.grants)})")
    yield from align(_grant_rows(state.grants))
    if state.sessions:
        yield ""
        text = f"open since before the guard, or let in for one connection ({len(state.sessions)})"
        yield paint(Role.HEADING, text)
        yield from align([(s.source, f"from port {s.source_port}", str(s.service)) for s, _ in state.sessions])
    yield ""
    yield paint(Role.HEADING, "counters")
    yield from align(_counter_rows(state))


def _describe_verifier(state: State, listeners: Mapping[int, Listener], paint: Paint) -> str:
    if state.queue is None:
        return paint(Role.ERROR, "verifier: none; knocks are not looked at")
    way = f"queue {state.queue}, by {state.queue_target}"
    listener = listeners.get(state.queue)
    if listener is None:
        text = f"verifier: not running ({way}): nobody can open anything; start `nfpkd run`"
        return paint(Role.ERROR, text)
    count = listener.queue_full + listener.socket_full
    lost = paint(Role.WARNING, f"{count} lost") if count else "0 lost"
    return f"verifier: process {listener.port_id} ({way}); {listener.waiting} packets waiting, {lost}"


def _counter_rows(state: State) -> Iterator[tuple[str, str]]:
    shown = {name: str(state.counters[name].packets) for name in _COUNTERS if name in state.counters}
    width = max(map(len, shown.values()), default=0)
    for name, packets in shown.items():
        limit = f", {state.source_limit} a second" if name == "limited" else ""
        yield packets.rjust(width), _COUNTERS[name] + limit


def _guarded_rows(state: State | Ruleset) -> list[tuple[str, ...]]:
    """Return a row for each run of neighbouring ports, and the protocols, that are guarded alike."""
    interfaces: dict[tuple[Service, str], list[str]] = {}
    for (interface, service), comment in sorted(state.gated_on.items()):
        interfaces.setdefault((service, comment), []).append(interface)
    guarded = [(service, "", comment) for service, comment in state.gated.items()]
    guarded += [(service, _on(names), comment) for (service, comment), names in interfaces.items()]
    alike: dict[tuple[str, ...], list[Service]] = {}
    for service, where, comment in guarded:
        alike.setdefault((where, _reject(state, service).value, comment), []).append(service)
    rows = []
    for how, services in alike.items():
        by_run: dict[PortRange, list[Protocol]] = {}
        for protocol, runs in _find_runs(services).items():
            for run in runs:
                by_run.setdefault(run, []).append(protocol)
        rows += [(run, protocols, how) for run, protocols in by_run.items()]
    return [(_describe_ports([run], protocols), *how) for run, protocols, how in sorted(rows)]


def _grant_rows(grants: Iterable[Grant]) -> Iterator[tuple[str, ...]]:
    """Yield a row for all that a source may reach by one rule until about the same time."""
    alike: dict[tuple[str, str, str, Mode, int], list[Grant]] = {}
    for grant in sorted(grants, key=lambda grant: (grant.rule, grant.source, grant.interface, grant.service)):
        alike.setdefault((grant.rule, grant.who, grant.interface, _mode(grant), grant.timeout), []).append(grant)
    for (rule, who, interface, mode, timeout), found in alike.items():
        for together in _group_by_end(found):
            left = f"{together[0].expires} s left of {timeout}" if timeout else "for good"
            services = _describe_services(grant.service for grant in together)
            yield who, services, _on([interface]) if interface else "", rule, left, _NOTES[mode]


def _group_by_end(grants: Iterable[Grant]) -> list[list[Grant]]:
    """Return *grants* in groups that end at nearly the same time; the first of each group ends first."""
    groups: list[list[Grant]] = []
    for grant in sorted(grants, key=lambda grant: grant.expires):
        if groups and grant.expires <= groups[-1][0].expires + _SAME_END:
            groups[-1].append(grant)
        else:
            groups.append([grant])
    return sorted(groups, key=lambda group: min(grant.service for grant in group))


def _describe_services(services: Iterable[Service]) -> str:
    """Return *services* as a rule would name them; protocols with the same ports share them."""
    alike: dict[tuple[PortRange, ...], list[Protocol]] = {}
    for protocol, runs in _find_runs(services).items():
        alike.setdefault(tuple(runs), []).append(protocol)
    return " ".join(_describe_ports(runs, protocols) for runs, protocols in alike.items())


def _find_runs(services: Iterable[Service]) -> dict[Protocol, list[PortRange]]:
    """Return each protocol's runs of neighbouring ports, in order."""
    found: dict[Protocol, list[PortRange]] = {}
    for protocol, port in sorted(services):
        runs = found.setdefault(protocol, [])
        if runs and runs[-1].last == port - 1:
            runs[-1] = runs[-1]._replace(last=port)
        else:
            runs.append(PortRange(port, port))
    return found


def _describe_ports(ports: Iterable[PortRange], protocols: Iterable[Protocol]) -> str:
    labels = "any" if set(protocols) == set(Protocol) else "+".join(protocol.label for protocol in protocols)
    return f"{','.join(map(str, ports))}/{labels}"


def _on(interfaces: Iterable[str]) -> str:
    return f"on {', '.join(interfaces)}"


def _reject(state: State | Ruleset, service: Service) -> Reject:
    return state.rejects.get(service, Reject.DROP)


def _mode(grant: Grant) -> Mode:
    return grant.door.mode if grant.door else Mode.PLAIN


def _prefix(grant: Grant) -> int:
    return grant.door.prefix if grant.door else 32 if family_of(grant.source) == 4 else 128


def render_json(state: State | None, listeners: Mapping[int, Listener], report: Report | None = None) -> str:
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
            "rules": None if listener is None or report is None else report._asdict(),
            "source_limit": state.source_limit,
            "guarded": [
                {**_service_fields(service), "reject": _reject(state, service).value, "comment": comment}
                for service, comment in sorted(state.gated.items())
            ],
            "guarded_on": [
                {
                    "interface": interface,
                    **_service_fields(service),
                    "reject": _reject(state, service).value,
                    "comment": comment,
                }
                for (interface, service), comment in sorted(state.gated_on.items())
            ],
            "grants": [
                {
                    "source": grant.source,
                    "prefix": _prefix(grant),
                    "who": grant.who,
                    "interface": grant.interface or None,
                    **_service_fields(grant.service),
                    "rule": grant.rule,
                    "mode": _MODES[_mode(grant)],
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
