"""From a packet's bytes to a datagram: built by hand here, header by header, from the RFCs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfpkd.errors import PacketError
from nfpkd.verifier.packet import Datagram, decode_datagram_untrusted

UDP, TCP, AUTHENTICATION, FRAGMENT = 17, 6, 51, 44
EXTENSIONS = (0, 43, 60, 135, 139, 140)

payloads = st.binary(max_size=200)
numbers = st.integers(0, 65535)


def udp(payload: bytes, port: int = 1234, source_port: int = 999, length: int | None = None) -> bytes:
    return struct.pack(">HHHH", source_port, port, 8 + len(payload) if length is None else length, 0xABCD) + payload


def ipv4(
    inner: bytes,
    *,
    source: bytes = bytes([192, 0, 2, 1]),
    options: bytes = b"",
    fragment: int = 0x4000,
    protocol: int = UDP,
) -> bytes:
    first = 0x40 | (5 + len(options) // 4)
    total = 20 + len(options) + len(inner)
    header = struct.pack(">BBHHHBBH", first, 0, total & 0xFFFF, 7, fragment, 64, protocol, 0)
    return header + source + bytes([192, 0, 2, 2]) + options + inner


def ipv6(inner: bytes, *, source: bytes = bytes(15) + b"\1", chain: list[tuple[int, bytes]] | None = None) -> bytes:
    """*chain* is extension headers: their type, and all of their bytes behind the first two."""
    headers = chain or []
    types = [kind for kind, _ in headers] + [UDP]
    extensions = b"".join(
        bytes([following, (len(rest) + 2) // 4 - 2 if kind == AUTHENTICATION else (len(rest) + 2) // 8 - 1]) + rest
        for (kind, rest), following in zip(headers, types[1:], strict=True)
    )
    fixed = struct.pack(">IHBB", 6 << 28, (len(extensions) + len(inner)) & 0xFFFF, types[0], 64)
    return fixed + source + bytes(16) + extensions + inner


@st.composite
def extension_headers(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.sampled_from([*EXTENSIONS, AUTHENTICATION]))
    length = draw(st.integers(2, 257)) * 4 if kind == AUTHENTICATION else draw(st.integers(1, 256)) * 8
    fill = draw(st.sampled_from([b"\0", b"\x11", b"\xff"]))
    return kind, fill * (length - 2)


@given(
    payloads,
    numbers,
    numbers,
    st.binary(min_size=4, max_size=4),
    st.integers(0, 10),
    st.sampled_from([0, 0x4000, 0x8000]),
)
def test_ipv4_with_any_options_is_decoded(
    payload: bytes, port: int, source_port: int, source: bytes, words: int, flags: int
) -> None:
    packet = ipv4(udp(payload, port, source_port), source=source, options=b"\x11" * 4 * words, fragment=flags)
    assert decode_datagram_untrusted(packet) == Datagram(source, port, payload)


@given(payloads, numbers, st.binary(min_size=16, max_size=16), st.lists(extension_headers(), max_size=5))
def test_ipv6_behind_any_extension_headers_is_decoded(
    payload: bytes, port: int, source: bytes, chain: list[tuple[int, bytes]]
) -> None:
    packet = ipv6(udp(payload, port), source=source, chain=chain)
    assert decode_datagram_untrusted(packet) == Datagram(source, port, payload)


@given(st.binary(max_size=2000))
@example(b"")
def test_any_bytes_are_a_datagram_or_a_packet_error(packet: bytes) -> None:
    try:
        datagram = decode_datagram_untrusted(packet)
    except PacketError:
        return
    assert len(datagram.source) in (4, 16)
    assert datagram.payload in packet


@given(st.data())
def test_any_spoiled_packet_is_a_datagram_or_a_packet_error(data: st.DataObject) -> None:
    whole = data.draw(
        st.builds(ipv4, payloads.map(udp))
        | st.builds(ipv6, payloads.map(udp), chain=st.lists(extension_headers(), max_size=3))
    )
    spoiled = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        spoiled[at] = data.draw(st.integers(0, 255))
    spoiled[:] = spoiled[: data.draw(st.integers(0, len(whole)))]
    try:
        datagram = decode_datagram_untrusted(bytes(spoiled))
    except PacketError:
        return
    assert datagram.payload in bytes(spoiled)
    assert isinstance(datagram.payload, bytes)


@pytest.mark.parametrize("first", [0x00, 0x40, 0x45, 0x4F, 0x60, 0x6F, 0xFF])
@pytest.mark.parametrize("fill", [0, 17, 43, 51, 255])
def test_no_length_from_0_to_2000_is_a_crash(first: int, fill: int) -> None:
    whole = bytes([first]) + bytes([fill]) * 1999
    for length in range(2001):
        try:
            datagram = decode_datagram_untrusted(whole[:length])
        except PacketError:
            continue
        assert len(datagram.payload) <= length - 28


@pytest.mark.parametrize(
    "whole",
    [
        ipv4(udp(bytes(range(56)))),
        ipv4(udp(bytes(range(56))), options=b"\1" * 40),
        ipv6(udp(bytes(range(56)))),
        ipv6(udp(bytes(range(56))), chain=[(0, bytes(6)), (AUTHENTICATION, bytes(22)), (60, bytes(14))]),
    ],
    ids=["ipv4", "ipv4 with options", "ipv6", "ipv6 with extension headers"],
)
def test_a_packet_that_is_cut_off_anywhere_is_refused(whole: bytes) -> None:
    assert len(decode_datagram_untrusted(whole).payload) == 56
    for length in range(len(whole)):
        with pytest.raises(PacketError):
            decode_datagram_untrusted(whole[:length])


@given(payloads, st.binary(min_size=1, max_size=20))
def test_what_follows_the_datagram_is_no_part_of_it(payload: bytes, trailer: bytes) -> None:
    for packet in (ipv4(udp(payload)), ipv6(udp(payload))):
        assert decode_datagram_untrusted(packet + trailer).payload == payload


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 15])
def test_other_versions_are_refused(version: int) -> None:
    packet = bytearray(ipv4(udp(bytes(56))))
    packet[0] = version << 4 | 5
    with pytest.raises(PacketError, match="neither IPv4 nor IPv6"):
        decode_datagram_untrusted(bytes(packet))


@pytest.mark.parametrize("words", range(5))
def test_an_ipv4_header_of_under_20_bytes_is_refused(words: int) -> None:
    packet = bytearray(ipv4(udp(bytes(56))))
    packet[0] = 0x40 | words
    with pytest.raises(PacketError, match="under 20 bytes"):
        decode_datagram_untrusted(bytes(packet))


@pytest.mark.parametrize(
    "fragment",
    [
        pytest.param(0x2000, id="the first"),
        pytest.param(0x2001, id="a middle one"),
        pytest.param(0x0001, id="the last, at the smallest offset"),
        pytest.param(0x1000, id="the last, at a large offset"),
        pytest.param(0x00FF, id="the last, with all low bits"),
        pytest.param(0x6000, id="the first, in spite of don't fragment"),
    ],
)
def test_ipv4_fragments_are_refused(fragment: int) -> None:
    with pytest.raises(PacketError, match="a fragment"):
        decode_datagram_untrusted(ipv4(udp(bytes(56)), fragment=fragment))


@pytest.mark.parametrize("before", [[], [(0, bytes(6))], [(0, bytes(6)), (43, bytes(14))]])
@pytest.mark.parametrize("offset_and_more", [b"\0\0", b"\0\1", b"\5\xa8"], ids=["atomic", "first", "last"])
def test_ipv6_fragments_are_refused(before: list[tuple[int, bytes]], offset_and_more: bytes) -> None:
    chain = [*before, (FRAGMENT, offset_and_more + bytes(4))]
    with pytest.raises(PacketError, match="a fragment"):
        decode_datagram_untrusted(ipv6(udp(bytes(56)), chain=chain))


@pytest.mark.parametrize("protocol", [0, 1, TCP, 33, 50, 132, 136, 255])
def test_other_protocols_are_refused(protocol: int) -> None:
    with pytest.raises(PacketError, match="not UDP"):
        decode_datagram_untrusted(ipv4(udp(bytes(56)), protocol=protocol))


@pytest.mark.parametrize("following", [TCP, 50, 58, 59, 136, 253])
@pytest.mark.parametrize("before", [[], [(60, bytes(6))]])
def test_other_protocols_of_ipv6_are_refused(before: list[tuple[int, bytes]], following: int) -> None:
    with pytest.raises(PacketError, match="not UDP"):
        decode_datagram_untrusted(ipv6(udp(bytes(56)), chain=[*before, (following, bytes(6))]))


@pytest.mark.parametrize("length", [0, 1, 7, 65, 1000, 65535])
@pytest.mark.parametrize("wrap", [ipv4, ipv6])
def test_a_udp_length_that_cannot_be_is_refused(wrap: object, length: int) -> None:
    assert callable(wrap)
    with pytest.raises(PacketError, match="UDP length"):
        decode_datagram_untrusted(wrap(udp(bytes(56), length=length)))


def test_a_udp_length_may_be_shorter_than_the_packet() -> None:
    assert decode_datagram_untrusted(ipv4(udp(b"knock" + bytes(51), length=13))).payload == b"knock"


def test_an_extension_header_longer_than_the_packet_is_refused() -> None:
    packet = bytearray(ipv6(udp(bytes(56)), chain=[(0, bytes(6))]))
    packet[41] = 255
    with pytest.raises(PacketError, match="ends inside"):
        decode_datagram_untrusted(bytes(packet))


def test_headers_that_point_at_each_other_come_to_an_end() -> None:
    with pytest.raises(PacketError, match="ends inside an extension header"):
        decode_datagram_untrusted(ipv6(b"", chain=[(0, bytes(6))] * 200)[:-8] + bytes(65536))
