"""A long run: packets and reloads without end, and nothing may grow."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab.hosts import ANY_RATE, KNOCK_PORT, PORT, TAG, Lab, make_lab, resident_kib
from lab.load import build_load
from lab.torture.result import Result
from nfpkd.demo.process import Followed
from support.network import SERVER4, rule

MANY = 1 << 22
# More than the verifier judges beside its reloads; what is too much is lost, and not counted.
_RATE = 60_000
_MOST_GROWTH_KIB = 5 * 1024
# It is a flood from forged sources all the while.
_LEAST_SERVED = 0.99
_RELOADS_AT_ONCE = 50
# What a client's address may knock, every so many reloads.
_KNOCKS_AT_ONCE = 20


class _Use(NamedTuple):
    resident_kib: int
    descriptors: int
    threads: int


def try_soak(*, long: bool) -> Iterator[Result]:
    """Yield what the daemon uses after millions of packets and thousands of reloads."""
    packets, reloads = (10_000_000, 10_000) if long else (100_000, 100)
    with build_load() as load, make_lab() as lab, lab.serving():
        _write_rules(lab, 0)
        with (
            lab.running("--source-limit", "1000000") as run,
            load.knocks(lab.network.client, SERVER4, KNOCK_PORT, tag=TAG, rate=_RATE, sources=MANY),
        ):
            uses = []
            served = asked = judged = done = 0
            while judged < packets or done < reloads:
                _reload(lab, run, _RELOADS_AT_ONCE)
                done += _RELOADS_AT_ONCE
                asked += _KNOCKS_AT_ONCE
                served += _knock(lab, _KNOCKS_AT_ONCE)
                judged = _judged(lab)
                uses.append(_measure(run.process.pid))
    # By the first measurement everything has been used once.
    before, after = uses[0], uses[-1]
    grown = after.resident_kib - before.resident_kib
    yield Result(
        "a long run",
        f"{judged:,} packets judged, {done:,} reloads, {asked:,} genuine knocks among them",
        f"memory {grown / 1024:+.1f} MiB to {after.resident_kib / 1024:.0f} MiB, descriptors {before.descriptors} "
        f"to {after.descriptors}, threads {before.threads} to {after.threads}; {served:,} clients served",
        f"memory grows by less than 5 MiB, the rest stays, {_LEAST_SERVED:.0%} of the clients are served",
        grown < _MOST_GROWTH_KIB and before[1:] == after[1:] and served >= _LEAST_SERVED * asked,
    )


def _write_rules(lab: Lab, turn: int) -> None:
    lab.actions.write(
        "door.json", rule("door", PORT, rate=ANY_RATE), rule("other", 3000 + turn % 100, description=f"turn {turn}")
    )


def _reload(lab: Lab, run: Followed, times: int) -> None:
    for turn in range(times):
        _write_rules(lab, turn)
        run.process.send_signal(signal.SIGHUP)
        run.wait_for("rules reloaded")


def _knock(lab: Lab, clients: int) -> int:
    addresses = [lab.fresh_address() for _ in range(clients)]
    with lab.network.client.entered():
        return sum(lab.knock_and_connect(address).seconds is not None for address in addresses)


def _judged(lab: Lab) -> int:
    """Return how many knock-shaped packets were handed to the verifier, and not lost on the way."""
    status = lab.status()
    verifier = status["verifier"]
    lost: int = verifier["queue_full"] + verifier["socket_full"]
    handed_over: int = status["counters"]["knocks"]["packets"]
    return handed_over - lost


def _measure(process: int) -> _Use:
    folder = Path(f"/proc/{process}")
    return _Use(resident_kib(process), len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))
