"""The kernel's packet queue: alone imports netfilterqueue."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from netfilterqueue import NetfilterQueue, Packet

from nfpkd.errors import KernelError
from nfpkd.verifier.listeners import find_queue_listeners

_log = logging.getLogger(__name__)

# A short queue with a large socket buffer serves knocks best under a flood: what
# waits, waits shortly.  Measured at 128 to 256 packets and 8 MiB.
QUEUE_LENGTH = 256
SOCKET_BUFFER = 8 * 1024 * 1024
# Enough for a knock behind the longest headers seen in practice; what is cut off here is no knock.
COPY_RANGE = 512
# How many packets are judged before the event loop gets its turn.
BATCH = 256

# A packet from its IP header on, and the index of the interface it came in by; returns whether it may go on.
Handler = Callable[[bytes, int], bool]


class PacketQueue:
    """Queue number *number*: every packet in it goes to *handler*.

    Every packet gets exactly one verdict.  A handler that raises lets its
    packet go on: the guard behind the queue protects the ports, and a packet
    that stayed queued would block the ones behind it.
    """

    def __init__(self, number: int, handler: Handler) -> None:
        """Take the queue; raises KernelError if it is taken or the privilege is missing."""
        self._handler = handler
        self.failures = 0
        self.overruns = 0
        try:
            self._queue = NetfilterQueue()
            self._queue.bind(number, self._on_packet, max_len=QUEUE_LENGTH, range=COPY_RANGE, sock_len=SOCKET_BUFFER)
        except OSError:
            if number in find_queue_listeners():
                raise KernelError(
                    f"queue {number} is used by another process",
                    'end that one, or choose another number with "--queue"',
                ) from None
            raise KernelError(
                f"cannot listen on queue {number}", "nfpkd needs CAP_NET_ADMIN: run it with sudo"
            ) from None
        # A second descriptor for the same socket, which closes without closing the first.
        self._socket = socket.fromfd(self._queue.get_fd(), socket.AF_NETLINK, socket.SOCK_RAW)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Judge the packets that are waiting, but at most BATCH of them, so that a flood stops nothing else."""
        self._queue.run_socket(_Batch(self._socket, self))  # type: ignore[arg-type]

    def close(self) -> None:
        """Give the queue back; what is still in it is dropped by the kernel."""
        self._queue.unbind()
        self._socket.close()

    def _on_packet(self, packet: Packet) -> None:
        accept = True
        try:
            accept = self._handler(packet.get_payload(), packet.indev)
        except Exception:  # noqa: BLE001  (one packet's fault must not stop the next)
            self.failures += 1
            _log.exception("a packet could not be judged; it goes on to the guard")
        finally:
            if accept:
                packet.accept()
            else:
                packet.drop()


class _Batch:
    """What NetfilterQueue takes for a socket; it runs dry after BATCH messages."""

    def __init__(self, sock: socket.socket, owner: PacketQueue) -> None:
        self._socket = sock
        self._owner = owner
        self._left = BATCH

    def recv(self, size: int) -> bytes:
        if not self._left:
            raise BlockingIOError(errno.EAGAIN, "enough for one turn")
        self._left -= 1
        try:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._owner.overruns += 1
            raise
