from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import shell_completion
from click.shell_completion import ShellComplete

from nfpkd import cli
from nfpkd.cli import completion
from nfpkd.errors import KernelError
from nfpkd.firewall import kernel
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.ruleset import Options, make_grants
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Rule, TimedKey, parse_key
from support.fake_kernel import FakeKernel
from support.required import find_program

FOLDER = Path(__file__).parents[1] / "contrib" / "completion"
SHIPPED = {"bash": "nfpkd.bash", "zsh": "_nfpkd", "fish": "nfpkd.fish"}

# Those of zsh and fish were improved in 8.1.8 at the latest; what they ask nfpkd, and what it answers, is as before.
CLICK = tuple(map(int, importlib.metadata.version("click").split(".")[:3]))


class Shell(ShellComplete):
    """A shell that is asked by words, not by its environment."""

    name = "words"

    def words(self, *words: str) -> list[str]:
        return [item.value for item in self.get_completions(list(words[:-1]), words[-1])]


def complete(*words: str) -> list[str]:
    """Return what is offered for the last of *words*, behind ``nfpkd`` and the others."""
    return Shell(cli.main, {}, "nfpkd", "_NFPKD_COMPLETE").words(*words)


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    folder = tmp_path / "actions.d"
    folder.mkdir()
    (folder / "inner").mkdir()
    write(folder / "a.json", [{"name": "ssh"}, {"name": "smtp"}])
    write(folder / "inner" / "b.json", [{"name": "vpn"}])
    return folder


def write(file: Path, document: object) -> None:
    file.write_text(json.dumps(document))


def generate(shell: str) -> str:
    made = shell_completion.get_completion_class(shell)
    assert made is not None
    return made(cli.main, {}, "nfpkd", "_NFPKD_COMPLETE").source()


@pytest.mark.parametrize("shell", SHIPPED)
def test_what_is_shipped_is_what_click_makes(shell: str) -> None:
    shipped = (FOLDER / SHIPPED[shell]).read_text()
    made = generate(shell)
    if shell == "bash" or CLICK >= (8, 1, 8):
        assert shipped.split() == made.split()
    else:
        (question,) = [line for line in made.replace(" \\\n ", " ").splitlines() if "_NFPKD_COMPLETE=" in line]
        asked = question[question.index("env ") : question.index(" nfpkd")]
        assert asked.split() == shipped[shipped.index("env ") :].split(" nfpkd")[0].split()


def test_commands_and_options_are_offered() -> None:
    assert complete("gr") == ["grant"]
    assert "rollback" not in complete("")
    assert {"--actions", "--for"} <= set(complete("grant", "--"))
    assert complete("status", "--format", "") == ["text", "json", "prometheus"]


def test_grant_offers_the_rules_of_the_files(actions: Path) -> None:
    assert complete("grant", "--actions", str(actions), "") == ["smtp", "ssh", "vpn"]
    assert complete("grant", "--actions", str(actions), "s") == ["smtp", "ssh"]


def test_the_directory_may_come_from_the_environment(actions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFPKD_ACTIONS", str(actions))
    assert complete("grant", "v") == ["vpn"]


def test_files_with_faults_are_passed_over(actions: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (actions / "half.json").write_text('[{"name": "half"')
    (actions / "deep.json").write_text("[" * 100_000)
    (actions / "bytes.json").write_bytes(b"\xff\xfe\xff")
    write(actions / "odd.json", {"name": "no list"})
    write(actions / "numbers.json", [1, {"name": 2}, {}, {"name": "web"}])
    (actions / "gone.json").symlink_to("nowhere")
    (actions / "folder.json").mkdir()
    os.mkfifo(actions / "fifo.json")
    assert complete("grant", "--actions", str(actions), "") == ["smtp", "ssh", "vpn", "web"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["none", "a.json/inner"])
def test_a_directory_that_is_none_offers_nothing(actions: Path, name: str) -> None:
    assert complete("grant", "--actions", str(actions / name), "") == []


def test_it_does_not_read_for_ever(actions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_MOST_BYTES", (actions / "a.json").stat().st_size)
    assert complete("grant", "--actions", str(actions), "") == ["smtp", "ssh"]


def test_ten_thousand_rules_are_offered_at_once(actions: Path) -> None:
    rule = {"key": "0x" + 64 * "a", "port": "8000-8100", "protocol": "tcp", "description": "some words about it"}
    write(actions / "many.json", [{"name": f"rule{n}", **rule} for n in range(10_000)])
    began = time.process_time()
    assert len(complete("grant", "--actions", str(actions), "rule")) == 10_000
    assert time.process_time() - began < 1


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch) -> Firewall:
    """Somebody is let in by two of three rules."""
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    monkeypatch.setattr("nfpkd.cli.shared.open_firewall", lambda: firewall)
    key = (TimedKey(parse_key("k")),)
    ports = (PortRange(22, 23),)
    rules = [
        Rule("ssh", key, b"PKD0", ports, (Protocol.TCP,)),
        Rule("web", key, b"PKD0", (PortRange(80, 80),), (Protocol.TCP,), prefixes=Prefixes(24, 64)),
        Rule("vpn", key, b"PKD0", (PortRange(90, 90),), (Protocol.UDP,)),
    ]
    firewall.apply(rules, Options())
    firewall.grant([*make_grants(rules[0], "192.0.2.1", 60), *make_grants(rules[0], "2001:db8::1", 60)])
    firewall.grant(list(make_grants(rules[1], "192.0.2.7", 60)))
    return firewall


@pytest.mark.usefixtures("firewall")
def test_revoke_offers_what_can_be_taken_back() -> None:
    assert complete("revoke", "") == ["ssh", "web"]
    assert complete("revoke", "w") == ["web"]
    assert complete("revoke", "ssh", "") == ["192.0.2.1", "2001:db8::1"]
    assert complete("revoke", "ssh", "2") == ["2001:db8::1"]
    assert complete("revoke", "web", "") == ["192.0.2.0"]
    assert complete("revoke", "vpn", "") == []


def test_what_is_offered_can_be_taken_back(firewall: Firewall) -> None:
    for rule in complete("revoke", ""):
        for address in complete("revoke", rule, ""):
            assert firewall.revoke(rule, address)


@pytest.mark.parametrize("error", [KernelError("refused"), OSError("no"), ImportError("nftables")])
def test_without_the_privilege_nothing_is_offered(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(kernel, "NftablesKernel", refuse)
    assert complete("revoke", "") == []
    assert complete("revoke", "ssh", "") == []
    assert capfd.readouterr() == ("", "")


def test_interfaces_and_users_are_offered() -> None:
    assert "lo" in complete("run", "--trust-interface", "l")
    assert complete("run", "--user", "roo") == ["root"]


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a knock.toml, which is in nobody's way."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "config" / "nfpkd" / "knock.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[saturn]\n[sirius]\n")
    (tmp_path / ".ipt_pkd.ini").write_text("[mars]\nhost=h\nkey=k\n")
    return file


@pytest.mark.usefixtures("profiles")
def test_knock_offers_profiles() -> None:
    assert complete("knock", "") == ["mars", "saturn", "sirius"]
    assert complete("knock", "--wait", "22", "sa") == ["saturn"]
    assert complete("knock", "--host", "m") == ["mars"]


@pytest.mark.usefixtures("profiles")
def test_behind_exec_there_are_no_profiles() -> None:
    assert complete("knock", "saturn", "--exec", "s") == []
    assert complete("knock", "saturn", "--exec", "ssh", "s") == []


def test_wrong_profiles_are_passed_over(profiles: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profiles.write_text("[saturn")
    assert complete("knock", "") == ["mars"]
    assert capfd.readouterr() == ("", "")


def test_import_offers_kinds_and_leaves_paths_to_the_shell() -> None:
    assert complete("import", "--from", "") == ["nf-pkd", "iptables", "knockd", "fwknop"]
    (path,) = Shell(cli.main, {}, "nfpkd", "_NFPKD_COMPLETE").get_completions(["import", "--strict"], "/etc/kn")
    assert (path.type, path.value) == ("file", "/etc/kn")


# The shells themselves


@pytest.fixture
def shell(tmp_path: Path, actions: Path) -> Callable[..., list[str]]:
    """Return what runs a script in a shell that finds nfpkd, and returns the lines that it prints."""
    program = tmp_path / "bin" / "nfpkd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m nfpkd "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".ipt_pkd.ini").write_text("[saturn]\n")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"},
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "NFPKD_ACTIONS": str(actions),
    }

    def run(*command: Any) -> list[str]:
        words = [find_program(command[0]), *map(str, command[1:])]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


# Calls what `complete` was told to call, as bash does at a press of the key.
BASH = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
[[ $(complete -p nfpkd) =~ -F\\ ([a-z_]+) ]] && "${BASH_REMATCH[1]}" nfpkd "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gr"], ["grant"]),
        (["grant", "s"], ["smtp", "ssh"]),
        (["run", "--on-exit", ""], ["teardown", "keep"]),
        (["status", "--w"], ["--watch"]),
        (["grant", "x"], []),
        (["knock", "sat"], ["saturn"]),
    ],
)
def test_bash_offers_them(shell: Callable[..., list[str]], words: list[str], offered: list[str]) -> None:
    found = shell("bash", "--norc", "-c", BASH, "bash", FOLDER / "nfpkd.bash", "nfpkd", *words)
    assert [line for line in found if line] == offered


def test_fish_offers_them(shell: Callable[..., list[str]]) -> None:
    script = f"source {FOLDER / 'nfpkd.fish'}; complete -C 'nfpkd grant s'; complete -C 'nfpkd che'"
    assert [line.split("\t")[0] for line in shell("fish", "--no-config", "-c", script)] == ["smtp", "ssh", "check"]


def test_zsh_offers_them(shell: Callable[..., list[str]]) -> None:
    """The functions that would put them on the screen need one; these print them."""
    script = (
        "compdef() {}; compadd() { print -l $completions }; _describe() { print -l $completions_with_descriptions };"
        f"words=(nfpkd grant s); CURRENT=3; source {FOLDER / '_nfpkd'}; _nfpkd_completion"
    )
    assert shell("zsh", "--no-rcs", "-c", script) == ["smtp", "ssh"]
