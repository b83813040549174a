"""The queue statement for kernels without nft_queue, by a raw netlink message.

Some cloud and microVM kernels lack nft_queue but have nft_compat, through
which a rule of ours can carry the xtables target NFQUEUE.  libnftables cannot
write such a rule, so this module does.

Message formats: linux/netfilter/nfnetlink.h, nf_tables.h, nf_tables_compat.h and
xt_NFQUEUE.h.  Numbers are in network byte order, the target's own data in the
machine's.
"""

from __future__ import annotations

import os
import struct

from nfpkd.firewall.channel import NLM_F_APPEND, NLM_F_CREATE, Channel, Message
from nfpkd.firewall.netlink import pack_attribute, pack_nested, pack_text

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


class CompatQueue:
    """Adds queue rules as xtables targets, through *channel*."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def is_supported(self) -> bool:
        """Ask the kernel, by a batch without an end, which it checks and then forgets."""
        table, chain = f"nfpkd-probe-{os.getpid()}", "probe"
        named = pack_attribute(_NFTA_CHAIN_TABLE, pack_text(table)) + pack_attribute(_NFTA_CHAIN_NAME, pack_text(chain))
        messages = (
            Message(_NFT_MSG_NEWTABLE, pack_attribute(_NFTA_TABLE_NAME, pack_text(table)), NLM_F_CREATE),
            Message(_NFT_MSG_NEWCHAIN, named, NLM_F_CREATE),
            _add_rule(_queue_rule(table, chain, 0, "")),
        )
        try:
            self._channel.send_batch(messages, commit=False)
        except OSError:
            return False
        return True

    def add_rule(self, table: str, chain: str, number: int, comment: str) -> None:
        """Append ``queue num NUMBER bypass`` to *chain* of an inet table; raises OSError as the kernel refuses."""
        self._channel.send_batch([_add_rule(_queue_rule(table, chain, number, comment))])


def _add_rule(described: bytes) -> Message:
    return Message(_NFT_MSG_NEWRULE, described, NLM_F_CREATE | NLM_F_APPEND)


def _queue_rule(table: str, chain: str, number: int, comment: str) -> bytes:
    target = (
        pack_attribute(_NFTA_TARGET_NAME, pack_text("NFQUEUE"))
        + pack_attribute(_NFTA_TARGET_REV, struct.pack(">I", _NFQUEUE_REVISION))
        + pack_attribute(_NFTA_TARGET_INFO, _NFQUEUE_INFO.pack(number, 1, _NFQ_FLAG_BYPASS))
    )
    expression = pack_attribute(_NFTA_EXPR_NAME, pack_text("target")) + pack_nested(_NFTA_EXPR_DATA, target)
    rule = (
        pack_attribute(_NFTA_RULE_TABLE, pack_text(table))
        + pack_attribute(_NFTA_RULE_CHAIN, pack_text(chain))
        + pack_nested(_NFTA_RULE_EXPRESSIONS, pack_nested(_NFTA_LIST_ELEM, expression))
    )
    if comment:
        value = pack_text(comment)
        rule += pack_attribute(_NFTA_RULE_USERDATA, bytes((_NFTNL_UDATA_RULE_COMMENT, len(value))) + value)
    return rule
