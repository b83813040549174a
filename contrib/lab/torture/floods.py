"""Knocks through floods: are genuine clients served, how soon, and what does it cost everybody else?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from lab.hosts import ANY_RATE, KNOCK_PORT, PORT, TAG, Lab, Served, make_lab, resident_kib
from lab.load import Load, Sent, Traffic, build_load
from lab.torture.result import Result
from support.network import SERVER4, rule

# Not guarded: what goes there is none of nfpkd's business.
OTHER_PORT = 9999
MANY = 1 << 22


class _Flood(NamedTuple):
    """*wanted* is the share of clients that must be served, of whom each may knock three times."""

    what: str
    rate: int
    wanted: float
    sources: int = 1
    is_knocks: bool = True

    def start(self, load: Load, lab: Lab) -> AbstractContextManager[Traffic]:
        if self.is_knocks:
            client = lab.network.client
            return load.knocks(client, SERVER4, KNOCK_PORT, tag=TAG, rate=self.rate, sources=self.sources)
        return load.udp(lab.network.client, SERVER4, OTHER_PORT, rate=self.rate)


FLOODS = (
    _Flood("garbage knocks from one source", 200_000, 1.0),
    _Flood("garbage knocks, each from another forged source", 50_000, 0.99, sources=MANY),
    _Flood("other UDP", 100_000, 1.0, is_knocks=False),
)
_SLOWEST_P99 = 0.010
_MOST_GROWTH_KIB = 5 * 1024
_LEAST_SHARE = 0.95
_ROUND_SECONDS = 2.0
_KNOCK_EVERY_SECONDS = 0.1


def try_floods(*, long: bool) -> Iterator[Result]:
    """Yield how clients fared in each flood, and how other traffic fared beside knocks.

    The short form runs on machines that have other things to do: there nobody is judged by the clock.
    """
    with build_load() as load:
        for flood in FLOODS:
            yield _try_flood(flood, load, clients=1000 if long else 50, by_clock=long)
        if long:
            yield _try_other_traffic(load, rounds=9)


def _try_flood(flood: _Flood, load: Load, clients: int, *, by_clock: bool) -> Result:
    with make_lab() as lab, lab.serving():
        lab.actions.write("door.json", rule("door", PORT, rate=ANY_RATE))
        with lab.running() as run, load.sink(lab.network.server, OTHER_PORT) as sink:
            with flood.start(load, lab) as traffic:
                # The first knocks warm up what will run anyway.
                _knock(lab, 5)
                before = resident_kib(run.process.pid)
                served = _knock(lab, clients)
                grown = resident_kib(run.process.pid) - before
                sent = traffic.stop()
            lost = _lost(lab)
            # Garbage goes elsewhere.
            arrived = sink.stop().packets / sent.packets if not flood.is_knocks else None
    result = _judge(flood, sent, served, grown, lost, arrived)
    p99 = _percentile_99(served)
    if by_clock:
        return result._replace(wanted=f"{result.wanted}, p99 under 10 ms", good=result.good and p99 < _SLOWEST_P99)
    return result


def _judge(flood: _Flood, sent: Sent, served: list[Served], grown: int, lost: int, arrived: float | None) -> Result:
    times = [one.seconds for one in served if one.seconds is not None]
    share = len(times) / len(served)
    first = sum(one.knocks == 1 and one.seconds is not None for one in served) / len(served)
    seen = (
        f"{share:.1%} served, {first:.1%} by their first knock; p50 {statistics.median(times or [0]) * 1000:.1f} ms, "
        f"p99 {_percentile_99(served) * 1000:.1f} ms; memory {grown:+} KiB; {lost:,} packets lost at the queue"
    )
    wanted = f"{flood.wanted:.0%} served, memory flat"
    good = share >= flood.wanted and grown < _MOST_GROWTH_KIB
    if arrived is not None:
        seen += f"; {arrived:.1%} of it arrived"
        wanted += f", {_LEAST_SHARE:.0%} arrive"
        good = good and arrived >= _LEAST_SHARE
    how_much = f"{sent.rate / 1000:,.0f}k packets/s of {flood.rate / 1000:,.0f}k asked, {len(served):,} clients"
    return Result(flood.what, how_much, seen, wanted, good)


def _percentile_99(served: list[Served]) -> float:
    times = sorted(one.seconds for one in served if one.seconds is not None)
    return times[int(0.99 * len(times))] if times else float("inf")


def _knock(lab: Lab, clients: int) -> list[Served]:
    addresses = [lab.fresh_address() for _ in range(clients)]
    with lab.network.client.entered():
        return [lab.knock_and_connect(address) for address in addresses]


def _lost(lab: Lab) -> int:
    verifier = lab.status()["verifier"]
    return int(verifier["queue_full"]) + int(verifier["socket_full"])


def _try_other_traffic(load: Load, rounds: int) -> Result:
    """Compare what gets through to a port that nobody guards, as fast as it goes, while clients knock.

    Beside no firewall at all stands one that does nothing but track connections, as
    every stateful one does: the difference between the two is not nfpkd's.
    """
    rates: dict[str, list[float]] = {"nothing": [], "tracking": [], "nfpkd": []}
    with make_lab() as lab, lab.serving():
        lab.actions.write("door.json", rule("door", PORT, rate=ANY_RATE))
        tracking = lab.folder / "tracking.nft"
        tracking.write_text(_TRACKING)
        for _ in range(rounds):
            rates["nothing"].append(_measure_other(load, lab))
            lab.network.nft("-f", str(tracking))
            rates["tracking"].append(_measure_other(load, lab))
            lab.network.nft("delete", "table", "inet", "tracking")
            with lab.running():
                rates["nfpkd"].append(_measure_other(load, lab))
    nothing, tracked, guarded = (statistics.median(found) for found in rates.values())
    return Result(
        "other UDP at full speed, while clients knock and connect",
        f"{rounds} rounds of each, in turn, {1 / _KNOCK_EVERY_SECONDS:.0f} knocks a second",
        f"{guarded / tracked:.1%} of connection tracking alone, which is {tracked / nothing:.1%} "
        f"of the {nothing / 1000:,.0f}k packets/s without any firewall",
        f"at least {_LEAST_SHARE:.0%} of connection tracking alone",
        guarded >= _LEAST_SHARE * tracked,
    )


def _measure_other(load: Load, lab: Lab) -> float:
    with (
        load.sink(lab.network.server, OTHER_PORT) as sink,
        load.udp(lab.network.client, SERVER4, OTHER_PORT) as traffic,
    ):
        deadline = time.monotonic() + _ROUND_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            _knock(lab, 1)
            time.sleep(min(_KNOCK_EVERY_SECONDS, left))
        traffic.stop()
        return sink.stop().rate


_TRACKING = """
table inet tracking {
    chain prerouting {
        type filter hook prerouting priority -150
        ct state established counter
    }
}
"""
