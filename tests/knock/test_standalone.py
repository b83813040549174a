"""contrib/knock.py, the client for wherever nothing can be installed."""

from __future__ import annotations

import ast
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nfpkd
from nfpkd.rules.model import PortRange, Protocol, Rule, TimedKey, parse_key, parse_tag
from nfpkd.verifier.judge import Judge, Outcome
from nfpkd.verifier.packet import Datagram

SCRIPT = Path(__file__).parents[2] / "contrib" / "knock.py"
BEGIN = "# ---- Word for word from nfpkd's own modules"
END = "# ---- From here on"
KEY = "secret words"
# Isolated (-I -S): nothing that is installed, and no nfpkd, within reach.
PYTHON = (sys.executable, "-I", "-S", "-W", "error")


@functools.cache
def statements(text: str) -> dict[str, str]:
    """Return the source of every function, class and assignment at the top of a module, by name."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        else:
            continue
        found[name] = ast.get_source_segment(text, node) or ""
    return found


def copied() -> dict[str, str]:
    return statements(SCRIPT.read_text().partition(BEGIN)[2].partition(END)[0].partition("\n")[2])


def originals() -> dict[str, str]:
    package = Path(nfpkd.__file__).parent
    modules = ("rules/model.py", "knock/wire.py", "knock/connect.py", "knock/relay.py")
    return {name: code for module in modules for name, code in statements((package / module).read_text()).items()}


@pytest.mark.parametrize("name", copied())
def test_what_is_copied_is_word_for_word_the_original(name: str) -> None:
    assert copied()[name] == originals()[name]


def test_the_codec_is_copied_and_not_written_again() -> None:
    assert {"encode_knock", "make_digest", "_HEADER", "_PORTS", "_parse_padded", "parse_text_or_hex"} <= copied().keys()
    own = SCRIPT.read_text().partition(END)[2].partition("\n")[2]
    assert not {"hashlib", "struct"} & {node.id for node in ast.walk(ast.parse(own)) if isinstance(node, ast.Name)}


def test_it_is_a_program_for_python_3_6_with_nothing_but_its_library() -> None:
    text = SCRIPT.read_text()
    assert text.startswith("#!/usr/bin/env python3\n")
    assert os.access(SCRIPT, os.X_OK)
    tree = ast.parse(text, feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


@pytest.fixture(params=["127.0.0.1", "::1"])
def target(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((request.param, 0))
        except OSError:
            pytest.skip(f"no {request.param} here")
        sock.settimeout(10)
        yield sock


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(f"{KEY}\n")
    return str(file)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


def is_accepted(payload: bytes, port: int, tag: str = "PKD0") -> bool:
    rule = Rule("ssh", (TimedKey(parse_key(KEY)),), parse_tag(tag), (PortRange(22, 22),), (Protocol.TCP,))
    judgements = Judge([rule]).judge(Datagram(b"\x7f\0\0\1", port, payload), int(time.time()), time.monotonic())
    return [judgement.outcome for judgement in judgements] == [Outcome.ACCEPTED]


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_its_knock_is_accepted(target: socket.socket, key_file: str, way: str) -> None:
    address, port = target.getsockname()[:2]
    given = [address, "--port", port, "--tag", "0x0102", "--key-file", key_file if way == "file" else "-"]
    done = run(*given, input=f"{KEY}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"knock sent to {address} port {port}/udp\n"
    assert is_accepted(target.recv(1000), port, "0x0102")


def test_it_waits_for_a_port(target: socket.socket, key_file: str) -> None:
    address, port = target.getsockname()[:2]
    with socket.create_server((address, 0), family=target.family) as door:
        done = run(address, "--port", port, "--key-file", key_file, "--wait", door.getsockname()[1])
        assert done.stdout == f"connected to {address} port {door.getsockname()[1]}/tcp\n"
        door.settimeout(5)
        door.accept()[0].close()
    assert is_accepted(target.recv(1000), port)


def test_it_is_a_proxy(target: socket.socket, key_file: str) -> None:
    address, port = target.getsockname()[:2]
    with socket.create_server((address, 0), family=target.family) as door:
        command = [*PYTHON, str(SCRIPT), address, "--port", str(port), "--key-file", key_file]
        command += ["--proxy", str(door.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            door.settimeout(5)
            with door.accept()[0] as connection:
                connection.sendall(b"hello")
                connection.shutdown(socket.SHUT_WR)
                assert process.communicate(b"hello yourself", timeout=30)[0] == b"hello"
                assert connection.recv(100) == b"hello yourself"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no such host", "--key-file", "-"], 3, "knock.py: no such host: "),
        (["a" * 64 + ".example", "--key-file", "-"], 3, "not a host name"),
        (["255.255.255.255", "--key-file", "-"], 3, "knock.py: 255.255.255.255: "),
        (["::1", "-4", "--key-file", "-"], 3, "knock.py: ::1: "),
        (["127.0.0.1", "--key-file", "-", "--tag", "SSH12"], 2, "the tag is 5 bytes long; at most 4 fit"),
        (["127.0.0.1", "--key-file", "/none"], 2, "/none: No such file"),
        (["127.0.0.1", "--key-file", "-", "--proxy", "22"], 2, "with --proxy, give a --key-file"),
        (["127.0.0.1", "--proxy", "22"], 2, "with --proxy, give a --key-file"),
        (["127.0.0.1", "--key-file", "-", "--port", "0"], 2, "argument --port: invalid port_number value: '0'"),
        (["127.0.0.1", "--wait", "22", "--proxy", "22"], 2, "not allowed with argument"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments, input=f"{KEY}\n")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "said"), [("", "the key is empty"), ("k" * 41, "the key is 41 bytes long")])
def test_a_wrong_key_is_not_repeated(text: str, said: str) -> None:
    done = run("127.0.0.1", "--key-file", "-", input=text)
    assert done.returncode == 2
    assert said in done.stderr
    assert "kkk" not in done.stderr


def test_a_key_file_that_others_can_read_is_refused(key_file: str) -> None:
    Path(key_file).chmod(0o644)
    done = run("127.0.0.1", "--key-file", key_file)
    assert done.returncode == 2
    assert f'run "chmod 600 {key_file}"' in done.stderr
