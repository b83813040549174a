from __future__ import annotations

import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall import sessions
from nfpkd.firewall.sessions import list_open_sessions, parse_listening, parse_sessions
from nfpkd.firewall.state import Session
from nfpkd.rules.model import Protocol, Service

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 02:000A7D8B 00000000     0        0 4026 2 0000000000000000 20 4 30 10 -1"


def words(address: str) -> str:
    packed = ip_address(address).packed
    return "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", packed))


def line(source: str, source_port: int, port: int, state: str = "01") -> str:
    local = "::" if ":" in source else "0.0.0.0"  # noqa: S104
    return f"   0: {words(local)}:{port:04X} {words(source)}:{source_port:04X} {state} {REST}\n"


def ssh(source: str, source_port: int) -> Session:
    return Session(source, source_port, Service(Protocol.TCP, 22))


def test_established_connections_are_told_from_their_local_port() -> None:
    table = HEADER + line("192.0.2.7", 50000, 22) + line("198.51.100.1", 443, 8080)
    assert list(parse_sessions(table)) == [
        ssh("192.0.2.7", 50000),
        Session("198.51.100.1", 443, Service(Protocol.TCP, 8080)),
    ]


def test_a_line_as_a_little_endian_kernel_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "struct", LittleEndian)
    table = HEADER + f"   1: 0100000A:0016 070200C0:C350 01 {REST}\n"
    assert list(parse_sessions(table)) == [ssh("192.0.2.7", 50000)]


class LittleEndian:
    @staticmethod
    def pack(_: str, word: int) -> bytes:
        return struct.pack("<I", word)


@pytest.mark.parametrize("state", ["02", "03", "06", "08", "0A"])
def test_only_established_connections_count(state: str) -> None:
    assert list(parse_sessions(HEADER + line("192.0.2.7", 50000, 22, state))) == []


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1", "fe80::1"),
        # A socket for both families serves an IPv4 client, whose packets are IPv4's.
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_tcp6(written: str, shown: str) -> None:
    assert list(parse_sessions(HEADER + line(written, 50000, 22))) == [ssh(shown, 50000)]


@pytest.mark.parametrize("table", ["", HEADER])
def test_empty_tables(table: str) -> None:
    assert list(parse_sessions(table)) == []


@given(st.ip_addresses(), st.integers(0, 65535), st.integers(1, 65535))
def test_any_address_and_port_comes_back(address: object, source_port: int, port: int) -> None:
    [found] = parse_sessions(HEADER + line(str(address), source_port, port))
    parsed = ip_address(str(address))
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    assert ip_address(found.source) == (mapped or parsed)
    assert (found.source_port, found.service.port) == (source_port, port)


def test_both_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tcp").write_text(HEADER + line("192.0.2.7", 1, 22))
    (tmp_path / "tcp6").write_text(HEADER + line("2001:db8::7", 2, 22))
    monkeypatch.setattr(sessions, "_PROC", tmp_path)
    assert list(list_open_sessions()) == [ssh("192.0.2.7", 1), ssh("2001:db8::7", 2)]


def test_a_host_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tcp").write_text(HEADER + line("192.0.2.7", 1, 22))
    monkeypatch.setattr(sessions, "_PROC", tmp_path)
    assert list(list_open_sessions()) == [ssh("192.0.2.7", 1)]


@pytest.mark.parametrize(
    "spoiled",
    [
        "",
        "x",
        "   0: 0100007F:0016 0100007F:C350",
        "   0: 0100007F 0100007F:C350 01 0 0",
        "   0: 0100007F:0016 0100007F 01 0 0",
        "   0: 0100007F:0016 0100007:C350 01 0 0",
        "   0: 0100007F:0016 -100007F:C350 01 0 0",
        "   0: 0100007F:0016 0100007F0100007F:C350 01 0 0",
        "   0: 0100007F:10016 0100007F:C350 01 0 0",
        "   0: 0100007F:0016 0100007F:1C350 01 0 0",
        "   0: 0100007F:xx16 0100007F:C350 01 0 0",
    ],
)
def test_what_is_no_row_is_passed_over(spoiled: str) -> None:
    table = f"{HEADER}{spoiled}\n{line('192.0.2.7', 50000, 22)}{spoiled}\n"
    assert list(parse_sessions(table)) == [ssh("192.0.2.7", 50000)]
    assert list(parse_listening(table, Protocol.UDP)) == []
