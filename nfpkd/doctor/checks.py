"""The judgement of `nfpkd doctor`: one small check for each thing that may be in the way.

Pure: the checks take what was found, and ask nothing.
"""

import errno
import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nfpkd.doctor.facts import Clock, Conntrack, Facts, Inotify, Memory
from nfpkd.errors import KernelError, Problem, RulesError
from nfpkd.firewall.foreign import (
    BaseChain,
    ChainId,
    Obstacle,
    Ruleset,
    find_obstacles,
    find_references,
)
from nfpkd.firewall.nft import Json, Table
from nfpkd.firewall.state import State
from nfpkd.logs import escape
from nfpkd.rules.loader import Loaded
from nfpkd.rules.model import PortRange, Protocol, Service, merge_ranges
from nfpkd.text import Paint, Role, plain
from nfpkd.verifier.listeners import Listener
from nfpkd.verifier.store import FILE_NAME

SEVERITIES = ("fault", "warning", "note")
_ROLES = {"fault": Role.ERROR, "warning": Role.WARNING, "note": Role.HEADING}

# Above this share, new connections may soon find no room.
_NEARLY_FULL = 0.9
# What other programs of the same user are likely to watch.
_SPARE_WATCHES = 64

# Kernel: include/uapi/linux/timex.h
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class Finding(NamedTuple):
    """Something that is, or may be, in the way; *severity* is one of SEVERITIES."""

    severity: str
    what: str
    remedy: str


def check_privilege(*, net_admin: bool) -> Iterator[Finding]:
    if not net_admin:
        yield Finding("fault", "CAP_NET_ADMIN is missing, which nftables and the packet queue take", "run it with sudo")


def check_libraries(missing: Iterable[KernelError]) -> Iterator[Finding]:
    for error in missing:
        yield Finding("fault", error.reason, error.remedy)


def check_kernel(queues: bool | KernelError) -> Iterator[Finding]:
    if isinstance(queues, KernelError):
        yield Finding("fault", queues.reason, queues.remedy or "run it with sudo")
    elif not queues:
        yield Finding(
            "note",
            "this kernel has no nft_queue; nfpkd queues through nft_compat instead, which works as well",
            "nothing needs to be done; a kernel with nft_queue (on Debian linux-image-amd64) spares the detour",
        )


def check_table(state: State | None) -> Iterator[Finding]:
    if state is not None and not state.intact:
        yield Finding(
            "fault",
            "the table inet nfpkd is not as this version of nfpkd makes it",
            'run "nfpkd apply", which makes it anew and keeps its grants',
        )


def check_verifier(state: State | None, listeners: dict[int, Listener]) -> Iterator[Finding]:
    if state is None or not (state.gated or state.gated_on):
        return
    if state.queue is None:
        remedy = 'run "nfpkd apply", and have "nfpkd run" running'
        yield Finding("fault", "ports are guarded, but the table hands knocks to no queue", remedy)
    elif state.queue not in listeners:
        yield Finding(
            "fault",
            f"ports are guarded, but no verifier listens on queue {state.queue}: nobody can open anything",
            'start "nfpkd run"',
        )


def check_queue(
    asked: int, used: int, listeners: dict[int, Listener], *, is_running: bool, comm: str = ""
) -> Iterator[Finding]:
    """Look at who has the queue; *is_running* tells whether `nfpkd run` runs in this network namespace."""
    listener = listeners.get(used)
    if listener is not None and not is_running:
        who = f"process {listener.port_id}" + (f", {comm}" if comm else "")
        yield Finding(
            "fault",
            f"queue {used} is used by another process ({who})",
            'end that one, or choose another number with "--queue"',
        )
    if asked != used:
        yield Finding(
            "note",
            f"the table hands knocks to queue {used}, not to queue {asked}",
            f'nothing if that is meant; else run nfpkd with "--queue {asked}"',
        )


def check_losses(listener: Listener | None) -> Iterator[Finding]:
    lost = 0 if listener is None else listener.queue_full + listener.socket_full
    if lost:
        yield Finding(
            "warning",
            f"{lost} packets were lost in the queue since the verifier started; knocks may have been among them",
            'if "nfpkd status" shows more and more, somebody floods: lower "--source-limit", or give the rules'
            ' a "knock-port" that the flood does not hit',
        )


def check_others(ruleset: Ruleset, guarded: Iterable[Service]) -> Iterator[Finding]:
    for obstacle in find_obstacles(ruleset, guarded):
        if obstacle.kind != "notrack":
            yield _describe_obstacle(obstacle, uses_ufw=_uses_ufw(ruleset, obstacle.base))


def check_legacy(tables: Sequence[str]) -> Iterator[Finding]:
    if tables:
        yield Finding(
            "note",
            f"iptables-legacy is in use ({', '.join(tables)}), and nfpkd cannot read its rules",
            'look at them with "iptables-legacy -S" and "ip6tables-legacy -S": what drops a guarded port there'
            " stays dropped after a knock",
        )


def check_clock(clock: Clock, *, in_container: bool) -> Iterator[Finding]:
    if clock.state != _TIME_ERROR and not clock.status & _STA_UNSYNC:
        return
    what = "the clock is not synchronised; knocks are refused when it is off by more than a rule's skew"
    if in_container:
        yield Finding("note", what, "in a container the clock is the host's: synchronise it there")
    else:
        yield Finding("warning", what, 'install chrony, or run "timedatectl set-ntp true"')


def check_conntrack(conntrack: Conntrack | None, *, is_guarding: bool) -> Iterator[Finding]:
    if conntrack is None:
        if is_guarding:
            yield Finding(
                "warning",
                "conntrack is not there: open connections end with their grants, and answers to this host are refused",
                'run "modprobe nf_conntrack"',
            )
    elif conntrack.limit and conntrack.known >= conntrack.limit * _NEARLY_FULL:
        full = conntrack.known >= conntrack.limit
        yield Finding(
            "fault" if full else "warning",
            f"conntrack is {'full' if full else 'nearly full'}: {conntrack.known} of {conntrack.limit} connections;"
            " new ones are dropped when there is no room",
            f'run "sysctl -w net.netfilter.nf_conntrack_max={conntrack.limit * 2}" on the host',
        )


def check_notrack(ruleset: Ruleset, guarded: Iterable[Service]) -> Iterator[Finding]:
    for base, kind, rule, services in find_obstacles(ruleset, guarded):
        if kind == "notrack" and rule is not None:
            yield Finding(
                "note",
                f"{_name(base)}: the {_name_rule(base, rule)} hides {_list_services(services)} from conntrack:"
                " connections to it end with their grant",
                f'run "{_delete(base.table, rule)}" if they should go on',
            )


def check_rules(actions: Path, rules: Loaded | RulesError) -> Iterator[Finding]:
    def describe(severity: str, problem: Problem) -> Finding:
        return Finding(severity, str(problem), f'correct it; "nfpkd check --actions {actions}" tells when it is right')

    if isinstance(rules, RulesError):
        for problem in rules.problems:
            yield describe("fault", problem)
        return
    for warning in rules.warnings:
        yield describe("warning", warning)
    if not rules.rules:
        yield Finding("note", f"no rules in {actions}: nothing is guarded", 'make one with "nfpkd keygen"')


def check_memory(memory: Memory | None, *, is_running: bool | None) -> Iterator[Finding]:
    if memory is None:
        yield Finding(
            "note",
            "knocks are not remembered over a restart",
            'give a directory with "--state-dir", or live with knocks refused for a while after each start',
        )
        return
    path = memory.path
    elsewhere = 'or choose another with "--state-dir"'
    if not memory.is_directory:
        yield Finding("fault", f"{path} is not a directory", f"remove it, {elsewhere}")
    elif not memory.is_writable:
        what = "cannot be written" if memory.exists else "cannot be written, so the state directory cannot be made"
        yield Finding("fault", f"{path} {what}", f"run nfpkd as its owner, {elsewhere}")
    elif memory.exists:
        yield from _check_owners(memory)
        if memory.is_held and is_running is False:
            yield Finding(
                "fault",
                f"{path / FILE_NAME} is used by an nfpkd that runs elsewhere, in another network namespace",
                'give each its own with "--state-dir"',
            )
    if is_running and memory.is_held is False:
        yield Finding(
            "note",
            f"nfpkd runs, but does not remember knocks in {path}",
            'ask about the directory that it was started with: "nfpkd doctor --state-dir DIR"',
        )


def check_inotify(inotify: Inotify, folders: int) -> Iterator[Finding]:
    late = "changes of rule files are noticed some seconds late, or not at all"
    double = 'run "sysctl -w fs.inotify.max_user_{}={}"'
    if inotify.error == errno.EMFILE:
        remedy = double.format("instances", max(256, inotify.instances * 2))
        yield Finding("warning", f"all {inotify.instances} inotify instances of this user are in use: {late}", remedy)
    elif inotify.error == errno.ENOSPC or 0 <= inotify.watches < folders + _SPARE_WATCHES:
        few = f"{inotify.watches} inotify watches are too few for {folders} directories of rule files: {late}"
        yield Finding("warning", few, double.format("watches", max(8192, inotify.watches * 2, folders * 4)))


Check = Callable[[Facts], "Iterable[Finding] | None"]


def _judge_others(facts: Facts) -> Iterable[Finding] | None:
    return None if facts.others is None else check_others(facts.others, facts.guarded())


def _judge_notrack(facts: Facts) -> Iterable[Finding] | None:
    return None if facts.others is None else check_notrack(facts.others, facts.guarded())


def _judge_queue(facts: Facts) -> Iterable[Finding] | None:
    if facts.is_running is None:
        return None
    return check_queue(facts.queue, facts.used_queue(), facts.listeners, is_running=facts.is_running, comm=facts.comm)


def _judge_conntrack(facts: Facts) -> Iterable[Finding] | None:
    if facts.is_guarding is None:
        return None
    return check_conntrack(facts.conntrack, is_guarding=facts.is_guarding)


CHECKS: tuple[Check, ...] = (
    lambda facts: check_privilege(net_admin=facts.net_admin),
    lambda facts: check_libraries(facts.missing),
    lambda facts: None if facts.queues is None else check_kernel(facts.queues),
    lambda facts: None if facts.is_guarding is None else check_table(facts.state),
    lambda facts: None if facts.is_guarding is None else check_verifier(facts.state, facts.listeners),
    _judge_queue,
    lambda facts: check_losses(facts.listeners.get(facts.used_queue())),
    _judge_others,
    lambda facts: check_legacy(facts.legacy),
    lambda facts: None if facts.clock is None else check_clock(facts.clock, in_container=facts.in_container),
    _judge_conntrack,
    _judge_notrack,
    lambda facts: check_rules(facts.actions, facts.rules),
    lambda facts: check_memory(facts.memory, is_running=facts.is_running),
    lambda facts: None if facts.inotify is None else check_inotify(facts.inotify, facts.folders),
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All *findings*, faults first; *passed* of *made* checks had none, and *unmade* could not be made."""

    findings: tuple[Finding, ...]
    passed: int
    made: int
    unmade: int

    @property
    def is_healthy(self) -> bool:
        return not any(finding.severity == "fault" for finding in self.findings)


def examine(facts: Facts) -> Diagnosis:
    """Make every check that *facts* allow."""
    answers = [None if found is None else tuple(found) for found in (check(facts) for check in CHECKS)]
    made = [found for found in answers if found is not None]
    findings = sorted((f for found in made for f in found), key=lambda f: SEVERITIES.index(f.severity))
    passed = sum(not found for found in made)
    return Diagnosis(tuple(findings), passed, len(made), len(answers) - len(made))


def render_text(diagnosis: Diagnosis, paint: Paint = plain) -> str:
    """Return *diagnosis* for people, a line for each finding."""
    width = max((len(finding.severity) for finding in diagnosis.findings), default=0)
    lines = []
    for severity, what, remedy in diagnosis.findings:
        lines.append(f"{paint(_ROLES[severity], severity.ljust(width))}  {escape(f'{what}: {remedy}')}")
    unmade = f"; {diagnosis.unmade} could not be made" if diagnosis.unmade else ""
    return "\n".join([*lines, f"{diagnosis.passed} of {diagnosis.made} checks passed{unmade}"])


def render_json(diagnosis: Diagnosis) -> str:
    """Return *diagnosis* for programs."""
    return json.dumps(
        {
            "findings": [finding._asdict() for finding in diagnosis.findings],
            "passed": diagnosis.passed,
            "made": diagnosis.made,
            "unmade": diagnosis.unmade,
        },
        indent=2,
    )


# How obstacles are worded


def _describe_obstacle(obstacle: Obstacle, *, uses_ufw: bool) -> Finding:
    base, kind, rule, services = obstacle
    shown = _list_services(services)
    cause = "policy drop" if rule is None else f"the {_name_rule(base, rule)}"
    look = f'look at it with "nft -a list chain {_quote(base.table)} {base.name}"'
    still = f"{_name(base)} has {cause}"
    if kind == "some":
        what = f"{still}, which keeps some sources or connections from {shown}, after a knock, too"
        return Finding("note", what, f"nothing if that is meant; {look}")
    if kind == "rest":
        what = f"{still}, and accepts {shown} on further conditions only: who knocks has to meet them, too"
        return Finding("note", what, f"nothing if that is meant; {look}")
    add = _allow(base, services, insert=rule is not None, uses_ufw=uses_ufw)
    if kind == "unsure":
        what = f"{still}; whether a rule of iptables or another program accepts {shown} cannot be read from here"
        return Finding("warning", what, f"{look}, or iptables -S; if none does, run {add}")
    missing = f" and no rule that accepts {shown}" if rule is None else f", which matches {shown}"
    what = f"{still}{missing}: a knock opens nfpkd's gate, and this chain still drops it"
    return Finding("fault", what, f"run {add}")


def _allow(base: BaseChain, services: Sequence[Service], *, insert: bool, uses_ufw: bool) -> str:
    """Return what lets *services* through *base*, in the words of whoever keeps that table."""
    by_protocol = _runs(services)
    if base.table.name == "firewalld":
        ports = " ".join(f"--add-port={run}/{p.label}" for p, runs in by_protocol.items() for run in runs)
        return f'"firewall-cmd --permanent {ports}" and "firewall-cmd --reload"'
    if uses_ufw:
        return " and ".join(
            f'"ufw allow {",".join(str(run).replace("-", ":") for run in runs)}/{p.label}"'
            for p, runs in by_protocol.items()
        )
    verb = "insert" if insert else "add"
    commands = []
    for protocol, runs in by_protocol.items():
        ports = ", ".join(map(str, runs))
        chosen = f"{{ {ports} }}" if len(runs) > 1 else ports
        where = f"{_quote(base.table)} {base.name}"
        commands.append(f'"nft {verb} rule {where} {protocol.label} dport {chosen} accept"')
    return " and ".join(commands)


def _uses_ufw(ruleset: Ruleset, base: BaseChain) -> bool:
    rules = ruleset.rules.get(ChainId(base.table, base.name), ())
    return any(name.startswith("ufw") for rule in rules for name in find_references(rule["expr"]).chains)


def _name(base: BaseChain) -> str:
    return f"table {_quote(base.table)} chain {base.name} (hook {base.hook}, priority {base.priority})"


def _name_rule(base: BaseChain, rule: Json) -> str:
    comment = f', "{rule["comment"]}"' if rule.get("comment") else ""
    via = f" of chain {rule['chain']}" if rule.get("chain") != base.name else ""
    return f"rule with handle {rule.get('handle')}{via}{comment}"


def _delete(table: Table, rule: Json) -> str:
    return f"nft delete rule {_quote(table)} {rule.get('chain')} handle {rule.get('handle')}"


def _quote(table: Table) -> str:
    return f"{table.family} {table.name}"


def _runs(services: Iterable[Service]) -> dict[Protocol, tuple[PortRange, ...]]:
    found: dict[Protocol, list[PortRange]] = {}
    for protocol, port in sorted(services):
        found.setdefault(protocol, []).append(PortRange(port, port))
    return {protocol: merge_ranges(ranges) for protocol, ranges in found.items()}


def _list_services(services: Iterable[Service]) -> str:
    return ", ".join(f"{','.join(map(str, runs))}/{p.label}" for p, runs in _runs(services).items())


def _check_owners(memory: Memory) -> Iterator[Finding]:
    path = memory.path
    if memory.mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "warning", f"others can write in {path}: they could make nfpkd forget knocks", f'run "chmod 700 {path}"'
        )
    if memory.file_owner is not None and memory.file_owner != memory.owner:
        yield Finding(
            "warning",
            f"{path / FILE_NAME} belongs to user {memory.file_owner}, and its directory to user {memory.owner}:"
            " nfpkd can use both only as root",
            f'run "chown -R USER {path}" with the user that nfpkd runs as',
        )


# Asking the host
