"""From a saved file to the kernel, in a host that guards ten thousand ports."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.rows.applying import dump_ruleset
from lab.bench.stage import guarding, make_stage, many_rules, write_rules
from lab.bench.timing import time_command
from lab.hosts import Lab
from nfpkd.daemon import QUIET_SECONDS
from nfpkd.firewall.netlink import HEADER, NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, pad

_RELOAD, _FULL = "reload of one file", "nft -f of all"
_PER_FILE = 100
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 270, 1, 7
# linux/netfilter/nf_tables.h: the message that ends a transaction.
_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | 15
_NEW_PORT = 9_000
_SETTLING_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0


class Reload(Measurement):
    """One rule of a file of a hundred gets another port; the clock runs from the save to the kernel's commit.

    The commit is what the kernel notifies listeners of; that the new port is guarded is looked
    up behind it.  "work" is the time without the 250 ms that nfpkd waits for a save to be over.
    "objects" is how many additions and deletions the kernel was told to do.
    """

    name = "reload"
    figures = (Figure("time", "ms"), Figure("work", "ms"), Figure("objects", "changes"))
    systems = (_FULL, _RELOAD)
    reference = _FULL
    targets = (
        Target("at most 300 ms after the debounce", _RELOAD, "work", at_most=300),
        Target("objects in proportion to the change: at most 10", _RELOAD, "objects", at_most=10),
    )

    def __init__(self, scale: Scale) -> None:
        self._size = scale.sizes[-1] if scale.quick else 10_000
        self.title = f"reload of one changed file among {self._size:,} rules"

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab:
            rules = many_rules(self._size)
            write_rules(lab.actions.path, rules, _PER_FILE)
            if system == _FULL:
                taken = time_command(lab.network.server, ["nft", "-f", str(dump_ruleset(lab))]).seconds * 1000
                return {"time": taken, "work": taken}
            return _reload(lab, rules)


def _reload(lab: Lab, rules: list[dict[str, object]]) -> dict[str, float]:
    file = sorted(lab.actions.path.glob("*.json"))[0]
    changed = json.dumps([rules[0] | {"port": _NEW_PORT}, *rules[1:_PER_FILE]])
    with guarding(lab), _listen(lab) as listener:
        # What a start leaves to do is done.
        time.sleep(_SETTLING_SECONDS)
        _drain(listener)
        started = time.monotonic()
        file.write_text(changed)
        messages = _receive_transaction(listener)
        taken = time.monotonic() - started
        lab.network.nft("get", "element", "inet", "nfpkd", "gated", f"{{ tcp . {_NEW_PORT} }}")
    return {"time": taken * 1000, "work": (taken - QUIET_SECONDS) * 1000, "objects": float(messages)}


def _listen(lab: Lab) -> socket.socket:
    """Return a socket that is told of every change of the server's nftables."""
    with lab.network.server.entered():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, struct.pack("i", _NFNLGRP_NFTABLES))
    return sock


def _drain(sock: socket.socket) -> None:
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        sock.settimeout(_PATIENCE_SECONDS)


def _receive_transaction(sock: socket.socket) -> int:
    """Wait for one transaction to be committed; return how many objects it changed.  An element is an object."""
    changed = 0
    while True:
        for kind in message_types(sock.recv(1 << 16)):
            if kind == _NEWGEN:
                return changed
            changed += 1


def message_types(data: bytes) -> Iterator[int]:
    """Yield the types of the netlink messages in *data*."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        yield kind
        offset += max(HEADER.size, pad(length))
