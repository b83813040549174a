"""How netlink messages of nf_tables are laid out.

::

    0        4      6       8          12       16       17        18         20
    | length | type | flags | sequence | sender | family | version | resource | attributes ...
    `---------------- nlmsghdr ----------------'`--------- nfgenmsg ---------'

An attribute is its length (header included), its type and its value, padded to
4 bytes.  The headers are in the machine's byte order, numbers in attributes in
the network's.

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("=IHHII")
NFGENMSG = struct.Struct("=BBH")
ATTRIBUTE = struct.Struct("=HH")

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_INET = 1


def pad(length: int) -> int:
    """Return *length* rounded up to the 4 bytes that messages and attributes are aligned to."""
    return (length + 3) & ~3
