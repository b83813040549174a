"""The commands as far as they need no kernel; tests/netns has the rest."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from nfpkd import privileges
from nfpkd.cli import guard
from nfpkd.errors import KernelError
from nfpkd.firewall.firewall import Firewall
from nfpkd.rules import loader
from nfpkd.rules.loader import load_rules
from support.commands import COMMANDS, invoke
from support.fake_kernel import FakeKernel


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    folder = tmp_path / "actions.d"
    folder.mkdir()
    return folder


def write(folder: Path, *rules: dict[str, Any], name: str = "rules.json") -> None:
    file = folder / name
    file.touch(mode=0o600)
    file.write_text(json.dumps(rules))


SSH = {"name": "ssh", "key": "secret words", "port": 22, "protocol": "tcp"}


def test_check_prints_one_line_for_each_rule(actions: Path) -> None:
    write(
        actions, SSH, {"name": "vpn", "key": "k", "port": 51820, "tag": "0x01", "skew": -1, "old": True, "reset": True}
    )
    result = invoke("check", "--actions", str(actions))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ssh:  22/tcp     opens for 60 s to tag PKD0, others get drop; clock within 10 s",
        "vpn:  51820/any  opens for 60 s to tag 0x01000000, others get reset; clock ignored; old digest too",
    ]


def test_check_reports_every_error_with_its_place(actions: Path) -> None:
    write(actions, {"name": "a b", "key": "secret words", "port": 0})
    write(actions, {"nmae": "ssh", "key": "secret words"}, name="zz.json")
    result = invoke("check", "--actions", str(actions))
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f'nfpkd: {actions}/rules.json:1:11: "name" must be')
    assert any('zz.json:1:3: "nmae" is not a field of the rule; did you mean "name"?' in line for line in lines)
    assert len(lines) == 4
    assert "secret" not in result.stderr


def test_check_warns_and_passes(actions: Path) -> None:
    write(actions, SSH | {"key": "0xabc"})
    result = invoke("check", "--actions", str(actions))
    assert result.exit_code == 0
    assert "warning:" in result.stderr
    assert "odd number of hex digits" in result.stderr


def test_no_rules_is_said(actions: Path) -> None:
    assert "nothing would be guarded" in invoke("check", "--actions", str(actions)).stderr


def test_a_missing_directory_says_what_to_do(tmp_path: Path) -> None:
    result = invoke("check", "--actions", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert 'say where the rules are with "--actions"' in result.stderr


def test_options_come_from_the_environment(actions: Path) -> None:
    write(actions, SSH)
    result = invoke("check", env={"NFPKD_ACTIONS": str(actions)})
    assert result.exit_code == 0
    assert "ssh:  22/tcp" in result.stdout


FORMATS = {
    name: option.type.choices
    for name, command in COMMANDS.items()
    for option in command.params
    if "--format" in option.opts and isinstance(option.type, click.Choice)
}


@pytest.mark.parametrize("asked", sorted({form for forms in FORMATS.values() for form in forms}))
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_the_environment_asks_of_another_command_stops_none(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    monkeypatch.setenv("NFPKD_FORMAT", asked)
    form = COMMANDS[name].make_context(name, []).params["form"]
    assert form == (asked if asked in FORMATS[name] else "text")


def test_there_are_formats_that_not_every_command_has() -> None:
    assert set(FORMATS["status"]) > set(FORMATS["doctor"])


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["doctor", "--format", "prometheus"], {}),
        (["doctor", "--format", "prometheus"], {"NFPKD_FORMAT": "json"}),
        (["doctor"], {"NFPKD_FORMAT": "jason"}),
        (["status"], {"NFPKD_FORMAT": "jason"}),
    ],
)
def test_what_was_asked_of_this_command_or_is_no_format_is_an_error(
    arguments: list[str], environment: dict[str, str]
) -> None:
    result = invoke(*arguments, env=environment)
    assert result.exit_code == 2
    assert "Invalid value for '--format'" in result.stderr


def test_loose_modes_are_refused_unless_allowed(actions: Path) -> None:
    write(actions, SSH)
    (actions / "rules.json").chmod(0o644)
    refused = invoke("check", "--actions", str(actions))
    assert refused.exit_code == 1
    assert "others can read this file with its keys" in refused.stderr
    assert invoke("check", "--actions", str(actions), "--no-strict-modes").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "-v", "-q"], "contradict each other"),
        (["apply", "--queue", "65536"], "is not in the range"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], said: str) -> None:
    result = invoke(*arguments, input="")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_kernel_that_refuses_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KernelError("refused\x1b[31m", "do that")

    monkeypatch.setattr(guard, "open_firewall", refuse)
    result = invoke("status")
    assert result.exit_code == 3
    assert result.stderr == "nfpkd: refused\\x1b[31m: do that\n"


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch) -> Firewall:
    """What the commands find, instead of the kernel's."""
    firewall = Firewall(FakeKernel(), list)
    monkeypatch.setattr(guard, "open_firewall", lambda: firewall)
    return firewall


@pytest.fixture
def boot(actions: Path) -> Callable[[], Result]:
    """`nfpkd apply --last-good`, as it runs at boot."""
    state = str(actions.with_name("state"))
    return lambda: invoke("apply", "--last-good", "--actions", str(actions), "--state-dir", state)


def test_rules_with_errors_at_boot_leave_the_last_good_guard(
    actions: Path, firewall: Firewall, boot: Callable[[], Result]
) -> None:
    write(actions, SSH)
    assert boot().exit_code == 0
    before = firewall.read_state()
    firewall.teardown()
    (actions / "rules.json").write_text("[{]")
    result = boot()
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("nfpkd: the rules are not applied; the last good guard, from ")
    assert f"{actions}/rules.json:1:3: " in second
    assert firewall.read_state() == before
    assert before is not None


def test_rules_that_the_kernel_refuses_at_boot_leave_the_last_good_guard(
    actions: Path, monkeypatch: pytest.MonkeyPatch, boot: Callable[[], Result]
) -> None:
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    monkeypatch.setattr(guard, "open_firewall", lambda: firewall)
    write(actions, SSH)
    boot()
    firewall.teardown()
    write(actions, SSH | {"port": 23})
    # As often as `apply` tries.
    kernel.fail_next(3)
    result = boot()
    assert result.exit_code == 3
    assert "the last good guard, from " in result.stderr
    state = firewall.read_state()
    assert state is not None
    assert [service.port for service in state.gated] == [22]


def test_what_failed_is_never_kept(actions: Path, firewall: Firewall, boot: Callable[[], Result]) -> None:
    write(actions, SSH)
    boot()
    kept = actions.with_name("state") / "last-good"
    before = kept.read_bytes()
    (actions / "rules.json").write_text("[{]")
    result = boot()
    assert kept.read_bytes() == before
    # Nothing was lost, so nothing is made again.
    assert "what was guarded before stays guarded" in result.stderr
    assert firewall.read_state() is not None


OTHERS = '{"directory": "/", "texts": [], "guard": [{"delete": {"table": {"family": "inet", "name": "x"}}}]}'
REFUSED = f"{hashlib.sha256(OTHERS.encode()).hexdigest()}\n{OTHERS}"


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "nothing is guarded, and no last good guard is in "),
        ("[", "neither is the last good guard: the last good rules, in "),
        (REFUSED, "neither is the last good guard: no such table"),
    ],
)
def test_a_boot_with_nothing_good_says_so(
    actions: Path, firewall: Firewall, boot: Callable[[], Result], kept: str | None, said: str
) -> None:
    (actions / "rules.json").write_text("[{]")
    if kept is not None:
        actions.with_name("state").mkdir()
        (actions.with_name("state") / "last-good").write_text(kept)
    result = boot()
    assert result.exit_code == 1
    assert said in result.stderr
    assert firewall.read_state() is None


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--confirm", "5"], "contradict each other"), (["--state-dir", "none"], "takes a --state-dir")],
)
@pytest.mark.parametrize("command", ["apply", "run"])
def test_what_the_last_good_does_not_go_with(actions: Path, command: str, options: list[str], said: str) -> None:
    result = invoke(command, "--last-good", "--actions", str(actions), *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_dry_run_without_the_privilege_is_checked_by_nfpkd_alone(
    actions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "has_net_admin", lambda: False)
    write(actions, SSH)
    result = invoke("apply", "--dry-run", "--actions", str(actions))
    assert result.exit_code == 0
    assert "as if no guard were in place" in result.stderr
    assert json.loads(result.stdout)["nftables"]


def test_help_loads_next_to_nothing() -> None:
    code = "import sys; from nfpkd.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split("\n")[-2].split() if name.startswith("nfpkd")}
    assert {name for name in loaded if not name.startswith("nfpkd.cli")} == {"nfpkd", "nfpkd.errors", "nfpkd.text"}
    heavy = {"asyncio", "jsonschema", "nftables", "netfilterqueue", "watchdog"}
    assert not heavy & set(done.stdout.split())


def test_version() -> None:
    assert invoke("--version").stdout.startswith("nfpkd, version ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    assert COMMANDS[command].help
    for parameter in COMMANDS[command].params:
        record = parameter.to_info_dict()
        assert record["param_type_name"] == "argument" or record.get("help")


def test_nothing_is_searched_for_garbage_while_rules_are_read(actions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(actions, SSH)
    enabled = []

    def load(*arguments: Any, **options: Any) -> Any:
        enabled.append(gc.isenabled())
        return load_rules(*arguments, **options)

    monkeypatch.setattr(loader, "load_rules", load)
    assert invoke("check", "--actions", actions).exit_code == 0
    assert enabled == [False]
    assert gc.isenabled()
