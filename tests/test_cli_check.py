"""`nfpkd check` with its warnings, and `nfpkd keygen`, which makes rules that have none."""

from __future__ import annotations

import grp
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nfpkd.firewall import sessions
from nfpkd.firewall.sessions import list_listening_services, parse_listening
from nfpkd.rules.model import Protocol, Service, parse_tag
from support.commands import invoke

GOOD = "0x0d5e2a0f8be47c91d3368a77f14ec2b96a1f"
SSH = {"name": "ssh", "key": GOOD, "port": 22, "protocol": "tcp"}
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(port: int, state: str) -> str:
    return f"   0: 00000000:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100 0\n"


@pytest.fixture(autouse=True)
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host where something listens on 22/tcp and 51820/udp."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "tcp").write_text(HEADER + row(22, "0A") + row(23, "01"))
    (folder / "udp").write_text(HEADER + row(51820, "07") + row(53, "01"))
    monkeypatch.setattr(sessions, "_PROC", folder)
    return folder


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    folder = tmp_path / "actions.d"
    folder.mkdir()
    return folder


def write(folder: Path, *rules: dict[str, Any], name: str = "rules.json") -> Path:
    return write_text(folder / name, json.dumps(rules))


def write_text(file: Path, text: str) -> Path:
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def check(actions: Path, *arguments: str) -> Result:
    return invoke("check", "--actions", actions, *arguments)


def test_rules_without_smells_pass_in_silence(actions: Path) -> None:
    write(actions, SSH)
    result = check(actions, "--strict")
    assert (result.exit_code, result.stderr) == (0, "")


def test_warnings_have_places_and_fail_only_if_strict(actions: Path) -> None:
    first = write(actions, SSH | {"key": "secret words", "tag": "0xabc"}, name="a.json")
    second = write(actions, SSH | {"name": "web", "port": 80}, name="b.json")
    result = check(actions)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"warning: {first}:1:")
    assert "odd number" in lines[0]
    assert re.match(rf'warning: {first}:1:\d+: "key" has about 24 bits', lines[1])
    assert re.match(rf"warning: {second}:1:\d+: nothing listens on 80/tcp", lines[2])
    assert "secret" not in result.stdout + result.stderr
    strict = check(actions, "--strict")
    assert strict.exit_code == 1
    assert strict.stdout == result.stdout
    assert strict.stderr.splitlines() == [*lines, "nfpkd: 3 warnings, which --strict does not allow"]


def test_smells_are_told_in_the_order_of_the_files(actions: Path) -> None:
    write(actions, *(SSH | {"name": f"r{n}", "port": n, "skew": -1} for n in range(23, 26)))
    places = [int(line.split(":")[3]) for line in check(actions).stderr.splitlines()]
    assert len(places) == 3 * 2 + 2
    assert places == sorted(places)


def test_what_listens_is_read_from_proc(proc: Path) -> None:
    (proc / "udp6").write_text(HEADER + row(443, "07"))
    assert list_listening_services() == {
        Service(Protocol.TCP, 22),
        Service(Protocol.UDP, 51820),
        Service(Protocol.UDP, 443),
    }


def test_a_proc_that_is_silent_says_nothing_of_ports(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_PROC", tmp_path / "none")
    assert list_listening_services() is None
    write(actions, SSH | {"port": 80})
    assert check(actions, "--strict").exit_code == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_real_listeners_are_found(kind: socket.SocketKind, family: socket.AddressFamily) -> None:
    protocol = Protocol.TCP if kind is socket.SOCK_STREAM else Protocol.UDP
    with socket.socket(family, kind) as sock:
        try:
            sock.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        service = Service(protocol, sock.getsockname()[1])
        name = protocol.label + ("6" if family is socket.AF_INET6 else "")
        table = Path("/proc/thread-self/net") / name
        if protocol is Protocol.TCP:
            assert service not in set(parse_listening(table.read_text(), protocol))
            sock.listen()
        assert service in set(parse_listening(table.read_text(), protocol))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"name": "ssh", "port": 22}),
        (["--name", "home", "--port", "22", "--protocol", "tcp"], {"name": "home", "port": 22, "protocol": "tcp"}),
        (["--port", "51820", "--window", "3600"], {"name": "port-51820", "port": 51820, "window": 3600}),
        (["--port", "22-30", "--tag", "0x01"], {"name": "port-22-30", "port": "22-30", "tag": "0x01"}),
        (
            ["--port", "22,51820", "--protocol", "tcp,udp", "--tag", "a'b"],
            {"name": "port-22-51820", "port": [22, 51820], "protocol": ["tcp", "udp"], "tag": "a'b"},
        ),
    ],
)
def test_a_made_rule_passes_the_strict_check(actions: Path, arguments: list[str], expected: dict[str, Any]) -> None:
    result = invoke("keygen", "--actions", actions, *arguments)
    assert result.exit_code == 0
    (rule,) = json.loads(result.stdout)
    assert re.fullmatch("0x[0-9a-f]{64}", rule.pop("key"))
    if "tag" not in expected:
        assert re.fullmatch("[A-Z][A-Z0-9]{3}", rule.pop("tag"))
    assert rule == expected
    write_text(actions / "made.json", result.stdout)
    checked = check(actions, "--strict")
    assert (checked.exit_code, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("groups", "wanted"), [([], [["chmod", "600"]]), (["nfpkd"], [["chgrp", "nfpkd"], ["chmod", "640"]])]
)
def test_keygen_says_what_to_do_without_the_key(
    actions: Path, monkeypatch: pytest.MonkeyPatch, groups: list[str], wanted: list[list[str]]
) -> None:
    known = {name: grp.struct_group((name, "x", 23456, [])) for name in groups}
    monkeypatch.setattr(grp, "getgrnam", known.__getitem__)
    result = invoke("keygen", "--actions", actions, "--tag", "a b", "--host", "ssh.example.org")
    (rule,) = json.loads(result.stdout)
    assert rule["key"] not in result.stderr
    commands = [shlex.split(line) for line in result.stderr.splitlines() if line.startswith("    ")]
    file = str(actions / "ssh.json")
    assert commands[: len(wanted) + 1] == [*([*words, file] for words in wanted), ["nfpkd", "check"]]
    assert ["nfpkd", "knock", "ssh.example.org", "--tag", "a b", "--key-file", "~/.ssh/ssh.knock"] in commands


def test_the_file_of_a_made_rule_is_one_that_is_read(actions: Path) -> None:
    assert f"{actions}/x.json" in invoke("keygen", "--actions", actions, "--name", ".x").stderr
    assert f"{actions}/rule.json" in invoke("keygen", "--actions", actions, "--name", "..").stderr


def test_keys_and_tags_are_made_anew_each_time() -> None:
    made = [json.loads(invoke("keygen").stdout)[0] for _ in range(5)]
    assert len({rule["key"] for rule in made}) == 5
    assert len({parse_tag(rule["tag"]) for rule in made}) > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "0"], '"port" must be a port number'),
        (["--port", "30-20"], '"port" is not a range of ports from low to high'),
        (["--port", "9" * 5000], '"port" must be a port number'),
        (["--port", "22,"], '"port" must be a port number'),
        (["--name", "a b"], '"name" must be 1 to 64 letters'),
        (["--protocol", "icmp"], '"protocol" must be'),
        (["--tag", "12345"], '"tag" is 5 bytes long; at most 4 fit'),
        # Allowed in a file, but with a warning.
        (["--tag", "0xabc"], '"tag" has an odd number of hex digits'),
        (["--window", "0"], '"window" must be a number of seconds'),
    ],
)
def test_options_that_make_no_rule_are_exit_code_2(arguments: list[str], said: str) -> None:
    result = invoke("keygen", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
