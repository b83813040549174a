"""What sockets are doing now, from /proc/net/tcp and its like.

Connections that are open go on when a guard is put in front of them.
Conntrack knows a connection only from its first packet after conntrack came
up.  To a host that never used it, a session from an hour ago would look like
a stranger's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from nfpkd.firewall.state import Session
from nfpkd.rules.model import Protocol, Service

_PROC = Path("/proc/thread-self/net")
# As get_tcp4_sock() and get_tcp6_sock() in the kernel's net/ write it, and UDP's likewise.
_ADDRESS = "[0-9A-F]{8}(?:[0-9A-F]{24})?"
_ROW = re.compile(rf"\s*[0-9]+: {_ADDRESS}:([0-9A-F]{{4}}) ({_ADDRESS}:[0-9A-F]{{4}}) ([0-9A-F]{{2}}) ")
# Linux: include/net/tcp_states.h
_ESTABLISHED = "01"
_LISTEN = "0A"
# What a UDP socket without a peer is in.
_CLOSE = "07"


def list_open_sessions() -> Iterator[Session]:
    """Yield the established TCP connections of this network namespace's sockets, seen from their local port."""
    for name in ("tcp", "tcp6"):
        # Without IPv6 there is no tcp6.
        with contextlib.suppress(FileNotFoundError):
            yield from parse_sessions((_PROC / name).read_text())


def parse_sessions(table: str) -> Iterator[Session]:
    """Yield the established connections in the text of /proc/net/tcp or tcp6 (proc_net_tcp.rst)."""
    for port, remote, state in _parse_rows(table):
        if state == _ESTABLISHED:
            address, remote_port = remote.split(":")
            yield Session(_parse_address(address), int(remote_port, 16), Service(Protocol.TCP, port))


def list_listening_services() -> set[Service] | None:
    """Return what tcp and udp sockets of this network namespace listen on, at any address; None if /proc is silent.

    A UDP socket that only ever sends looks the same as one that listens.
    """
    found: set[Service] = set()
    readable = False
    for protocol in (Protocol.TCP, Protocol.UDP):
        for name in (protocol.label, f"{protocol.label}6"):
            with contextlib.suppress(OSError):
                found.update(parse_listening((_PROC / name).read_text(), protocol))
                readable = True
    return found if readable else None


def parse_listening(table: str, protocol: Protocol) -> Iterator[Service]:
    """Yield what is listened on in the text of /proc/net/tcp, tcp6, udp or udp6."""
    state_of_listeners = _CLOSE if protocol is Protocol.UDP else _LISTEN
    for port, _, state in _parse_rows(table):
        if state == state_of_listeners:
            yield Service(protocol, port)


def _parse_rows(table: str) -> Iterator[tuple[int, str, str]]:
    """Yield local port, remote address and port, and state of each row; what is no row is passed over."""
    for line in table.splitlines()[1:]:
        if found := _ROW.match(line):
            local_port, remote, state = found.groups()
            yield int(local_port, 16), remote, state


def _parse_address(words: str) -> str:
    """Return the address in *words*: 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
