"""The kernel's packet queue: alone imports netfilterqueue."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

from netfilterqueue import NetfilterQueue, Packet

from nfpkd.errors import KernelError
from nfpkd.firewall.netlink import pack_attribute, pack_message
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
# How many packets that follow each other, and fare alike, wait for one verdict on all of them.  A verdict is
# a message to the kernel, and costs as much as a packet's judgement: by this, and by having NetfilterQueue
# receive, garbage took 6.0 us instead of 8.7.  They count as queued meanwhile: a small part of QUEUE_LENGTH.
MOST_UNANSWERED = 32

# linux/netfilter/nfnetlink_queue.h: struct nfqnl_msg_verdict_hdr is the verdict and a packet's
# number, in network byte order; this message is for all packets up to that one.
_VERDICT_BATCH = (3 << 8) | 3
_NFQA_VERDICT_HDR = 2
_VERDICT = struct.Struct(">II")
# linux/netfilter.h
_NF_DROP = 0
_NF_ACCEPT = 1

# A packet from its IP header on, and the index of the interface it came in by; returns whether it may go on.
Handler = Callable[[bytes, int], bool]


class PacketQueue:
    """Queue number *number*: every packet in it goes to *handler*.

    Every packet gets exactly one verdict, in the order of their arrival.  A
    handler that raises lets its packet go on: the guard behind the queue
    protects the ports, and a packet that stayed queued would block the ones
    behind it.
    """

    def __init__(self, number: int, handler: Handler) -> None:
        """Take the queue; raises KernelError if it is taken or the privilege is missing."""
        self._handler = handler
        self._number = number
        self._left = 0
        self._unanswered = 0
        self._last = 0
        self._accepts = True
        self.failures = 0
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
        self._left = BATCH
        try:
            self._queue.run(block=False)
        except _EndOfTurnError:
            # NetfilterQueue would go on for as long as packets come.
            pass
        finally:
            self._answer()

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
            if accept is not self._accepts or self._unanswered >= MOST_UNANSWERED:
                self._answer()
            self._accepts = accept
            self._last = packet.id
            self._unanswered += 1
        self._left -= 1
        if not self._left:
            raise _EndOfTurnError

    def _answer(self) -> None:
        """Tell the kernel the verdict on all packets that wait for theirs; raises OSError if it takes none."""
        if not self._unanswered:
            return
        verdict = _VERDICT.pack(_NF_ACCEPT if self._accepts else _NF_DROP, self._last)
        attribute = pack_attribute(_NFQA_VERDICT_HDR, verdict)
        self._socket.send(pack_message(_VERDICT_BATCH, 0, socket.AF_UNSPEC, self._number, attribute))
        self._unanswered = 0


class _EndOfTurnError(Exception):
    """The event loop's turn: there may be more packets."""
