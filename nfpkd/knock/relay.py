"""Copying between a connection and two descriptors, as ssh's ProxyCommand wants it."""

from __future__ import annotations

import contextlib
import os
import select
import socket

CHUNK = 65536


class _Flow:
    """One direction: reads no more until what it has read is written, so it never holds more than one chunk."""

    def __init__(self, source: int, sink: int, at_once: int) -> None:
        self.source = source
        self.sink = sink
        self.at_once = at_once
        self.pending = memoryview(b"")
        self.ended = False

    def place(self) -> int:
        return self.sink if self.pending else self.source

    def event(self) -> int:
        return select.POLLOUT if self.pending else select.POLLIN

    def move(self) -> None:
        try:
            if self.pending:
                written = os.write(self.sink, self.pending[: self.at_once])
                self.pending = self.pending[written:]
            else:
                self.pending = memoryview(os.read(self.source, CHUNK))
                self.ended = not self.pending
        except BlockingIOError:
            pass
        except OSError:
            # A reset connection, or a reader that is gone: nothing more can go this way.
            self.ended = True


def relay(sock: socket.socket, source: int, sink: int) -> None:
    """Copy *source* to *sock* and *sock* to *sink* until both have ended.

    The end of one is passed on while the other goes on: who has said all may
    still be listening.  *sink* leads nowhere afterwards.
    """
    sock.setblocking(False)
    outward = _Flow(source, sock.fileno(), CHUNK)
    # No more than a pipe takes without blocking once it is ready (POSIX): the
    # descriptors are shared with others, who may not want them non-blocking.
    inward = _Flow(sock.fileno(), sink, select.PIPE_BUF)
    flows = [outward, inward]
    while flows:
        poller = select.poll()
        wanted: dict[int, int] = {}
        for flow in flows:
            wanted[flow.place()] = wanted.get(flow.place(), 0) | flow.event()
        for place, events in wanted.items():
            poller.register(place, events)
        ready = dict(poller.poll())
        for flow in flows:
            # What is wrong with a descriptor shows in reading or writing it.
            if ready.get(flow.place(), 0) & (flow.event() | select.POLLERR | select.POLLHUP | select.POLLNVAL):
                flow.move()
        if outward in flows and outward.ended:
            flows.remove(outward)
            # If the other side was faster, there is nothing left to shut.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        if inward in flows and inward.ended:
            flows.remove(inward)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sink)
            os.close(nowhere)
