"""Sending a knock, over the loopback device; and what the other clients of this format send."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import KnockError
from nfpkd.knock.client import Address, SentKnock, find_addresses, send_knock
from nfpkd.knock.wire import encode_knock
from nfpkd.rules.model import PortRange, Protocol, Rule, Secret, TimedKey, parse_key, parse_tag
from nfpkd.verifier.judge import Judge, Judgement, Outcome
from nfpkd.verifier.packet import Datagram, decode_datagram_untrusted

KEY = parse_key("testing test test")
TAG = b"PKD0"
LOOPBACK = Address(socket.AF_INET, ("127.0.0.1", 0))


def a_rule(key: Secret = KEY, tag: bytes = TAG, *, old: bool = False) -> Rule:
    return Rule("ssh", (TimedKey(key),), tag, (PortRange(22, 22),), (Protocol.TCP,), old=old)


@pytest.fixture(params=["127.0.0.1", "::1"])
def receiver(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((request.param, 0))
        except OSError:
            pytest.skip(f"no {request.param} here")
        sock.settimeout(30)
        yield sock


def test_a_sent_knock_is_accepted_by_the_judge(receiver: socket.socket) -> None:
    address, port = receiver.getsockname()[:2]
    before = int(time.time())
    (found,) = find_addresses(address)
    assert send_knock(found, KEY, TAG, port=port) == SentKnock(address, port)
    payload = receiver.recv(1000)
    after = int(time.time())
    assert before <= int.from_bytes(payload[4:12], "little") <= after
    assert payload == encode_knock(KEY.reveal(), TAG, port, int.from_bytes(payload[4:12], "little"), payload[12:24])
    (judgement,) = Judge([a_rule()]).judge(Datagram(b"\x7f\0\0\1", port, payload), after, time.monotonic())
    assert judgement.outcome is Outcome.ACCEPTED


def test_no_two_knocks_are_the_same(receiver: socket.socket) -> None:
    address, port = receiver.getsockname()[:2]
    (found,) = find_addresses(address)
    for _ in range(4):
        send_knock(found, KEY, TAG, port=port)
    assert len({receiver.recv(1000)[12:24] for _ in range(4)}) == 4


def test_a_knock_of_the_old_form_is_for_rules_that_say_so(receiver: socket.socket) -> None:
    address, port = receiver.getsockname()[:2]
    send_knock(find_addresses(address)[0], KEY, TAG, port=port, old=True)
    datagram = Datagram(b"\x7f\0\0\1", port, receiver.recv(1000))
    assert not Judge([a_rule()]).judge(datagram, int(time.time()), time.monotonic())
    assert Judge([a_rule(old=True)]).judge(datagram, int(time.time()), time.monotonic())


def test_a_name_is_looked_up_and_its_addresses_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fake_getaddrinfo(*args: object) -> list[object]:
        asked.append(args)
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP, "", ("fe80::1", 0, 0, 3)),
            (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP, "", ("192.0.2.1", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo)
    first, second = find_addresses("host.example", socket.AF_INET)
    assert (first.family, first.at(22), str(first)) == (socket.AF_INET6, ("fe80::1", 22, 0, 3), "fe80::1")
    assert (second.family, second.at(22), str(second)) == (socket.AF_INET, ("192.0.2.1", 22), "192.0.2.1")
    assert asked == [("host.example", None, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)]


@pytest.mark.parametrize(("drawn", "port"), [(0, 1), (65534, 65535)])
def test_a_random_port_is_any_but_zero(monkeypatch: pytest.MonkeyPatch, drawn: int, port: int) -> None:
    limits: list[int] = []

    def fake_randbelow(limit: int) -> int:
        limits.append(limit)
        return drawn

    monkeypatch.setattr(secrets, "randbelow", fake_randbelow)
    assert send_knock(LOOPBACK, KEY, TAG).port == port
    assert limits == [65535]


def test_an_unknown_host_is_the_knocks_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_getaddrinfo(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo)
    with pytest.raises(KnockError) as caught:
        find_addresses("no.such.host.invalid")
    assert str(caught.value) == "cannot find the host 'no.such.host.invalid': Name or service not known"


def test_a_lookup_that_the_system_fails_is_the_knocks_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python turns EAI_SYSTEM into the plain OSError behind it."""

    def fake_getaddrinfo(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo)
    with pytest.raises(KnockError, match=os.strerror(errno.EMFILE)):
        find_addresses("host.example")


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "\udcff"])
def test_what_cannot_be_a_host_name_is_the_knocks_error(host: str) -> None:
    with pytest.raises(KnockError, match="not a host name"):
        find_addresses(host)


def test_an_address_of_the_other_family_is_the_knocks_error() -> None:
    with pytest.raises(KnockError, match="cannot find the host '::1'"):
        find_addresses("::1", socket.AF_INET)


def test_what_the_network_refuses_is_the_knocks_error() -> None:
    # Broadcasting needs a socket option that nobody sets here.
    with pytest.raises(KnockError) as caught:
        send_knock(Address(socket.AF_INET, ("255.255.255.255", 0)), KEY, TAG, port=22)
    message = str(caught.value)
    assert message.startswith("cannot send to 255.255.255.255 port 22: ")
    assert any(os.strerror(code) in message for code in (errno.EACCES, errno.ENETUNREACH))
    assert "testing" not in message


class Client(NamedTuple):
    """One row of WIRE.md's table of what the existing clients really send; read from their sources."""

    name: str
    source_is_dport: bool
    wide_time: bool
    seconds_behind: int = 0
    default_tag: str = "PKD0"
    pads_tags: bool = True
    odd_hex: bool = False
    cuts_keys: bool = True
    ipv6: bool = False

    def port(self, wanted: int) -> int:
        if self.name == "knock.c":
            # Reduced into 1024-50000, also where a port is given.
            return min(50000, wanted if wanted >= 1024 else 1024 + wanted)
        return wanted

    def read(self, text: str, length: int) -> bytes:
        if text.startswith("0x"):
            digits = text[2:]
            if len(digits) % 2 and not self.odd_hex:
                raise ValueError("refused by the client")
            # As the C code fills it: high half first, buffer cleared before.
            raw = bytearray((len(digits) + 1) // 2)
            for index, digit in enumerate(digits):
                raw[index // 2] |= int(digit, 16) << (0 if index % 2 else 4)
        else:
            raw = bytearray(text.encode())
        if length == 4 and len(raw) < 4 and not self.pads_tags:
            raise ValueError("refused by the client")
        return bytes(raw[:length] if self.cuts_keys else raw).ljust(length, b"\0")

    def packet(self, key: str, tag: str, port: int, clock: int, random: bytes) -> bytes:
        """Return the IP packet that this client sends, made with struct and hashlib alone."""
        port = self.port(port)
        stamp = clock - self.seconds_behind
        packed_time = struct.pack("<Q", stamp) if self.wide_time else struct.pack("<I", stamp) + bytes(4)
        header = self.read(tag, 4) + packed_time + random
        payload = header + hashlib.sha256(struct.pack(">HH", port, port) + header + self.read(key, 40)).digest()
        udp = struct.pack(">HHHH", port if self.source_is_dport else 54321, port, 8 + len(payload), 0) + payload
        if self.ipv6:
            source = bytes.fromhex("20010db8000000000000000000000001")
            return struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + source + source[::-1] + udp
        fixed = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, 17, 0)
        return fixed + bytes([192, 0, 2, 1]) + bytes([192, 0, 2, 2]) + udp


CLIENTS = [
    Client("knock.c", source_is_dport=True, wide_time=True, odd_hex=True),
    Client("knock.py", source_is_dport=True, wide_time=False, pads_tags=False),
    Client("knock_original.py", source_is_dport=True, wide_time=False, cuts_keys=False),
    Client("C#", source_is_dport=False, wide_time=False, seconds_behind=1, default_tag="KN0C", odd_hex=True),
    Client("nf-pkd-knock", source_is_dport=False, wide_time=True),
    Client("nf-pkd-knock over IPv6", source_is_dport=False, wide_time=True, ipv6=True),
]
every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
NOW = 1_700_000_000


def judge(packet: bytes, key: str, tag: str, wall: int = NOW) -> list[Judgement]:
    datagram = decode_datagram_untrusted(packet)
    return Judge([a_rule(parse_key(key), parse_tag(tag))]).judge(datagram, wall, 1000.0)


@every_client
@given(
    key=st.text(min_size=1, max_size=10),
    port=st.integers(1, 65535),
    clock=st.integers(1, 2**32 - 1),
    random=st.binary(min_size=12, max_size=12),
)
def test_every_clients_knock_is_accepted(client: Client, key: str, port: int, clock: int, random: bytes) -> None:
    if key[:2].lower() == "0x":
        key = "k" + key
    packet = client.packet(key, client.default_tag, port, clock, random)
    (judgement,) = judge(packet, key, client.default_tag, clock)
    assert judgement.outcome is Outcome.ACCEPTED
    assert judgement.clock_offset == -client.seconds_behind


@every_client
def test_a_short_tag_of_every_client_that_sends_one_is_known(client: Client) -> None:
    if client.pads_tags:
        assert judge(client.packet("k", "ab", 22, NOW, bytes(12)), "k", "ab")
    else:
        with pytest.raises(ValueError, match="refused by the client"):
            client.packet("k", "ab", 22, NOW, bytes(12))


@every_client
@pytest.mark.parametrize("key", ["0xabc", "0xa", "0x" + "abc" * 13])
def test_odd_hex_means_the_same_to_every_client_that_takes_it(client: Client, key: str) -> None:
    if client.odd_hex or len(key) % 2 == 0:
        assert judge(client.packet(key, client.default_tag, 22, NOW, bytes(12)), key, client.default_tag)
    else:
        with pytest.raises(ValueError, match="refused by the client"):
            client.packet(key, client.default_tag, 22, NOW, bytes(12))


@every_client
def test_what_clients_make_of_too_long_a_key_fits_its_first_40_bytes(client: Client) -> None:
    packet = client.packet("k" * 50, client.default_tag, 22, NOW, bytes(12))
    assert bool(judge(packet, "k" * 40, client.default_tag)) is client.cuts_keys
    with pytest.raises(ValueError, match="50 bytes long; at most 40 fit"):
        parse_key("k" * 50)


@pytest.mark.parametrize(("wanted", "sent"), [(22, 1046), (1023, 2047), (1024, 1024), (50000, 50000), (60000, 50000)])
def test_a_port_that_the_c_client_mangles_is_the_port_it_arrives_at(wanted: int, sent: int) -> None:
    packet = CLIENTS[0].packet("k", "PKD0", wanted, NOW, bytes(12))
    assert decode_datagram_untrusted(packet).port == sent
    assert judge(packet, "k", "PKD0")


def test_the_knocks_of_the_other_clients_are_our_own() -> None:
    """One key, tag, port, second and random part: one payload, whoever makes it."""
    payloads = {
        decode_datagram_untrusted(found.packet("k", "PKD0", 2000, NOW + found.seconds_behind, bytes(12))).payload
        for found in CLIENTS
    }
    assert payloads == {encode_knock(parse_key("k").reveal(), b"PKD0", 2000, NOW, bytes(12))}
