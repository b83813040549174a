"""What the units, the AppArmor profile and the package say of nfpkd, and of each other.

That they work is tried in a booted guest, by contrib/packaging/try-deb.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from nfpkd import cli
from nfpkd.errors import RulesError
from nfpkd.rules.loader import SERVICE_GROUP, load_rules

CONTRIB = Path(__file__).parents[1] / "contrib"
TEXTS = {path.name: path.read_text() for path in sorted((CONTRIB / "systemd").iterdir())}


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
    command = cli.main.commands[name]
    # Raises click.UsageError for an option that is none.
    command.make_context(name, rest, resilient_parsing=False)


def test_there_are_commands_to_look_at() -> None:
    assert {words[0] for words in nfpkd_commands()} == {"apply", "run", "teardown"}


def test_the_daemon_asks_at_the_socket_that_is_there() -> None:
    (path,) = settings("nfpkd-triggers.socket", "ListenSequentialPacket")
    (environment,) = settings("nfpkd.service", "Environment")
    assert environment == f"NFPKD_TRIGGER_SOCKET={path}"
    run = cli.main.commands["run"]
    (option,) = [option for option in run.params if option.name == "trigger_socket"]
    assert isinstance(option, click.Option)
    assert option.envvar == "NFPKD_TRIGGER_SOCKET"
    profile = (CONTRIB / "apparmor" / "nfpkd").read_text()
    assert f"{path.replace('/run', '@{run}')} rw," in profile


def test_the_user_is_the_one_that_is_made_and_looked_for() -> None:
    (user,) = settings("nfpkd.service", "User")
    assert settings("nfpkd-guard.service", "User") == [user]
    assert settings("nfpkd-triggers.socket", "SocketUser") == [user]
    assert TEXTS["nfpkd.sysusers"].split()[:2] == ["u", user]
    assert user == SERVICE_GROUP
    assert f":root :{user} " in TEXTS["nfpkd.tmpfiles"]


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
