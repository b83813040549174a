"""From a queued packet's bytes to a UDP datagram."""

from __future__ import annotations

import struct
from typing import NamedTuple

from nfpkd.errors import PacketError

_UDP = 17
_UDP_HEADER = struct.Struct(">HHHH")

_FRAGMENT = 44
_AUTHENTICATION = 51
# IPv6 extension headers whose second byte counts 8-byte units behind the
# first 8 bytes (RFC 8200 4.2; mobility RFC 6275, HIP RFC 7401, shim6 RFC 5533).
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})


class Datagram(NamedTuple):
    """*source* is the packed address: 4 bytes (IPv4) or 16 (IPv6); *port* is the destination's."""

    source: bytes
    port: int
    payload: bytes


def decode_datagram_untrusted(packet: bytes) -> Datagram:
    """Return the UDP datagram in *packet*, which starts at its IP header.

    Raises PacketError for everything that is not one whole UDP datagram:
    other protocols, fragments, and lengths that contradict each other.
    Checksums are not looked at: the digest inside is the better one.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _decode_ipv4(packet)
    if version == 6:
        return _decode_ipv6(packet)
    raise PacketError("neither IPv4 nor IPv6")


def _decode_ipv4(packet: bytes) -> Datagram:
    # RFC 791 3.1
    if len(packet) < 20:
        raise PacketError("shorter than an IPv4 header")
    header_length = (packet[0] & 0x0F) * 4
    if header_length < 20:
        raise PacketError("an IPv4 header of under 20 bytes")
    if packet[9] != _UDP:
        raise PacketError("not UDP")
    # All but "reserved" and "don't fragment" must be zero: more fragments, offset.
    if packet[6] & 0x3F or packet[7]:
        raise PacketError("a fragment")
    return _decode_udp(packet, header_length, packet[12:16])


def _decode_ipv6(packet: bytes) -> Datagram:
    # RFC 8200 3 and 4
    if len(packet) < 40:
        raise PacketError("shorter than an IPv6 header")
    following = packet[6]
    offset = 40
    while following != _UDP:
        if following == _FRAGMENT:
            raise PacketError("a fragment")
        if following != _AUTHENTICATION and following not in _EXTENSIONS:
            raise PacketError("not UDP")
        if len(packet) < offset + 2:
            raise PacketError("ends inside an extension header")
        # An authentication header counts 4-byte units less two (RFC 4302 2.2).
        words = packet[offset + 1]
        length = (words + 2) * 4 if following == _AUTHENTICATION else (words + 1) * 8
        following = packet[offset]
        offset += length
    return _decode_udp(packet, offset, packet[8:24])


def _decode_udp(packet: bytes, offset: int, source: bytes) -> Datagram:
    # RFC 768
    if len(packet) < offset + 8:
        raise PacketError("ends inside the UDP header")
    _, port, length, _ = _UDP_HEADER.unpack_from(packet, offset)
    if length < 8 or len(packet) < offset + length:
        raise PacketError("a UDP length that the packet does not have")
    return Datagram(source, port, packet[offset + 8 : offset + length])
