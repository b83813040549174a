"""A raw netlink socket to nf_tables: batches, of which the kernel does all or nothing, and dumps.

Message formats: linux/netfilter/nfnetlink.h and nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nfpkd.errors import NetlinkError
from nfpkd.firewall.netlink import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    iterate_messages,
    pack_message,
)

NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLM_F_ACK = 0x004
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x010
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

_ERRNO = struct.Struct("=i")
# linux/err.h
_MAX_ERRNO = 4095
# The kernel fills what it is given, up to 32 KiB.
_BUFFER = 1 << 16
# The kernel answers while it is asked; this only bounds a surprise.
_PATIENCE_SECONDS = 5


class Message(NamedTuple):
    """*kind* is one of nf_tables' messages, for an object in an inet table; *flags* go beside those that all have."""

    kind: int
    attributes: bytes
    flags: int = 0


class Channel:
    """A socket in the network namespace of whoever makes it.

    It stays open, because to close one waits until the kernel has destroyed all that
    transactions deleted before (nft_rcv_nl_event() in nf_tables_api.c): 14 ms on 6.18.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.settimeout(_PATIENCE_SECONDS)
        weakref.finalize(self, self._socket.close)

    def send_batch(self, messages: Sequence[Message], *, commit: bool = True) -> None:
        """Have the kernel do all of *messages*, or only check them without *commit*.

        Raises OSError for the first refusal, and then nothing is done.
        """
        batch = [self._pack(_NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, b"")]
        first = self._sequence + 1
        for message in messages:
            flags = _NLM_F_ACK | message.flags
            batch.append(self._pack(_nf_tables(message.kind), flags, NFPROTO_INET, 0, message.attributes))
        last = self._sequence
        if commit:
            batch.append(self._pack(_NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, b""))
        self._socket.send(b"".join(batch))
        answers = 0
        while answers < len(messages):
            for error in read_errors(self._socket.recv(_BUFFER), range(first, last + 1)):
                answers += 1
                if error:
                    raise OSError(error, os.strerror(error))

    def dump(self, kind: int, attributes: bytes) -> Iterator[bytes]:
        """Yield the bodies of all objects in inet tables that a question of *kind* asks for.

        Raises OSError as the kernel refuses, and NetlinkError, at the end, if they changed meanwhile.
        """
        self._socket.send(self._pack(_nf_tables(kind), _NLM_F_DUMP, NFPROTO_INET, 0, attributes))
        asked = self._sequence
        interrupted = False
        while True:
            for message in iterate_messages(self._socket.recv(_BUFFER)):
                if message.sequence != asked:
                    # An answer to something earlier that was given up.
                    continue
                interrupted = interrupted or bool(message.flags & _NLM_F_DUMP_INTR)
                if message.kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    if error := _read_error(message.body):
                        raise OSError(error, os.strerror(error))
                    if interrupted:
                        raise NetlinkError("it changed while it was read")
                    return
                yield message.body

    def _pack(self, kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
        self._sequence += 1
        return pack_message(kind, flags, family, resource, body, self._sequence)


def read_errors(answer: bytes, sequences: range) -> list[int]:
    """Return the errno of each acknowledgement in *answer* of a message within *sequences*; 0 is success.

    What answers something earlier, which was given up, is passed over.
    """
    try:
        messages = [message for message in iterate_messages(answer) if message.sequence in sequences]
        return [_read_error(message.body) for message in messages if message.kind == _NLMSG_ERROR]
    except NetlinkError:
        return [errno.EPROTO]


def _read_error(body: bytes) -> int:
    """Return the errno that an acknowledgement or the end of a dump tells; 0 is success."""
    if len(body) < _ERRNO.size:
        return errno.EPROTO
    (negative,) = _ERRNO.unpack_from(body)
    return -negative if -_MAX_ERRNO <= negative <= 0 else errno.EPROTO


def _nf_tables(kind: int) -> int:
    return (NFNL_SUBSYS_NFTABLES << 8) | kind
