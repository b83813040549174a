"""How netlink messages of nf_tables are laid out.

::

    0        4      6       8          12       16       17        18         20
    | length | type | flags | sequence | sender | family | version | resource | attributes ...
    `---------------- nlmsghdr ----------------'`--------- nfgenmsg ---------'

An attribute is its length (header included), its type and its value, padded to
4 bytes.  The headers are in the machine's byte order, numbers in attributes, and the
resource, in the network's.

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from nfpkd.errors import NetlinkError

HEADER = struct.Struct("=IHHII")
NFGENMSG = struct.Struct(">BBH")
ATTRIBUTE = struct.Struct("=HH")

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_INET = 1
_NLM_F_REQUEST = 0x001

_NLA_F_NESTED = 0x8000
_ATTRIBUTE_TYPE = 0x3FFF


def pack_message(kind: int, flags: int, family: int, resource: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a request of netfilter's; *body* is its attributes."""
    content = NFGENMSG.pack(family, 0, resource) + body
    return HEADER.pack(HEADER.size + len(content), kind, _NLM_F_REQUEST | flags, sequence, 0) + content


def pad(length: int) -> int:
    """Return *length* rounded up to the 4 bytes that messages and attributes are aligned to."""
    return (length + 3) & ~3


def pack_attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def pack_nested(kind: int, attributes: bytes) -> bytes:
    return pack_attribute(kind | _NLA_F_NESTED, attributes)


def pack_text(text: str) -> bytes:
    """Return *text* as a zero-terminated string."""
    return text.encode() + b"\0"


class Received(NamedTuple):
    """One message: what its header says, and what is behind that."""

    kind: int
    flags: int
    sequence: int
    sender: int
    body: bytes


def iterate_messages(data: bytes) -> Iterator[Received]:
    """Yield the messages in *data*; raises NetlinkError for a wrong length."""
    offset = 0
    while offset < len(data):
        if offset + HEADER.size > len(data):
            raise NetlinkError("a message is cut off")
        length, kind, flags, sequence, sender = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            raise NetlinkError("a message has the wrong length")
        yield Received(kind, flags, sequence, sender, data[offset + HEADER.size : offset + length])
        offset += pad(length)


def iterate_attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute in *data* from *offset* on; raises NetlinkError for a wrong length."""
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size or offset + length > len(data):
            raise NetlinkError("an attribute has the wrong length")
        yield kind & _ATTRIBUTE_TYPE, data[offset + ATTRIBUTE.size : offset + length]
        offset += pad(length)


def text_of(value: bytes) -> str:
    """Return the text of a zero-terminated string."""
    return value.split(b"\0", 1)[0].decode(errors="replace")
