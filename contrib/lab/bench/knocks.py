"""Genuine knocks by the thousand, made beforehand."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable

from lab.bench.cores import CLIENT_CORE, on_core
from lab.hosts import KNOCK_PORT, TAG
from support.network import SERVER4, Network, make_knock

_BATCH = 16
# linux/in.h: struct in_pktinfo, of which the address in the middle is where a datagram comes from.
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")


def make_knocks(count: int, tag: str = TAG, port: int = KNOCK_PORT) -> list[bytes]:
    return [make_knock(port, tag=tag) for _ in range(count)]


def send_knocks(
    network: Network,
    knocks: Iterable[bytes],
    port: int = KNOCK_PORT,
    *,
    rate: int = 0,
    sources: Iterable[str] = (),
    seconds: float = 1e9,
) -> int:
    """Send *knocks* at *rate* a second, or as fast as Python can; return how many were sent when *seconds* were over.

    Each comes from the next of *sources*, if there are any: addresses that the client has.
    """
    each = iter([_PKTINFO.pack(0, socket.inet_aton(source), bytes(4)) for source in sources])
    sent = 0
    to = (SERVER4, port)
    with network.client.entered(), on_core(CLIENT_CORE), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        started = time.perf_counter()
        for knock in knocks:
            if sent % _BATCH == 0:
                elapsed = time.perf_counter() - started
                if elapsed > seconds:
                    break
                if rate and (ahead := sent / rate - elapsed) > 0:
                    time.sleep(ahead)
            if info := next(each, b""):
                sock.sendmsg([knock], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, to)
            else:
                sock.sendto(knock, to)
            sent += 1
    return sent
