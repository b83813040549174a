"""What grows with rules, grants and knocks, and what should not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lab.bench.knocks import send_knocks
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.meter import cpu_seconds, memory_kib
from lab.bench.opening import clients, summarise
from lab.bench.peers import NFPKD_ITSELF, knock_at_nfpkd
from lab.bench.rows.opening import warm_up
from lab.bench.stage import Service, apply_rules, guarding, make_stage, many_rules, open_rule, write_rules
from lab.hosts import KNOCK_PORT, PORT, Lab
from nfpkd.firewall.layout import GRANTS
from support.network import make_knock

_MANY_RULES = 10_000
_GRANTS = (1, 1_000, 100_000)
_KNOCKS_A_SECOND = 2_000
_KNOCKS_A_SECOND_LONG = 5_000
_SETTLING_SECONDS = 1.0
_IDLE = "idle, 1 rule"


class KnockCost(Measurement):
    """As knock to connected, idle, with so many rules besides, or with so many live grants besides.

    CPU is what the daemon uses for one knock and the SYN behind it.
    """

    name = "knock-cost"
    title = "a knock's cost, with many rules and with many live grants"
    figures = (Figure("p50", "ms"), Figure("CPU", "us/knock"))

    def __init__(self, scale: Scale) -> None:
        self._samples = scale.samples
        self._settling = 0.2 if scale.quick else _SETTLING_SECONDS
        by_rules = {_count(size, "rules"): (size, 1) for size in scale.sizes}
        grants = _GRANTS[:2] if scale.quick else _GRANTS
        by_grants = {_count(size, "live grants"): (1, size) for size in grants}
        self._cases = by_rules | by_grants
        self.systems = tuple(self._cases)
        self.reference = _count(scale.sizes[0], "rules")
        self.targets = tuple(
            Target(f"flat within 10%: {system}", system, "CPU", at_most=1.1, of=(first,))
            for first, *more in (tuple(by_rules), tuple(by_grants))
            for system in more
        )

    def run(self, system: str) -> Mapping[str, float]:
        rules, grants = self._cases[system]
        with make_stage() as lab:
            write_rules(lab.actions.path, [open_rule(window=3600), *many_rules(rules - 1)])
            _make_grants(lab, grants - 1)
            with guarding(lab) as service, clients(lab, knock_at_nfpkd()) as client:
                # What a start leaves to do is done.
                time.sleep(self._settling)
                warm_up(client, NFPKD_ITSELF)
                before = cpu_seconds(service.pid)
                samples = [client.open_door() for _ in range(self._samples)]
                cpu = cpu_seconds(service.pid) - before
        return {"p50": summarise(samples)["p50"], "CPU": cpu / self._samples * 1e6}


class Memory(Measurement):
    """What `nfpkd run` has resident: a moment after its start, and after thousands of genuine knocks a second.

    The knocks come from 20,000 addresses in turn, are good for a second by the clock and
    open for a second, so that what is remembered of them comes and goes.  "all"
    counts the helper process, too, and shared pages once.
    """

    name = "memory"
    title = "resident memory of the daemon"
    figures = (Figure("resident", "MiB"), Figure("all", "MiB"))
    reference = _IDLE

    def __init__(self, scale: Scale) -> None:
        self._rate = _KNOCKS_A_SECOND_LONG if scale.long else _KNOCKS_A_SECOND
        most = 1_000_000 if scale.long else 2_000 if scale.quick else 20_000
        many = scale.sizes[-1] if scale.quick else _MANY_RULES
        self._rules = {_IDLE: 1, f"{many:,} rules": many}
        self._knocks = {f"after {count:,} knocks": count for count in (most // 2, most)}
        self.systems = (*self._rules, *self._knocks)
        half, whole = self._knocks
        self.targets = (
            Target("idle: under 40 MB", _IDLE, "resident", at_most=40),
            Target(f"{many:,} rules: under 100 MB", f"{many:,} rules", "resident", at_most=100),
            Target("no growth from half of the knocks to all: within 2%", whole, "resident", 1.02, of=(half,)),
        )

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab:
            write_rules(lab.actions.path, [open_rule(skew=1, window=1), *many_rules(self._rules.get(system, 1) - 1)])
            with guarding(lab) as service:
                if system in self._knocks:
                    _knock_often(lab, service, self._knocks[system], self._rate)
                time.sleep(0.5)
                tree = [service.pid, *_children(service.pid)]
                return {
                    "resident": memory_kib(service.pid) / 1024,
                    "all": sum(_proportional_kib(pid) for pid in tree) / 1024,
                }


def _count(size: int, what: str) -> str:
    return f"{size:,} {what if size > 1 else what[:-1]}"


def _make_grants(lab: Lab, count: int) -> None:
    """Put *count* grants into the kernel, of addresses that nobody has, before nfpkd is there to see it done."""
    if not count:
        return
    apply_rules(lab)
    addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count))
    elements = ",\n".join(f'{address} . tcp . {PORT} timeout 1h comment "opened"' for address in addresses)
    file = lab.folder / "grants.nft"
    file.write_text(f"add element inet nfpkd {GRANTS[4]} {{ {elements} }}\n")
    lab.network.nft("-f", str(file))


def _knock_often(lab: Lab, service: Service, count: int, rate: int) -> None:
    """Send *count* knocks, made as they are sent; raises RuntimeError if a tenth of them or more is not accepted."""
    knocks = (make_knock(KNOCK_PORT) for _ in range(count))
    send_knocks(lab.network, knocks, rate=rate, sources=_in_turn(count))
    time.sleep(_SETTLING_SECONDS)
    with service.log.open() as log:
        accepted = sum("knock accepted" in line for line in log)
    if accepted < 0.9 * count:
        raise RuntimeError(f"of {count} knocks only {accepted} were accepted")


def _in_turn(count: int) -> Iterator[str]:
    addresses = [f"198.18.{number >> 8}.{number & 255}" for number in range(20_000)]
    return itertools.islice(itertools.cycle(addresses), count)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _proportional_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
