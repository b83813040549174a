"""The client against a running nfpkd: waiting, proxying, and packets that get lost."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import (
    CLIENTS,
    KEY,
    SERVER4,
    SERVERS,
    STRANGER4,
    Actions,
    Network,
    knock,
    listen_tcp,
    outcome,
    rule,
    running,
)

PORT = 2222
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
STANDALONE = (sys.executable, "-I", "-S", str(Path(__file__).parents[2] / "contrib" / "knock.py"))
KNOCK = (*NFPKD, "knock")
BOTH_CLIENTS = pytest.mark.parametrize("client", [KNOCK, STANDALONE], ids=["nfpkd knock", "knock.py"])

# As ssh's server and client do, both sides speak at once; then everything comes back until there is no more.
ECHO = """
import socket, sys, threading
def echo(connection):
    with connection:
        connection.sendall(b"hello ")
        while data := connection.recv(65536):
            connection.sendall(data)
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "NFPKD_KEY", "NFPKD_KEY_FILE", "NFPKD_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def key_file(home: Path) -> str:
    return str(secret_file(home / "key", KEY))


@pytest.fixture(name="echo")
def run_echo(network: Network) -> Iterator[None]:
    with Followed(network.server, [sys.executable, "-c", ECHO, str(PORT)]) as server:
        server.wait_for("listening")
        yield


def secret_file(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def run(network: Network, command: Sequence[str], said: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run *command* on the client, to its end, with *said* on its standard input."""
    with network.client.entered():
        return subprocess.run(command, input=said, capture_output=True, timeout=60, check=False)


def lose_first_knock(network: Network) -> None:
    """Have the first knock get lost on the way: one packet is within this limit, and what is within it is dropped."""
    network.nft("add table inet cable")
    network.nft("add chain inet cable loses { type filter hook prerouting priority -400 ; }")
    network.nft("add rule inet cable loses udp length 64 limit rate 1/day burst 1 packets drop")


@FAMILIES
@BOTH_CLIENTS
def test_a_guarded_port_is_waited_for(
    network: Network, actions: Actions, key_file: str, client: tuple[str, ...], family: int
) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT, family), running(network, actions):
        assert outcome(network.client, SERVERS[family], PORT) == "silence"
        began = time.monotonic()
        done = run(network, [*client, SERVERS[family], "--key-file", key_file, "--wait", str(PORT)])
        # At the first knock: the second comes after 2 seconds.
        assert time.monotonic() - began < 2
        assert done.stdout.decode() == f"connected to {SERVERS[family]} port {PORT}/tcp\n"
        assert (done.returncode, done.stderr) == (0, b"")
        assert outcome(network.client, SERVERS[family], PORT) == "open"


@pytest.mark.parametrize("reject", ["drop", "reset"])
@BOTH_CLIENTS
def test_a_lost_knock_is_made_good_by_the_next(
    network: Network, actions: Actions, key_file: str, client: tuple[str, ...], reject: str
) -> None:
    actions.write("door.json", rule("door", PORT, reject=reject))
    lose_first_knock(network)
    with listen_tcp(network.server, PORT), running(network, actions) as run_:
        done = run(network, [*client, SERVER4, "--key-file", key_file, "--wait", str(PORT)])
        assert done.returncode == 0
        came_instead = "no answer" if reject == "drop" else "connection refused"
        assert f"port {PORT}/tcp: {came_instead}; knocking again\n" in done.stderr.decode().lower()
        lines = run_.wait_for("knock accepted")
        assert not any("refused" in line for line in lines)


def test_somebody_elses_knock_in_the_same_moment_only_delays(network: Network, actions: Actions, key_file: str) -> None:
    """They share a rule, and with it the rate: one knock in 5 seconds."""
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run_:
        knock(network.client, SERVER4, source=STRANGER4)
        run_.wait_for("knock accepted")
        began = time.monotonic()
        done = run(network, [*KNOCK, SERVER4, "--key-file", key_file, "--wait", str(PORT)])
        assert done.returncode == 0
        # The one after 2 seconds is too soon, too; the one after 6 is not.
        assert 5 < time.monotonic() - began < 8
        assert done.stderr.count(b"knocking again") == 2
        assert sum("rate-limited" in line for line in run_.wait_for("knock accepted")) == 2


@pytest.mark.usefixtures("echo")
@BOTH_CLIENTS
def test_a_proxy_carries_a_connection_both_ways(
    network: Network, actions: Actions, key_file: str, client: tuple[str, ...]
) -> None:
    actions.write("door.json", rule("door", PORT))
    said = secrets.token_bytes(5 << 20)
    with running(network, actions):
        done = run(network, [*client, SERVER4, "--key-file", key_file, "--proxy", str(PORT)], said)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(b"hello " + said).digest()


@pytest.mark.usefixtures("echo")
def test_a_proxy_is_enough_for_a_rule_that_lets_one_connection_in(
    network: Network, actions: Actions, key_file: str
) -> None:
    actions.write("door.json", rule("door", PORT, once=True))
    with running(network, actions):
        done = run(network, [*KNOCK, SERVER4, "--key-file", key_file, "--proxy", str(PORT)], b"world")
        assert done.stdout == b"hello world"
        assert outcome(network.client, SERVER4, PORT, CLIENTS[4]) == "silence"


@pytest.mark.usefixtures("echo")
def test_a_proxy_ends_when_whoever_uses_it_does(network: Network, actions: Actions, key_file: str) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions), network.client.entered():
        command = [*KNOCK, SERVER4, "--key-file", key_file, "--proxy", str(PORT)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.read(6) == b"hello "
            # As after kill -9: both pipes are closed.
            process.stdout.close()
            process.stdin.close()
            assert process.wait(10) == 0


def test_a_command_finds_the_door_open(network: Network, actions: Actions, home: Path) -> None:
    """Without a port to wait for, its first SYN is right behind the knock."""
    actions.write("door.json", rule("door", PORT, tag="SSH1"))
    profile = f"[saturn]\nhost = '{SERVER4}'\ntag = 'SSH1'\nkey = '{KEY}'\n"
    secret_file(home / ".config/nfpkd/knock.toml", profile)
    code = f"import socket; socket.create_connection(('{SERVER4}', {PORT}), 0.5); print('inside')"
    with listen_tcp(network.server, PORT), running(network, actions):
        done = run(network, [*KNOCK, "saturn", "--exec", sys.executable, "-c", code])
        assert (done.returncode, done.stdout, done.stderr) == (0, b"inside\n", b"")


def test_a_command_waits_for_the_profiles_port(network: Network, actions: Actions, home: Path) -> None:
    actions.write("door.json", rule("door", PORT, tag="SSH1"))
    profile = f"[saturn]\nhost = '{SERVER4}'\ntag = 'SSH1'\nkey-command = ['echo', '{KEY}']\nconnect = {PORT}\n"
    secret_file(home / ".config/nfpkd/knock.toml", profile)
    lose_first_knock(network)
    code = f"import socket; socket.create_connection(('{SERVER4}', {PORT}), 0.5); print('inside')"
    with listen_tcp(network.server, PORT), running(network, actions):
        done = run(network, [*KNOCK, "saturn", "--exec", sys.executable, "-c", code])
        assert (done.returncode, done.stdout) == (0, b"inside\n")
        assert done.stderr.count(b"knocking again") == 1


def test_a_file_of_ipt_pkd_opens_a_rule_of_its_form(network: Network, actions: Actions, home: Path) -> None:
    actions.write("door.json", rule("door", PORT, tag="SSHK", old=True))
    secret_file(home / ".ipt_pkd.ini", f"[saturn]\nhost={SERVER4}\nkey={KEY}\ntag=SSHK\nold=1\n")
    with listen_tcp(network.server, PORT), running(network, actions) as run_:
        done = run(network, [*KNOCK, "saturn"])
        assert done.returncode == 0
        run_.wait_for("knock accepted")
        assert outcome(network.client, SERVER4, PORT, CLIENTS[4]) == "open"
