"""What a table is made of, without its elements: read by raw netlink messages.

libnftables reads every element of every set before it shows a single rule: with sets that
a flood has filled that takes seconds, in which no knock is judged.

Message formats: linux/netfilter/nfnetlink.h and nf_tables.h.  Numbers in
attributes are in network byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from nfpkd.errors import NetlinkError
from nfpkd.firewall.channel import Channel
from nfpkd.firewall.netlink import NFGENMSG, iterate_attributes, pack_attribute, pack_text, text_of
from nfpkd.firewall.nft import Json, Table

_NFT_MSG_GETTABLE = 1
_NFT_MSG_GETRULE = 7
_NFT_MSG_GETSET = 10
_NFT_MSG_GETOBJ = 19

# The table's name comes first in all of them, and then its own, or its chain's.
_NFTA_TABLE = 1
_NFTA_NAME = 2
_NFTA_TABLE_FLAGS = 2
_NFT_TABLE_F_DORMANT = 0x1
_NFTA_SET_FLAGS = 3
_NFT_SET_ANONYMOUS = 0x1
_NFT_SET_MAP = 0x8
_NFTA_RULE_EXPRESSIONS = 4
_NFTA_RULE_USERDATA = 7
_NFTA_EXPR_NAME = 1
_NFTA_OBJ_TYPE = 3
_NFTA_OBJ_DATA = 4
_NFT_OBJECT_COUNTER = 1
_NFTA_COUNTER_BYTES = 1
_NFTA_COUNTER_PACKETS = 2
_NFTNL_UDATA_RULE_COMMENT = 0

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


def read_outline(channel: Channel, table: Table) -> list[Json] | None:
    """Return what inet *table* holds as nft would list it, or None if there is no such table.

    Sets and maps come without their elements, and rules with their comment and the names of their
    expressions alone.  Raises NetlinkError if the table changed meanwhile, and OSError as the kernel refuses.
    """
    try:
        sets = list(_dump(channel, _NFT_MSG_GETSET, table))
    except FileNotFoundError:
        return None
    kinds = (
        (_parse_table, _dump(channel, _NFT_MSG_GETTABLE, table)),
        (_parse_object, _dump(channel, _NFT_MSG_GETOBJ, table)),
        (_parse_set, sets),
        (_parse_rule, _dump(channel, _NFT_MSG_GETRULE, table)),
    )
    return [entry for parse, bodies in kinds for body in bodies if (entry := _parse_untrusted(parse, body)) is not None]


def _parse_untrusted(parse: Callable[[bytes], Json | None], body: bytes) -> Json | None:
    """Return what *parse* makes of *body*; raises NetlinkError for one that lacks something."""
    try:
        return parse(body)
    except (KeyError, struct.error):
        raise NetlinkError("a message lacks something") from None


def _dump(channel: Channel, kind: int, table: Table) -> Iterator[bytes]:
    """Yield the bodies of all that *table* has of a kind."""
    for body in channel.dump(kind, pack_attribute(_NFTA_TABLE, pack_text(table.name))):
        attributes = dict(iterate_attributes(body, NFGENMSG.size))
        # A kernel that does not know how to filter tells of other tables, too.
        if text_of(attributes.get(_NFTA_TABLE, b"")) == table.name:
            yield body


def _parse_table(body: bytes) -> Json | None:
    """Return the table if it is dormant, for then it does nothing."""
    attributes = dict(iterate_attributes(body, NFGENMSG.size))
    (flags,) = _U32.unpack(attributes.get(_NFTA_TABLE_FLAGS, bytes(4)))
    return {"table": {"flags": "dormant"}} if flags & _NFT_TABLE_F_DORMANT else None


def _parse_set(body: bytes) -> Json | None:
    attributes = dict(iterate_attributes(body, NFGENMSG.size))
    (flags,) = _U32.unpack(attributes.get(_NFTA_SET_FLAGS, bytes(4)))
    if flags & _NFT_SET_ANONYMOUS:
        return None
    return {"map" if flags & _NFT_SET_MAP else "set": {"name": text_of(attributes[_NFTA_NAME])}}


def _parse_object(body: bytes) -> Json | None:
    attributes = dict(iterate_attributes(body, NFGENMSG.size))
    if _U32.unpack(attributes[_NFTA_OBJ_TYPE]) != (_NFT_OBJECT_COUNTER,):
        return None
    data = dict(iterate_attributes(attributes[_NFTA_OBJ_DATA]))
    (packets,), (size,) = _U64.unpack(data[_NFTA_COUNTER_PACKETS]), _U64.unpack(data[_NFTA_COUNTER_BYTES])
    return {"counter": {"name": text_of(attributes[_NFTA_NAME]), "packets": packets, "bytes": size}}


def _parse_rule(body: bytes) -> Json:
    attributes = dict(iterate_attributes(body, NFGENMSG.size))
    described: Json = {"chain": text_of(attributes[_NFTA_NAME])}
    comment = _parse_comment(attributes.get(_NFTA_RULE_USERDATA, b""))
    if comment:
        described["comment"] = comment
    expressions = (dict(iterate_attributes(e)) for _, e in iterate_attributes(attributes[_NFTA_RULE_EXPRESSIONS]))
    described["expr"] = [{text_of(expression[_NFTA_EXPR_NAME]): None} for expression in expressions]
    return {"rule": described}


def _parse_comment(data: bytes) -> str:
    """Return the comment among a rule's user data, which is libnftables' own: a type, a length and a value each."""
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if kind == _NFTNL_UDATA_RULE_COMMENT:
            return text_of(data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""
