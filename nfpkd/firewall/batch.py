"""Sending nf_tables one batch of messages, of which it does all or none, by a raw netlink socket.

Message formats: linux/netfilter/nfnetlink.h and nf_tables.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from nfpkd.errors import NetlinkError
from nfpkd.firewall.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NFGENMSG,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    iterate_messages,
)

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLMSG_ERROR = 2
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

_ERRNO = struct.Struct("=i")
_ANSWER_SIZE = 65536
# The kernel answers while the batch is sent; this only bounds a surprise.
_PATIENCE_SECONDS = 5


class Message(NamedTuple):
    """*kind* is one of nf_tables' messages, for an object in an inet table; *flags* go beside those that all have."""

    kind: int
    attributes: bytes
    flags: int = 0


def send_batch(messages: Sequence[Message], *, commit: bool = True) -> None:
    """Have the kernel do all of *messages*, or only check them without *commit*.

    Raises OSError for the first refusal, and then nothing is done.
    """
    batch = [_pack(_NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, 0, NFNL_SUBSYS_NFTABLES, b"")]
    for sequence, message in enumerate(messages, 1):
        flags = NLM_F_REQUEST | NLM_F_ACK | message.flags
        kind = (NFNL_SUBSYS_NFTABLES << 8) | message.kind
        batch.append(_pack(kind, flags, sequence, NFPROTO_INET, 0, message.attributes))
    if commit:
        batch.append(_pack(_NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, 0, NFNL_SUBSYS_NFTABLES, b""))
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as sock:
        sock.settimeout(_PATIENCE_SECONDS)
        sock.send(b"".join(batch))
        answers = 0
        while answers < len(messages):
            for error in read_errors(sock.recv(_ANSWER_SIZE)):
                answers += 1
                if error:
                    raise OSError(error, os.strerror(error))


def read_errors(answer: bytes) -> list[int]:
    """Return the errno of each acknowledgement in *answer*, which the kernel wrote; 0 is success."""
    errors = []
    with contextlib.suppress(NetlinkError):
        for kind, _, _, body in iterate_messages(answer):
            if kind == _NLMSG_ERROR and len(body) >= _ERRNO.size:
                errors.append(-_ERRNO.unpack_from(body)[0])
    return errors or [errno.EPROTO]


def _pack(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    content = NFGENMSG.pack(family, 0, socket.htons(resource)) + body
    return HEADER.pack(HEADER.size + len(content), kind, flags, sequence, 0) + content
