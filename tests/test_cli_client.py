"""`nfpkd knock`, as far as it needs no server; tests/netns has the rest."""

from __future__ import annotations

import functools
import hashlib
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nfpkd.demo.process import NFPKD
from nfpkd.knock import connect
from nfpkd.knock.wire import make_digest
from nfpkd.rules.model import parse_key
from support import commands

KEY = "secret words"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without profiles, and nothing in the environment."""
    for name in ("XDG_CONFIG_HOME", "NFPKD_KEY", "NFPKD_KEY_FILE", "NFPKD_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class Target:
    """A host to knock at: a UDP port on the loopback device."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]
        self.arguments = ("127.0.0.1", "--port", str(self.port))

    def heard(self, key: str = KEY, tag: bytes = b"PKD0") -> bool:
        """Wait for a datagram, and tell whether it is a knock made with *key* and *tag*."""
        payload = self._socket.recv(2048)
        port = self.port.to_bytes(2, "big")
        digest = hashlib.sha256(port * 2 + payload[:24] + parse_key(key).reveal()).digest()
        return payload[:4] == tag and payload[24:] == digest

    def heard_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(2048)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def target() -> Iterator[Target]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield Target(sock)


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A TCP port that answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(5)
        yield sock


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A TCP port that refuses, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield str(sock.getsockname()[1])


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two knocks, and less than a second until it is given up."""
    short = functools.partial(connect.connect_behind_knock, patience=(0.1, 0.1))
    monkeypatch.setattr(connect, "connect_behind_knock", short)


def invoke(*arguments: str, **options: Any) -> Result:
    return commands.invoke("knock", *arguments, **options)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `nfpkd knock` as a process of its own."""
    command = [*NFPKD, "knock", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


def secret_file(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def write_profiles(home: Path, text: str) -> Path:
    return secret_file(home, ".config/nfpkd/knock.toml", text)


@pytest.mark.parametrize("way", ["option", "environment", "file", "prompt"])
def test_a_knock_takes_its_key_from_where_it_is_safe(target: Target, tmp_path: Path, way: str) -> None:
    arguments = [*target.arguments]
    options: dict[str, Any] = {}
    if way == "option":
        arguments += ["--key", KEY]
    elif way == "environment":
        options["env"] = {"NFPKD_KEY": KEY}
    elif way == "file":
        arguments += ["--key-file", str(secret_file(tmp_path, "key", f"{KEY}\n"))]
    else:
        options["input"] = f"{KEY}\n"
    result = invoke(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    assert KEY not in result.stdout + result.stderr
    assert target.heard()
    assert f"knock sent to 127.0.0.1 port {target.port}/udp with tag PKD0" in result.stdout


@pytest.mark.parametrize("option", ["--key-file=-", "--key-fd=0"])
def test_a_key_from_standard_input_leaves_the_rest_to_the_command(target: Target, option: str) -> None:
    done = run(*target.arguments, option, "--exec", "cat", input=f"{KEY}\nfor somebody else\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "for somebody else\n", "")
    assert target.heard()


def test_a_key_comes_from_a_descriptor(target: Target) -> None:
    reading, writing = os.pipe()
    os.write(writing, f"{KEY}\n".encode())
    os.close(writing)
    done = run(*target.arguments, "--key-fd", str(reading), pass_fds=[reading])
    os.close(reading)
    assert done.returncode == 0, done.stderr
    assert target.heard()


@pytest.mark.parametrize(
    ("line", "files"),
    [
        (f"key = '{KEY}'", {}),
        ("key-file = 'saturn.knock'", {".config/nfpkd/saturn.knock": f"{KEY}\n"}),
        (f"key-command = ['echo', '{KEY}']", {}),
    ],
)
def test_a_profile_says_all_that_is_needed(target: Target, home: Path, line: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        secret_file(home, name, text)
    write_profiles(home, f"[saturn]\nhost = '127.0.0.1'\ntag = 'SSH1'\nport = {target.port}\nfamily = 4\n{line}\n")
    result = invoke("saturn")
    assert result.stdout == f"knock sent to 127.0.0.1 port {target.port}/udp with tag SSH1\n"
    assert result.stderr == ""
    assert target.heard(tag=b"SSH1")


def test_a_section_of_ipt_pkds_file_is_a_profile(target: Target, home: Path) -> None:
    secret_file(home, ".ipt_pkd.ini", f"[saturn]\nhost=127.0.0.1\nkey={KEY}\nport={target.port}\n")
    assert invoke("saturn").exit_code == 0
    assert target.heard()


def test_a_profile_of_the_old_form_sends_it(home: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        port = sock.getsockname()[1]
        write_profiles(home, f"[saturn]\nhost = '127.0.0.1'\nkey = '{KEY}'\nport = {port}\nold = true\n")
        assert invoke("saturn").exit_code == 0
        payload = sock.recv(2048)
    assert payload[24:] == make_digest(payload[:24], port, parse_key(KEY).reveal(), old=True)


def test_options_and_environment_go_before_the_profile(target: Target, home: Path) -> None:
    write_profiles(home, "[saturn]\nhost = '127.0.0.1'\ntag = 'SSH1'\nport = 1\nkey = 'another'\n")
    port = str(target.port)
    assert invoke("saturn", "--port", port, "--tag", "SSH2", "--key", KEY).exit_code == 0
    assert target.heard(tag=b"SSH2")
    assert invoke("saturn", "--port", port, env={"NFPKD_TAG": "SSH3", "NFPKD_KEY": KEY}).exit_code == 0
    assert target.heard(tag=b"SSH3")


def test_a_profile_that_is_wrong_is_exit_code_1(home: Path) -> None:
    file = write_profiles(home, f"[saturn]\nkey = '{KEY}'\nprot = 22\n")
    result = invoke("saturn")
    assert result.exit_code == 1
    assert result.stderr.startswith(f'nfpkd: {file}: profile "saturn": there is no field "prot"; the fields are host, ')
    write_profiles(home, f"[saturn]\nkey = '{KEY}'\n").chmod(0o644)
    result = invoke("saturn")
    assert result.exit_code == 1
    assert result.stderr == f'nfpkd: {file}: others can read the key in this file: run "chmod 600 {file}"\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("key-file = 'none'", "/none: no such file or directory"),
        ("key-file = 'empty'", "/empty: the key is empty; it takes 1 to 40 bytes"),
        ("key-command = 'false'", "the key command false ended with exit code 1"),
        ("key-command = ['echo', '0x5b1ecafezz']", "the key command echo: the key starts with"),
    ],
)
def test_a_profile_whose_key_cannot_be_had_is_exit_code_3(home: Path, line: str, said: str) -> None:
    secret_file(home, ".config/nfpkd/empty", "")
    write_profiles(home, f"[saturn]\nhost = '127.0.0.1'\n{line}\n")
    result = invoke("saturn")
    assert result.exit_code == 3
    assert said in result.stderr
    assert "5b1e" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give the host once"),
        (["a", "--host", "b"], "Give the host once"),
        (["127.0.0.1", "--key", "k" * 41], "the key is 41 bytes long; at most 40 fit"),
        (["127.0.0.1", "--key", ""], "the key is empty"),
        (["127.0.0.1", "--key", "k", "--key-file", "-"], "--key and --key-file contradict each other"),
        (["127.0.0.1", "--key-fd", "0", "--key-file", "-"], "--key-file and --key-fd contradict each other"),
        (["127.0.0.1", "--key", "k", "--tag", "12345"], "is 5 bytes long; at most 4 fit"),
        (["127.0.0.1", "--key", "0xzz"], "hex digits only"),
        (["127.0.0.1", "--key-file", "/none"], "--key-file: /none: no such file or directory"),
        (["127.0.0.1", "--key-fd", "999"], "--key-fd: descriptor 999: bad file descriptor"),
        (["127.0.0.1", "--port", "0", "--key", "k"], "0 is not in the range"),
        (["127.0.0.1", "--wait", "0", "--key", "k"], "0 is not in the range"),
        (["127.0.0.1", "--proxy", "65536", "--key", "k"], "65536 is not in the range"),
        (["127.0.0.1", "--proxy", "22", "--wait", "22"], "--proxy contradicts --wait and --exec"),
        (["127.0.0.1", "--proxy", "22", "--exec", "true"], "--proxy contradicts --wait and --exec"),
        (["127.0.0.1", "--proxy", "22", "--key-file", "-"], "standard input goes to the server"),
        (["127.0.0.1", "--proxy", "22", "--key-fd", "0"], "standard input goes to the server"),
        (["127.0.0.1", "--key", "k", "--exec"], "requires an argument"),
        (["127.0.0.1", "--key", "k", "--exec", "no-such-command"], "there is no command 'no-such-command'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: Sequence[str], said: str) -> None:
    result = invoke(*arguments, input="")
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_unknown_host_is_exit_code_3() -> None:
    result = invoke("no such host", "--key", "k")
    assert result.exit_code == 3
    assert "cannot find the host 'no such host'" in result.stderr


def test_a_key_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "key", "")
    file.write_bytes(b"\xff\xfe")
    result = invoke("127.0.0.1", "--key-file", str(file))
    assert result.exit_code == 2
    assert "cannot be read as text" in result.stderr


def test_odd_hex_is_warned_of(target: Target) -> None:
    result = invoke(*target.arguments, "--key", "0xabc")
    assert result.exit_code == 0
    assert "odd number of hex digits" in result.stderr


@pytest.mark.parametrize("by", ["option", "profile"])
def test_a_port_that_opens_is_waited_for(target: Target, door: socket.socket, home: Path, by: str) -> None:
    port = door.getsockname()[1]
    if by == "option":
        result = invoke(*target.arguments, "--key", KEY, "--wait", str(port))
    else:
        line = f"host = '127.0.0.1'\nport = {target.port}\nkey = '{KEY}'\nconnect = {port}\n"
        write_profiles(home, f"[saturn]\n{line}")
        result = invoke("saturn")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"connected to 127.0.0.1 port {port}/tcp\n"
    assert result.stderr == ""
    with door.accept()[0] as connection:
        assert connection.recv(1) == b""
    assert target.heard()


@pytest.mark.usefixtures("quickly")
def test_a_port_that_stays_closed_is_exit_code_3(target: Target, closed_port: str) -> None:
    result = invoke(*target.arguments, "--key", KEY, "--wait", closed_port)
    assert result.exit_code == 3
    assert result.stdout == ""
    again, failed, advice = result.stderr.splitlines()
    assert again == f"nfpkd: 127.0.0.1 port {closed_port}/tcp: connection refused; knocking again"
    assert failed.startswith(f"nfpkd: cannot connect to 127.0.0.1 port {closed_port}/tcp: connection refused, after 2 ")
    assert advice.startswith("nfpkd: look at the key, the tag and both clocks")
    assert target.heard()
    assert target.heard()
    assert target.heard_nothing()


def test_all_behind_exec_is_the_commands(target: Target) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ.get('NFPKD_KEY'), os.getpid())"
    words = ["--tag", "--exec", "", "--", "-h", "a b"]
    command = [*NFPKD, "knock", *target.arguments, "--exec", sys.executable, "-c", code, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NFPKD_KEY": KEY})
    said, _ = process.communicate(timeout=30)
    # The same process: what the shell waits for, and what gets the signals.
    assert said == f"{words} None {process.pid}\n"
    assert target.heard()


def test_a_command_gets_its_signals_back(target: Target) -> None:
    done = run(*target.arguments, "--key", KEY, "--exec", "grep", "SigIgn", "/proc/self/status")
    assert not int(done.stdout.split()[1], 16) & 1 << (signal.SIGPIPE - 1)


def test_the_exit_code_is_the_commands(target: Target) -> None:
    assert run(*target.arguments, "--key", KEY, "--exec", "sh", "-c", "exit 42").returncode == 42


@pytest.mark.usefixtures("quickly")
def test_a_command_is_not_run_before_the_port_is_open(target: Target, closed_port: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    result = invoke(*target.arguments, "--key", KEY, "--wait", closed_port, "--exec", "touch", str(ran))
    assert result.exit_code == 3
    assert not ran.exists()


def test_a_command_that_cannot_be_found_costs_no_knock(target: Target) -> None:
    assert invoke(*target.arguments, "--key", KEY, "--exec", "no-such-command").exit_code == 2
    assert target.heard_nothing()


def test_a_command_that_cannot_be_run_is_exit_code_3(target: Target, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("neither a binary nor a script\n")
    program.chmod(0o755)
    done = run(*target.arguments, "--key", KEY, "--exec", str(program))
    assert (done.returncode, done.stderr) == (3, f"nfpkd: cannot run {program}: Exec format error\n")


def start_proxy(door: socket.socket, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [*NFPKD, "knock", *arguments, "--proxy", str(door.getsockname()[1])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_proxy_passes_on_what_comes_and_goes_and_nothing_else(target: Target, door: socket.socket) -> None:
    process = start_proxy(door, *target.arguments, env={**os.environ, "NFPKD_KEY": KEY})
    with door.accept()[0] as connection:
        connection.sendall(b"SSH-2.0-server\r\n")
        connection.shutdown(socket.SHUT_WR)
        said, complaints = process.communicate(b"SSH-2.0-client\r\n", timeout=30)
        assert connection.makefile("rb").read() == b"SSH-2.0-client\r\n"
    assert (said, complaints, process.returncode) == (b"SSH-2.0-server\r\n", b"", 0)
    assert target.heard()


@pytest.mark.usefixtures("quickly")
def test_a_proxy_that_fails_leaves_standard_output_alone(target: Target, closed_port: str) -> None:
    result = invoke(*target.arguments, "--key", KEY, "--proxy", closed_port)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "cannot connect to" in result.stderr


# Makes the terminal named by its first argument the session's own, and goes on as the rest.
TAKE_TERMINAL = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"


def test_a_proxy_asks_the_terminal_for_the_key(target: Target, door: socket.socket) -> None:
    keyboard, terminal = pty.openpty()
    wrapper = [sys.executable, "-c", TAKE_TERMINAL, os.ttyname(terminal)]
    command = [*wrapper, *NFPKD, "knock", *target.arguments, "--proxy", str(door.getsockname()[1])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        # What is typed before the terminal has become silent would be thrown away.
        os.read(keyboard, 1)
        os.write(keyboard, f"{KEY}\n".encode())
        with door.accept()[0] as connection:
            connection.shutdown(socket.SHUT_WR)
            assert process.communicate(b"for the server", timeout=30)[0] == b""
            assert connection.recv(100) == b"for the server"
    os.close(keyboard)
    os.close(terminal)
    assert target.heard()


def test_a_proxy_without_a_terminal_says_that_it_cannot_ask(target: Target, door: socket.socket) -> None:
    process = start_proxy(door, *target.arguments, start_new_session=True)
    said, complaints = process.communicate(KEY.encode(), timeout=30)
    assert (process.returncode, said) == (3, b"")
    assert complaints.startswith(b"nfpkd: no terminal to ask for the key: name a key file")
    assert target.heard_nothing()
