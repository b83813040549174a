"""Grants as netlink messages: a knock's only write to the kernel, without libnftables.

For every command libnftables asks the kernel for all tables, chains and sets before it
does anything: 127 us for one grant, on an otherwise empty host, against 18 us for the
messages below.  Somebody's connection waits meanwhile.

Message formats: linux/netfilter/nf_tables.h.  Numbers are in network byte order; the parts
of a key that is concatenated are padded to 4 bytes each.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Sequence
from typing import Any

from nfpkd.firewall.channel import NLM_F_CREATE, Message
from nfpkd.firewall.doors import parse_door
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.netlink import pack_attribute, pack_nested, pack_text, pad
from nfpkd.firewall.nft import Json, Table

# Many more do not fit into one message, and need no haste.
MAX_ELEMENTS = 256

_NFT_MSG_NEWSETELEM = 12
_NFT_MSG_DELSETELEM = 14
_KINDS = {"add": (_NFT_MSG_NEWSETELEM, NLM_F_CREATE), "delete": (_NFT_MSG_DELSETELEM, 0)}

_NFTA_SET_ELEM_LIST_TABLE = 1
_NFTA_SET_ELEM_LIST_SET = 2
_NFTA_SET_ELEM_LIST_ELEMENTS = 3
_NFTA_LIST_ELEM = 1
_NFTA_SET_ELEM_KEY = 1
_NFTA_SET_ELEM_TIMEOUT = 4
_NFTA_SET_ELEM_EXPIRATION = 5
_NFTA_SET_ELEM_USERDATA = 6
_NFTA_DATA_VALUE = 1
_NFTNL_UDATA_SET_ELEM_COMMENT = 0

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")
_IFNAMSIZ = 16
_FAMILIES = {"ipv4_addr": socket.AF_INET, "ipv6_addr": socket.AF_INET6}


def pack_grants(commands: Sequence[Json]) -> list[Message] | None:
    """Return the messages that do *commands*, or None if some do anything but add and delete a few grants."""
    messages = []
    for command in commands:
        ((verb, described),) = command.items()
        if verb not in _KINDS or "element" not in described:
            return None
        element = described["element"]
        types = _types_of(element["name"])
        if types is None or Table(element["family"], element["table"]) != TABLE or len(element["elem"]) > MAX_ELEMENTS:
            return None
        kind, flags = _KINDS[verb]
        try:
            packed = b"".join(pack_nested(_NFTA_LIST_ELEM, _pack_element(types, one)) for one in element["elem"])
        except (AttributeError, LookupError, OSError, TypeError, ValueError, struct.error):
            # Written in another way than ours: libnftables knows more of them.
            return None
        attributes = (
            pack_attribute(_NFTA_SET_ELEM_LIST_TABLE, pack_text(TABLE.name))
            + pack_attribute(_NFTA_SET_ELEM_LIST_SET, pack_text(element["name"]))
            + pack_nested(_NFTA_SET_ELEM_LIST_ELEMENTS, packed)
        )
        messages.append(Message(kind, attributes, flags))
    return messages


@functools.cache
def _types_of(set_name: str) -> tuple[str, ...] | None:
    """Return the types of the parts of a key, None for sets that hold no grants."""
    door = parse_door(set_name)
    # A grant's key has several parts.
    return None if door is None else tuple(door.to_set().type)


def _pack_element(types: tuple[str, ...], element: Any) -> bytes:
    described = element.get("elem", {"val": element})
    packed = _pack_key(types, tuple(described["val"]["concat"]))
    if "timeout" in described:
        packed += pack_attribute(_NFTA_SET_ELEM_TIMEOUT, _U64.pack(1000 * described["timeout"]))
    if "expires" in described:
        packed += pack_attribute(_NFTA_SET_ELEM_EXPIRATION, _U64.pack(1000 * described["expires"]))
    if "comment" in described:
        comment = pack_text(described["comment"])
        packed += pack_attribute(
            _NFTA_SET_ELEM_USERDATA, bytes((_NFTNL_UDATA_SET_ELEM_COMMENT, len(comment))) + comment
        )
    return packed


# A grant is added, deleted and added: see `ruleset.renew_grants`.
@functools.lru_cache(MAX_ELEMENTS)
def _pack_key(types: tuple[str, ...], parts: tuple[Any, ...]) -> bytes:
    key = b"".join([_pack_part(kind, part) for kind, part in zip(types, parts, strict=True)])
    return pack_nested(_NFTA_SET_ELEM_KEY, pack_attribute(_NFTA_DATA_VALUE, key))


def _pack_part(kind: str, value: Any) -> bytes:
    if kind in _FAMILIES:
        return socket.inet_pton(_FAMILIES[kind], value)
    if kind == "ifname":
        return bytes(pack_text(value).ljust(_IFNAMSIZ, b"\0"))
    packed = bytes((value,)) if kind == "inet_proto" else _U16.pack(value)
    return packed.ljust(pad(len(packed)), b"\0")
