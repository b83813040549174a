"""Who listens on the kernel's packet queues, and what they lost."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

# Kernel: net/netfilter/nfnetlink_queue.c, seq_show().
_PROC = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_ROW = re.compile(r"(?:\s*[0-9]{1,20}\b){7,}\s*")


class Listener(NamedTuple):
    """A process on a queue: *port_id* is its netlink socket's, nearly always its process id.

    *waiting* packets have no verdict yet.  *queue_full* and *socket_full* count
    packets that the kernel dropped, because too many waited or the process was too slow.
    """

    port_id: int
    waiting: int
    queue_full: int
    socket_full: int


def find_queue_listeners() -> dict[int, Listener]:
    """Return the queues of this network namespace that a process listens on, by number."""
    with contextlib.suppress(OSError):
        return parse_listeners(_PROC.read_text())
    return {}


def parse_listeners(table: str) -> dict[int, Listener]:
    """Return the listeners in the text of /proc/net/netfilter/nfnetlink_queue; what is no row is passed over."""
    rows = [[int(column) for column in line.split()] for line in table.splitlines() if _ROW.fullmatch(line)]
    return {row[0]: Listener(row[1], row[2], row[5], row[6]) for row in rows}
