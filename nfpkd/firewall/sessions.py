"""Connections that are open now, from /proc/net/tcp: they go on when a guard is put in front of them.

Conntrack knows a connection only from its first packet after conntrack came
up.  To a host that never used it, a session from an hour ago would look like
a stranger's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

from nfpkd.firewall.state import Session
from nfpkd.rules.model import Protocol, Service

_PROC = Path("/proc/thread-self/net")
# Linux: include/net/tcp_states.h
_ESTABLISHED = "01"


def list_open_sessions() -> Iterator[Session]:
    """Yield the established TCP connections of this network namespace's sockets, seen from their local port."""
    for name in ("tcp", "tcp6"):
        # Without IPv6 there is no tcp6.
        with contextlib.suppress(FileNotFoundError):
            yield from parse_sessions((_PROC / name).read_text())


def parse_sessions(table: str) -> Iterator[Session]:
    """Yield the established connections in the text of /proc/net/tcp or tcp6 (proc_net_tcp.rst)."""
    for line in table.splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == _ESTABLISHED:
            address, port = remote.split(":")
            service = Service(Protocol.TCP, int(local.split(":")[1], 16))
            yield Session(_parse_address(address), int(port, 16), service)


def _parse_address(words: str) -> str:
    """Return the address in *words*: 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
