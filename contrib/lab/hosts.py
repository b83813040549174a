"""A server that nfpkd protects, and a client with as many addresses as samples are wanted."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nfpkd.demo.process import NFPKD, Followed
from support.network import CLIENT4, SERVER4, Actions, Network, listen_tcp, make_knock, make_network, run_options

PORT = 2222
KNOCK_PORT = 4711
TAG = "PKD0"
# One knocker is to be judged as often as it knocks.
ANY_RATE = {"knocks": 86_400, "per": 1, "burst": 86_400}

# How long a client waits before it knocks again, and how often it knocks.
PATIENCE_SECONDS = 0.25
MAX_KNOCKS = 3


class Served(NamedTuple):
    """How a client fared: *seconds* from its first knock to its connection, None if it got none."""

    seconds: float | None
    knocks: int


class Lab:
    """Two hosts joined by a cable, rule files, and fresh client addresses."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.actions = Actions(folder / "actions.d")
        self._used = 0
        # Every address of 198.18.0.0/16 (RFC 2544) is the client's; answers to anybody else find their way, too.
        network.client.run("ip", "route", "add", "local", "198.18.0.0/16", "dev", "lo")
        network.server.run("ip", "route", "add", "default", "via", CLIENT4)

    def fresh_address(self) -> str:
        """Return an address of the client's that has not knocked yet."""
        self._used += 1
        return f"198.18.{self._used >> 8 & 0xFF}.{self._used & 0xFF}"

    @contextlib.contextmanager
    def running(self, *options: str) -> Iterator[Followed]:
        """Have `nfpkd run` guard by the rule files."""
        with Followed(self.network.server, self.run_command(*options)) as process:
            process.wait_for("guarding")
            yield process

    def run_command(self, *options: str) -> list[str]:
        return [*NFPKD, "run", *run_options(self.actions), *options]

    def status(self) -> dict[str, Any]:
        """Return what `nfpkd status --format json` says."""
        found: dict[str, Any] = json.loads(self.network.nfpkd("status", "--format", "json").stdout)
        return found

    @contextlib.contextmanager
    def serving(self, port: int = PORT) -> Iterator[None]:
        """Have the server's kernel complete handshakes at *port*."""
        with listen_tcp(self.network.server, port) as listener:
            listener.listen(4096)
            yield

    def knock_and_connect(self, source: str, port: int = PORT) -> Served:
        """Knock and connect from *source* in one go, and again if nothing comes of it; call it inside the client."""
        started = time.perf_counter()
        for attempt in range(MAX_KNOCKS):
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
                socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as tcp,
            ):
                udp.bind((source, 0))
                tcp.bind((source, 0))
                udp.sendto(make_knock(KNOCK_PORT), (SERVER4, KNOCK_PORT))
                tcp.connect_ex((SERVER4, port))
                _, connected, _ = select.select([], [tcp], [], PATIENCE_SECONDS)
                if connected and not tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return Served(time.perf_counter() - started, attempt + 1)
        return Served(None, MAX_KNOCKS)


@contextlib.contextmanager
def make_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as folder, make_network() as network:
        yield Lab(network, Path(folder))


def resident_kib(process: int) -> int:
    """Return how much memory *process* has resident, in KiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])
