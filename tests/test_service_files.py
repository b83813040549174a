"""What the units, the AppArmor profile and the package say of nfpkd, and of each other.

That they work is tried in a booted guest, by contrib/packaging/try-deb.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from nfpkd.errors import RulesError
from nfpkd.instance import SERVICE_USER
from nfpkd.rules.loader import SERVICE_GROUP, load_rules
from support.commands import COMMANDS
from support.required import find_program

CONTRIB = Path(__file__).parents[1] / "contrib"
TEXTS = {path.name: path.read_text() for path in sorted((CONTRIB / "systemd").iterdir())}
PROFILE = (CONTRIB / "apparmor" / "nfpkd").read_text()
UNITS = {
    path.name: path.read_text()
    for folder in ("systemd", "prometheus")
    for path in sorted((CONTRIB / folder).iterdir())
    if path.suffix in (".service", ".socket", ".timer")
}


def settings(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXTS[unit], re.MULTILINE)


def nfpkd_commands() -> list[list[str]]:
    lines = [
        line for unit in TEXTS for name in ("ExecStart", "ExecReload", "ExecStop") for line in settings(unit, name)
    ]
    words = [shlex.split(line) for line in lines]
    return [found[1:] for found in words if found[0] == "/usr/bin/nfpkd"]


@pytest.mark.parametrize("words", nfpkd_commands(), ids=" ".join)
def test_a_unit_starts_nfpkd_as_it_can_be_started(words: list[str]) -> None:
    name, *rest = words
    command = COMMANDS[name]
    # Raises click.UsageError for an option that is none.
    command.make_context(name, rest, resilient_parsing=False)


def test_there_are_commands_to_look_at() -> None:
    assert {words[0] for words in nfpkd_commands()} == {"apply", "run", "teardown"}


def test_the_daemon_asks_at_the_socket_that_is_there() -> None:
    (path,) = settings("nfpkd-triggers.socket", "ListenSequentialPacket")
    (environment,) = settings("nfpkd.service", "Environment")
    assert environment == f"NFPKD_TRIGGER_SOCKET={path}"
    run = COMMANDS["run"]
    (option,) = [option for option in run.params if option.name == "trigger_socket"]
    assert isinstance(option, click.Option)
    assert option.envvar == "NFPKD_TRIGGER_SOCKET"
    assert f"{path.replace('/run', '@{run}')} rw," in PROFILE


def test_the_user_is_the_one_that_is_made_and_looked_for() -> None:
    (user,) = settings("nfpkd.service", "User")
    assert settings("nfpkd-guard.service", "User") == [user]
    assert settings("nfpkd-triggers.socket", "SocketUser") == [user]
    assert TEXTS["nfpkd.sysusers"].split()[:2] == ["u", user]
    assert user == SERVICE_GROUP == SERVICE_USER
    assert f":root :{user} " in TEXTS["nfpkd.tmpfiles"]


def parse_profile(text: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Compile an AppArmor profile; the kernel is not asked, and no cache is read or written."""
    parser = find_program("apparmor_parser")
    file.write_text(text)
    command = [parser, "--skip-kernel-load", "--skip-read-cache", "--skip-cache", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_apparmor_takes_the_profile(tmp_path: Path) -> None:
    done = parse_profile(PROFILE, tmp_path / "nfpkd")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("capability net_admin,", "capability net_admim,"),
        ("network netlink raw,", "network netlink raw"),
        ("include <abstractions/python>", "include <abstractions/pyhton>"),
        ("/etc/nfpkd/** r,", "/etc/nfpkd/** y,"),
        ("@{run}/systemd/notify w,", "@{rnu}/systemd/notify w,"),
    ],
)
def test_apparmor_would_refuse_a_fault(tmp_path: Path, written: str, instead: str) -> None:
    assert PROFILE.count(written) == 1
    done = parse_profile(PROFILE.replace(written, instead), tmp_path / "nfpkd")
    assert done.returncode != 0
    assert done.stderr


def verify_units(root: Path, texts: Mapping[str, str]) -> str:
    """Return what systemd has to say of units; below *root* is what they are part of, and start."""
    folder = root / "usr" / "lib" / "systemd" / "system"
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    for program in re.findall(r"^Exec\w+=\+?(/\S+)", "".join(UNITS.values()), re.MULTILINE):
        file = root / program[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o755)
    # Neither systemd's own units nor the manual pages are there.
    options = [f"--root={root}", "--recursive-errors=no", "--man=no"]
    names = [name.replace("@.", "@1.") for name in texts]
    command = [find_program("systemd-analyze"), "verify", *options, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    assert verify_units(tmp_path, UNITS) == ""


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivilege=yes", "Unknown key"),
        ("WatchdogSec=60", "WatchdogSec=soon", "Failed to parse"),
        ("ExecStart=/usr/bin/nfpkd ", "ExecStart=/usr/bin/nfpdk ", "not executable"),
    ],
)
def test_systemd_would_tell_of_a_fault(tmp_path: Path, written: str, instead: str, said: str) -> None:
    text = UNITS["nfpkd.service"]
    assert text.count(written) == 1
    assert said in verify_units(tmp_path, UNITS | {"nfpkd.service": text.replace(written, instead)})


@pytest.mark.parametrize("unit", ["nfpkd.service", "nfpkd-guard.service"])
def test_a_service_has_one_capability_and_one_state(unit: str) -> None:
    assert settings(unit, "AmbientCapabilities") == settings(unit, "CapabilityBoundingSet") == ["CAP_NET_ADMIN"]
    assert settings(unit, "StateDirectory") == ["nfpkd"]
    assert settings(unit, "EnvironmentFile") == ["-/etc/nfpkd/environment"]


def test_the_example_is_refused_until_it_has_a_key(tmp_path: Path) -> None:
    """A key that everybody can read in the package must open nothing."""
    example = (CONTRIB / "examples" / "ssh.json").read_text()
    file = tmp_path / "ssh.json"
    file.touch(mode=0o600)
    file.write_text(example)
    with pytest.raises(RulesError, match='"key"'):
        load_rules(tmp_path)
    file.write_text(re.sub('"key": ".*"', f'"key": "0x{"5b" * 32}"', example))
    assert [rule.name for rule in load_rules(tmp_path).rules] == ["ssh"]
