"""Knock to connected while garbage arrives, and what a host still does besides."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from lab.bench.cores import LOAD_CORE, SERVER_CORE, on_core
from lab.bench.floor import empty_listener, load_ruleset, queue_rules
from lab.bench.knocks import make_knocks, send_knocks
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.opening import clients, summarise
from lab.bench.peers import KNOCKERS, NF_PKD, NF_PKD_TAG, NFPKD_DISKLESS, NFPKD_ITSELF, Knocker
from lab.bench.rows.opening import LATENCY, missing_knockers, warm_up
from lab.bench.stage import guarding, make_stage, open_rule
from lab.hosts import TAG, Lab
from lab.load import Load, Traffic
from support.network import SERVER4

_RATES = (20_000, 100_000)
_ONE, _MANY = 1, 65_536
# Under a flood a knock that has opened nothing by now is lost: a kernel sends its second SYN after a second.
_PATIENCE_SECONDS = 0.9
_PEERS_SAMPLES = 20
_SINK_PORT = 9999
_KNOCKS_A_SECOND = 100
_CONNTRACK = """
table inet floor {
    chain arriving {
        type filter hook prerouting priority 0; policy accept;
        ct state established,related accept
    }
}
"""


class _Case(NamedTuple):
    knocker: Knocker
    rate: int
    sources: int

    def __str__(self) -> str:
        if not self.rate:
            return f"{self.knocker.name}, idle"
        return f"{self.knocker.name}, {self.rate // 1000}k" + (" spoofed" if self.sources > 1 else "")


class Flood(Measurement):
    """As knock to connected, idle, while another address sends garbage at a rate.

    nfpkd and nf-pkd get what is shaped like a knock and has the right tag; nfpkd gets it
    from one address and, "spoofed", from 65,536.  fwknopd and knockd get other
    datagrams at the port that they listen to.  "garbage" is the rate that was reached.
    """

    name = "flood"
    title = "knock to connected, under 20k and 100k packets of garbage a second"
    figures = (*LATENCY, Figure("garbage", "packets/s"))

    def __init__(self, scale: Scale, load: Load) -> None:
        self._samples = scale.samples
        self._peers_samples = 2 if scale.quick else _PEERS_SAMPLES
        self._load = load
        knockers = [knocker for knocker in KNOCKERS if knocker is not NFPKD_DISKLESS]
        rates = _RATES[:1] if scale.quick else _RATES
        plain = itertools.product(knockers, (0, *rates), [_ONE])
        spoofed = itertools.product([NFPKD_ITSELF], rates, [_MANY])
        self._cases = {str(case): case for case in itertools.starmap(_Case, (*plain, *spoofed))}
        self.systems = tuple(sorted(self._cases, key=lambda name: knockers.index(self._cases[name].knocker)))
        self.reference = str(_Case(NFPKD_ITSELF, 0, _ONE))
        self.targets = tuple(
            target
            for name, case in self._cases.items()
            if case.knocker is NFPKD_ITSELF and case.rate
            for target in (
                Target(f"{name}: no lost knock", name, "lost", at_most=0.0),
                Target(f"{name}: p99 at most 3 times idle", name, "p99", at_most=3.0, of=(self.reference,)),
            )
        )

    def missing(self) -> Mapping[str, str]:
        absent = missing_knockers(KNOCKERS)
        return {name: absent[case.knocker.name] for name, case in self._cases.items() if case.knocker.name in absent}

    def run(self, system: str) -> Mapping[str, float]:
        case = self._cases[system]
        knocker = case.knocker
        count = min(self._samples, knocker.most_samples)
        if not knocker.keeps_first_syn:
            count = min(count, self._peers_samples)
        retry = not knocker.keeps_first_syn
        with make_stage() as lab, knocker.running(lab) as door, clients(lab, door) as client:
            warm_up(client, knocker)
            with self._garbage(lab, case) as traffic:
                samples = [client.open_door(patience=_PATIENCE_SECONDS, retry=retry) for _ in range(count)]
                reached = {"garbage": traffic.stop().rate} if traffic else {}
        return summarise(samples) | reached

    @contextlib.contextmanager
    def _garbage(self, lab: Lab, case: _Case) -> Iterator[Traffic | None]:
        if not case.rate:
            yield None
            return
        host, port = lab.network.client, case.knocker.flooded_port
        with contextlib.ExitStack() as stack:
            with on_core(LOAD_CORE):
                if case.knocker in (NFPKD_ITSELF, NF_PKD):
                    tag = NF_PKD_TAG if case.knocker is NF_PKD else TAG
                    flood = self._load.knocks(host, SERVER4, port, tag=tag, rate=case.rate, sources=case.sources)
                else:
                    flood = self._load.udp(host, SERVER4, port, rate=case.rate)
                traffic = stack.enter_context(flood)
            time.sleep(0.2)
            yield traffic


class Unrelated(Measurement):
    """Datagrams of 112 bytes, as many as one core can send, to a sink on the server that counts them.

    A hundred genuine knocks a second arrive meanwhile, everywhere.  "All UDP through user
    space" is how nf-pkd is asked about knocks; an empty listener stands in for it.  "Conntrack
    alone" is a firewall with one rule, for established traffic: any that knows connections.
    """

    name = "unrelated"
    title = "unrelated UDP packets through the host, while knocks arrive"
    systems = ("no firewall", "nfpkd", "all UDP through user space", "conntrack alone", "nf-pkd")
    figures = (Figure("arrived", "packets/s"), Figure("of those sent", "%"))
    reference = systems[0]
    targets = (Target("at least 0.95 of no firewall", "nfpkd", "arrived", at_least=0.95, of=(systems[0],)),)

    def __init__(self, scale: Scale, load: Load) -> None:
        self._seconds = scale.seconds
        self._load = load

    def missing(self) -> Mapping[str, str]:
        return missing_knockers([NF_PKD])

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab, contextlib.ExitStack() as stack:
            if system == self.systems[1]:
                lab.actions.write("rules.json", open_rule())
                stack.enter_context(guarding(lab))
            elif system == self.systems[2]:
                stack.enter_context(queue_rules(lab.network, udp=True))
                stack.enter_context(empty_listener(lab))
            elif system == self.systems[3]:
                load_ruleset(lab.network, lab.folder, _CONNTRACK)
            elif system == self.systems[4]:
                stack.enter_context(NF_PKD.running(lab))
            with on_core(SERVER_CORE):
                sink = stack.enter_context(self._load.sink(lab.network.server, _SINK_PORT))
            knocks = make_knocks(int(self._seconds * _KNOCKS_A_SECOND))
            sources = [lab.fresh_address() for _ in knocks]
            pool = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            with on_core(LOAD_CORE):
                traffic = stack.enter_context(self._load.udp(lab.network.client, SERVER4, _SINK_PORT))
            knocking = pool.submit(send_knocks, lab.network, knocks, rate=_KNOCKS_A_SECOND, sources=sources)
            time.sleep(self._seconds)
            sent = traffic.stop()
            knocking.result()
            arrived = sink.stop()
        return {"arrived": arrived.rate, "of those sent": 100 * arrived.packets / sent.packets}
