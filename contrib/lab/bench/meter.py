"""What a process used and what a queue handed on, from the kernel's own books."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nfpkd.verifier.listeners import parse_listeners
from support.network import Network

# Inside a network namespace it shows that namespace's queues.
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


class Reading(NamedTuple):
    """At *at* (monotonic seconds), the packets that had a verdict, and the seconds of CPU that giving them took."""

    at: float
    judged: int
    cpu: float


class Judging(NamedTuple):
    """So many packets were judged, in *seconds* by the clock and *cpu* seconds of CPU, the kernel's part included."""

    packets: int
    seconds: float
    cpu: float


def count_judged(table: str) -> int:
    """Return how many packets have had a verdict, by the text of nfnetlink_queue.

    Of the last number given are taken off those that still wait and those that the
    listener's socket had no room for (kernel: net/netfilter/nfnetlink_queue.c, seq_show()).
    """
    columns = [int(column) for column in table.split()]
    return columns[7] - columns[6] - columns[2] if columns else 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of *pid*, exact to the scheduler's nanoseconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory_kib(pid: int, name: str = "VmRSS") -> int:
    """Return one of the sizes in /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _read(network: Network) -> Reading:
    with network.server.entered():
        table = _QUEUES.read_text()
    # A netlink socket has its process's number, unless that has several.
    return Reading(time.monotonic(), count_judged(table), cpu_seconds(parse_listeners(table)[0].port_id))


def measure_judging(network: Network, work: Callable[[], object]) -> Judging:
    """Do *work*, which makes packets arrive, and return what the listener on the server's queue did with them."""
    before = _read(network)
    work()
    after = _read(network)
    judged = after.judged - before.judged
    if judged <= 0:
        raise RuntimeError("no packet was judged")
    return Judging(judged, after.at - before.at, after.cpu - before.cpu)
