"""Two hosts joined by a cable, and what a person would do on them."""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nfpkd.demo.namespaces import Namespace, connect
from nfpkd.demo.process import NFPKD, Followed
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.ruleset import Options
from nfpkd.firewall.sessions import list_open_sessions
from nfpkd.firewall.state import State
from nfpkd.knock.wire import RANDOM_LENGTH, encode_knock
from nfpkd.rules.model import Rule, parse_key, parse_tag

SERVER4, SERVER6 = "192.0.2.1", "2001:db8::1"
CLIENT4, CLIENT6 = "192.0.2.2", "2001:db8::2"
# A second address of the client's: a stranger behind the same cable.
STRANGER4, STRANGER6 = "192.0.2.3", "2001:db8::3"
SERVERS = {4: SERVER4, 6: SERVER6}
CLIENTS = {4: CLIENT4, 6: CLIENT6}
STRANGERS = {4: STRANGER4, 6: STRANGER6}

KEY = "a key for the tests"
DEFAULTS = Options()
# What silence is: how long an answer is waited for that should not come.
SILENCE = 0.25


class Network:
    """A server to protect and a client to knock."""

    def __init__(self, server: Namespace, client: Namespace) -> None:
        self.server = server
        self.client = client

    def firewall(self) -> Firewall:
        """Return the server's firewall; use it inside ``with network.server.entered()``."""
        return Firewall(NftablesKernel(), list_open_sessions)

    def enforce(self, *rules: Rule, options: Options = DEFAULTS) -> None:
        with self.server.entered():
            self.firewall().apply(rules, options)

    def state(self) -> State:
        with self.server.entered():
            state = self.firewall().read_state()
        assert state is not None
        return state

    def nft(self, *words: str) -> str:
        return self.server.run("nft", *words)

    def nfpkd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an nfpkd command on the server, to its end."""
        with self.server.entered():
            return subprocess.run([*NFPKD, *arguments], capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def make_network() -> Iterator[Network]:
    with Namespace("server") as server, Namespace("client") as client:
        connect(
            server,
            [f"{SERVER4}/24", f"{SERVER6}/64"],
            client,
            [f"{CLIENT4}/24", f"{STRANGER4}/24", f"{CLIENT6}/64", f"{STRANGER6}/64"],
        )
        yield Network(server, client)


def listen_tcp(host: Namespace, port: int, family: int = 4) -> socket.socket:
    """Return a listening socket on every address; the kernel completes handshakes by itself."""
    with host.entered():
        sock = socket.socket(_family(family), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::" if family == 6 else "0.0.0.0", port))  # noqa: S104  (a namespace of the test's own)
    sock.listen(128)
    return sock


def open_udp(host: Namespace, port: int = 0, family: int = 4, address: str = "") -> socket.socket:
    with host.entered():
        sock = socket.socket(_family(family), socket.SOCK_DGRAM)
    sock.bind((address or ("::" if family == 6 else "0.0.0.0"), port))  # noqa: S104
    return sock


def try_connect(host: Namespace, address: str, port: int, source: str = "") -> socket.socket | str:
    """Return the connection, or in a word what came instead: ``silence``, ``reset``, or an errno's name."""
    with host.entered():
        sock = socket.socket(_family(6 if ":" in address else 4), socket.SOCK_STREAM)
    sock.settimeout(SILENCE)
    if source:
        sock.bind((source, 0))
    try:
        sock.connect((address, port))
    except TimeoutError:
        sock.close()
        return "silence"
    except OSError as error:
        sock.close()
        return "reset" if error.errno == errno.ECONNREFUSED else errno.errorcode[error.errno or 0]
    sock.settimeout(10)
    return sock


def outcome(host: Namespace, address: str, port: int, source: str = "") -> str:
    """Connect and close; return ``open`` or what came instead."""
    result = try_connect(host, address, port, source)
    if isinstance(result, str):
        return result
    result.close()
    return "open"


def receives(sock: socket.socket, patience: float = SILENCE) -> bytes | None:
    """Return the next datagram of *sock*, or None if none comes."""
    sock.settimeout(patience)
    try:
        return sock.recv(4096)
    except TimeoutError:
        return None


def make_knock(port: int, key: str = KEY, tag: str = "PKD0", *, at: float | None = None, old: bool = False) -> bytes:
    stamp = int(time.time() if at is None else at)
    return encode_knock(
        parse_key(key).reveal(), parse_tag(tag), port, stamp, secrets.token_bytes(RANDOM_LENGTH), old=old
    )


def send_udp(host: Namespace, payload: bytes, address: str, port: int, source: str = "") -> None:
    with open_udp(host, 0, 6 if ":" in address else 4, source) as sock:
        sock.sendto(payload, (address, port))


def knock(
    host: Namespace, address: str, key: str = KEY, tag: str = "PKD0", *, port: int = 4711, source: str = ""
) -> bytes:
    """Send a knock and return its bytes."""
    payload = make_knock(port, key, tag)
    send_udp(host, payload, address, port, source)
    return payload


def eventually(condition: Callable[[], bool], patience: float = 10.0) -> bool:
    """Return whether *condition* came true in time, asking often."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Actions:
    """A directory of rule files, as an administrator keeps it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(mode=0o755)

    def write(self, name: str, *rules: dict[str, Any]) -> Path:
        """Write the rule file *name*, as an editor does that keeps the file."""
        return self.write_text(name, json.dumps(rules))

    def write_text(self, name: str, text: str) -> Path:
        file = self.path / name
        file.touch(mode=0o600)
        file.write_text(text)
        return file


def rule(name: str, port: int | str | list[Any], **fields: Any) -> dict[str, Any]:
    """Return a rule as a rule file has it."""
    return {"name": name, "key": KEY, "port": port, "protocol": "tcp", **fields}


def run_options(actions: Actions) -> list[str]:
    return ["--actions", str(actions.path), "--state-dir", str(actions.path.with_name("state"))]


@contextlib.contextmanager
def running(network: Network, actions: Actions, *options: str) -> Iterator[Followed]:
    """Have `nfpkd run` on the server, ready to judge."""
    command = [*NFPKD, "run", *run_options(actions), *options]
    with Followed(network.server, command) as process:
        process.wait_for("guarding")
        yield process


def _family(family: int) -> socket.AddressFamily:
    return socket.AF_INET6 if family == 6 else socket.AF_INET
