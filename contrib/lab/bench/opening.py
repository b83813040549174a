"""A client that knocks and connects, and a clock that runs from the first to the second.

The clock starts right before the knock is sent and ends when the client's kernel
says that a connection is made.  What a knock consists of is made before.  The SYN
is sent right behind the knock, as a client does that knocks and connects.

Knockers that do not hold that SYN lose it, and the client's kernel would send
another after a second, which would hide what the server took.  For them a connection
is tried again every 0.2 ms, each time from a socket of its own.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.bench.cores import CLIENT_CORE, on_core
from lab.bench.figures import percentile
from lab.hosts import Lab
from support.network import SERVER4, listen_tcp

RETRY_SECONDS = 0.0002
# A knock that has opened nothing by now is lost.
PATIENCE_SECONDS = 2.0
# How many tries stay open at once; the oldest is given up for a new one.
_MAX_TRIES = 200
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Between two samples the server comes to rest.
_REST_SECONDS = 0.003


@dataclass(frozen=True)
class Knocking:
    """What opens *port*: datagrams, each with the port that it is sent to."""

    port: int
    datagrams: Sequence[tuple[bytes, int]]


# From the number of a sample and the address that it comes from.
MakeKnocking = Callable[[int, str], Knocking]


@dataclass(frozen=True)
class Door:
    """A knocker at work: how it is knocked at, and the ports that it guards."""

    make: MakeKnocking
    ports: Sequence[int]


# Seconds from the knock to the connection, None if there was none.
Sample = float | None


class Client:
    """Knocks from a fresh address each time; use it inside ``clients``."""

    def __init__(self, lab: Lab, door: Door, listeners: Sequence[socket.socket]) -> None:
        self._lab = lab
        self._door = door
        self._listeners = listeners
        self._sent = 0

    def open_door(self, *, gap: float = 0.0, patience: float = PATIENCE_SECONDS, retry: bool = False) -> Sample:
        """Knock, wait for *gap* seconds and connect: with one SYN, or with *retry* until one gets through."""
        source = self._lab.fresh_address()
        knocking = self._door.make(self._sent, source)
        self._sent += 1
        time.sleep(_REST_SECONDS)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((source, 0))
            started = time.perf_counter()
            for payload, port in knocking.datagrams:
                udp.sendto(payload, (SERVER4, port))
            if gap:
                sent = time.perf_counter()
                while time.perf_counter() - sent < gap:
                    pass
            found = _connect(source, knocking.port, started, patience, retry=retry)
        self._empty_backlog()
        return found

    def _empty_backlog(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()


def _connect(source: str, port: int, started: float, patience: float, *, retry: bool) -> float | None:
    tries: collections.deque[socket.socket] = collections.deque()
    with select.epoll() as poller:
        try:
            while (elapsed := time.perf_counter() - started) < patience:
                if retry or not tries:
                    tries.append(_send_syn(source, port))
                    poller.register(tries[-1], select.EPOLLOUT)
                    if len(tries) > _MAX_TRIES:
                        tries.popleft().close()
                # epoll's own patience is counted in milliseconds.
                select.select([poller], [], [], RETRY_SECONDS if retry else patience - elapsed)
                for number, event in poller.poll(0):
                    if not event & (select.EPOLLERR | select.EPOLLHUP):
                        return time.perf_counter() - started
                    poller.unregister(number)
        finally:
            for sock in tries:
                sock.close()
    return None


def _send_syn(source: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.bind((source, 0))
    sock.connect_ex((SERVER4, port))
    return sock


@contextlib.contextmanager
def clients(lab: Lab, door: Door) -> Iterator[Client]:
    """Yield a client; this thread is inside the client's host meanwhile, on a core of its own, undisturbed by gc."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listen_tcp(lab.network.server, port)) for port in door.ports]
        for listener in listeners:
            listener.setblocking(False)
        stack.enter_context(lab.network.client.entered())
        stack.enter_context(on_core(CLIENT_CORE))
        gc.disable()
        stack.callback(gc.enable)
        yield Client(lab, door, listeners)


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the figures of a round: milliseconds, and how many knocks came to nothing."""
    opened = [seconds * 1000 for seconds in samples if seconds is not None]
    return {
        "p50": percentile(opened, 0.50),
        "p99": percentile(opened, 0.99),
        "lost": float(len(samples) - len(opened)),
    }
