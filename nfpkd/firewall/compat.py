"""The queue statement for kernels without nft_queue, by a raw netlink message.

Some cloud and microVM kernels lack nft_queue but have nft_compat, through
which a rule of ours can carry the xtables target NFQUEUE.  libnftables cannot
write such a rule, so this module does.

Message formats: linux/netfilter/nfnetlink.h, nf_tables.h, nf_tables_compat.h and
xt_NFQUEUE.h.  Numbers are in network byte order, the target's own data in the
machine's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from nfpkd.firewall.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NFGENMSG,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NLA_F_NESTED,
    pack_attribute,
    pad,
)

_ERRNO = struct.Struct("=i")

_NLM_F_REQUEST = 0x001
_NLM_F_ACK = 0x004
_NLM_F_CREATE = 0x400
_NLM_F_APPEND = 0x800
_NLMSG_ERROR = 2
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17
_NFT_MSG_NEWTABLE = 0
_NFT_MSG_NEWCHAIN = 3
_NFT_MSG_NEWRULE = 6

_NFTA_TABLE_NAME = 1
_NFTA_CHAIN_TABLE = 1
_NFTA_CHAIN_NAME = 3
_NFTA_RULE_TABLE = 1
_NFTA_RULE_CHAIN = 2
_NFTA_RULE_EXPRESSIONS = 4
_NFTA_RULE_USERDATA = 7
_NFTA_LIST_ELEM = 1
_NFTA_EXPR_NAME = 1
_NFTA_EXPR_DATA = 2
_NFTA_TARGET_NAME = 1
_NFTA_TARGET_REV = 2
_NFTA_TARGET_INFO = 3
_NFTNL_UDATA_RULE_COMMENT = 0

# struct xt_NFQ_info_v3: queue number, how many queues, flags; padded to 8 bytes.
_NFQUEUE_REVISION = 3
_NFQUEUE_INFO = struct.Struct("=HHHxx")
_NFQ_FLAG_BYPASS = 0x01

_ANSWER_SIZE = 65536


class CompatQueue:
    """Adds queue rules as xtables targets, in the network namespace of the calling thread."""

    def __init__(self) -> None:
        self._sequence = 0

    def is_supported(self) -> bool:
        """Ask the kernel, by a batch without an end, which it checks and then forgets."""
        table, chain = f"nfpkd-probe-{os.getpid()}", "probe"
        messages = [
            self._message(_NFT_MSG_NEWTABLE, pack_attribute(_NFTA_TABLE_NAME, _text(table))),
            self._message(
                _NFT_MSG_NEWCHAIN,
                pack_attribute(_NFTA_CHAIN_TABLE, _text(table)) + pack_attribute(_NFTA_CHAIN_NAME, _text(chain)),
            ),
            self._message(_NFT_MSG_NEWRULE, _queue_rule(table, chain, 0, "")),
        ]
        try:
            self._send(messages, commit=False)
        except OSError:
            return False
        return True

    def add_rule(self, table: str, chain: str, number: int, comment: str) -> None:
        """Append ``queue num NUMBER bypass`` to *chain* of an inet table; raises OSError as the kernel refuses."""
        self._send([self._message(_NFT_MSG_NEWRULE, _queue_rule(table, chain, number, comment))], commit=True)

    def _message(self, kind: int, attributes: bytes) -> bytes:
        flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_APPEND
        return self._header((NFNL_SUBSYS_NFTABLES << 8) | kind, flags, NFPROTO_INET, 0, attributes)

    def _header(self, kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
        self._sequence += 1
        content = NFGENMSG.pack(family, 0, socket.htons(resource)) + body
        return HEADER.pack(HEADER.size + len(content), kind, flags, self._sequence, 0) + content

    def _send(self, messages: list[bytes], *, commit: bool) -> None:
        """Send one batch and wait for the answer to each message; raises OSError for the first refusal."""
        batch = self._header(_NFNL_MSG_BATCH_BEGIN, _NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, b"")
        batch += b"".join(messages)
        if commit:
            batch += self._header(_NFNL_MSG_BATCH_END, _NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, b"")
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as sock:
            # The kernel answers while the batch is sent; this only bounds a surprise.
            sock.settimeout(5)
            sock.send(batch)
            answers = 0
            while answers < len(messages):
                for error in _read_errors(sock.recv(_ANSWER_SIZE)):
                    answers += 1
                    if error:
                        raise OSError(error, os.strerror(error))


def _read_errors(answer: bytes) -> list[int]:
    """Return the errno of each acknowledgement in *answer*, which the kernel wrote; 0 is success."""
    errors = []
    offset = 0
    while offset + HEADER.size <= len(answer):
        length, kind, *_ = HEADER.unpack_from(answer, offset)
        if kind == _NLMSG_ERROR and offset + HEADER.size + _ERRNO.size <= len(answer):
            (negative,) = _ERRNO.unpack_from(answer, offset + HEADER.size)
            errors.append(-negative)
        offset += max(HEADER.size, pad(length))
    return errors or [errno.EPROTO]


def _queue_rule(table: str, chain: str, number: int, comment: str) -> bytes:
    target = (
        pack_attribute(_NFTA_TARGET_NAME, _text("NFQUEUE"))
        + pack_attribute(_NFTA_TARGET_REV, struct.pack(">I", _NFQUEUE_REVISION))
        + pack_attribute(_NFTA_TARGET_INFO, _NFQUEUE_INFO.pack(number, 1, _NFQ_FLAG_BYPASS))
    )
    expression = pack_attribute(_NFTA_EXPR_NAME, _text("target")) + _nested(_NFTA_EXPR_DATA, target)
    rule = (
        pack_attribute(_NFTA_RULE_TABLE, _text(table))
        + pack_attribute(_NFTA_RULE_CHAIN, _text(chain))
        + _nested(_NFTA_RULE_EXPRESSIONS, _nested(_NFTA_LIST_ELEM, expression))
    )
    if comment:
        value = _text(comment)
        rule += pack_attribute(_NFTA_RULE_USERDATA, bytes((_NFTNL_UDATA_RULE_COMMENT, len(value))) + value)
    return rule


def _nested(kind: int, value: bytes) -> bytes:
    return pack_attribute(kind | NLA_F_NESTED, value)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
