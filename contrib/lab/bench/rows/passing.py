"""What guarded traffic pays once it is let in."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping

from lab.bench.cores import CLIENT_CORE, on_core
from lab.bench.figures import percentile
from lab.bench.floor import empty_listener, load_ruleset, queue_rules
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.stage import guarding, make_stage, open_rule, serving
from lab.hosts import PORT, Lab
from support.network import CLIENT4, SERVER4, eventually, knock, outcome

_NONE, _STATIC, _NFPKD, _QUEUED = "no firewall", "static rule", "nfpkd", "SYNs through user space"
_SYSTEMS = (_NONE, _STATIC, _NFPKD, _QUEUED)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHUNK = 1 << 18

# Takes connections and reads what they say, if anything.
_SERVER = f"""
import socket
buffer = bytearray({_CHUNK})
listener = socket.create_server(("", {PORT}), backlog=4096)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        while connection.recv_into(buffer):
            pass
    except ConnectionResetError:
        pass
    connection.close()
"""

_STATIC_RULES = f"""
table inet floor {{
    chain arriving {{
        type filter hook input priority 0; policy accept;
        ct state established,related accept
        tcp dport {PORT} ip saddr {{ {CLIENT4} }} accept
        tcp dport {PORT} drop
    }}
}}
"""


class Connections(Measurement):
    """One connection after the other, from a client that was let in; each is reset as soon as it is made.

    The static rule is what an administrator would write: established traffic passes, one
    address may connect, others may not.  "SYNs through user space" is nf-pkd's way;
    an empty listener stands in for it.  The p50 is of connect() alone.
    """

    name = "connections"
    title = "new TCP connections to a protected, granted port"
    systems = _SYSTEMS
    figures = (Figure("rate", "connections/s"), Figure("p50", "us"))
    reference = _STATIC
    targets = (
        Target("at least 0.95 of the static rule", _NFPKD, "rate", at_least=0.95, of=(_STATIC,)),
        Target("p50 at most 1/0.95 of the static rule's", _NFPKD, "p50", at_most=1 / 0.95, of=(_STATIC,)),
    )

    def __init__(self, scale: Scale) -> None:
        self._seconds = scale.seconds

    def run(self, system: str) -> Mapping[str, float]:
        with _protected(system) as lab, lab.network.client.entered(), on_core(CLIENT_CORE):
            # The first connections find everything cold.
            _connect_over_and_over(min(0.2, self._seconds))
            times = _connect_over_and_over(self._seconds)
        return {"rate": len(times) / self._seconds, "p50": percentile(times, 0.5) * 1e6}


class Bulk(Measurement):
    """One connection, as much as one core can send through it."""

    name = "bulk"
    title = "bulk TCP throughput to a protected, granted port"
    systems = _SYSTEMS
    figures = (Figure("throughput", "Gbit/s"),)
    reference = _STATIC
    targets = (Target("at least 0.95 of the static rule", _NFPKD, "throughput", at_least=0.95, of=(_STATIC,)),)

    def __init__(self, scale: Scale) -> None:
        self._seconds = scale.seconds

    def run(self, system: str) -> Mapping[str, float]:
        with _protected(system) as lab, lab.network.client.entered(), on_core(CLIENT_CORE):
            chunk = bytes(_CHUNK)
            with socket.create_connection((SERVER4, PORT)) as connection:
                sent = 0
                started = time.perf_counter()
                while (elapsed := time.perf_counter() - started) < self._seconds:
                    sent += connection.send(chunk)
        return {"throughput": sent * 8 / elapsed / 1e9}


def _connect_over_and_over(seconds: float) -> list[float]:
    times = []
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            began = clock()
            sock.connect((SERVER4, PORT))
            times.append(clock() - began)
    return times


@contextlib.contextmanager
def _protected(system: str) -> Iterator[Lab]:
    """Yield two hosts whose server is protected as *system* does it, with the client let in."""
    with make_stage() as lab, contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", _SERVER]
        stack.enter_context(serving(lab.network.server, command, lab.folder / "server.log", "listening"))
        if system == _STATIC:
            load_ruleset(lab.network, lab.folder, _STATIC_RULES)
        elif system == _NFPKD:
            lab.actions.write("rules.json", open_rule(window=3600))
            stack.enter_context(guarding(lab))
            knock(lab.network.client, SERVER4)
        elif system == _QUEUED:
            stack.enter_context(queue_rules(lab.network, tcp_ports=[PORT]))
            stack.enter_context(empty_listener(lab))
        if not eventually(lambda: outcome(lab.network.client, SERVER4, PORT) == "open"):
            raise RuntimeError("the client is not let in")
        yield lab
