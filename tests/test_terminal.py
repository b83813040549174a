"""What a person sees on a terminal, and nobody elsewhere: colours, and what takes its time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nfpkd.cli import progress as progress_module
from nfpkd.cli.progress import progress
from nfpkd.cli.shared import paint
from nfpkd.demo.process import NFPKD
from nfpkd.text import Role
from support.commands import COMMANDS
from support.terminal import run_on_terminal

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
GOOD = {"name": "ssh", "key": "secret words", "port": 22, "protocol": "tcp"}


@pytest.fixture
def check(tmp_path: Path) -> list[str]:
    """Return the command that checks a rule, with a warning."""
    (tmp_path / "rules.json").touch(mode=0o600)
    (tmp_path / "rules.json").write_text(json.dumps([GOOD]))
    return [*NFPKD, "check", "--actions", str(tmp_path)]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "TERM": "xterm", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=full, check=False)


def test_a_terminal_is_coloured(check: list[str]) -> None:
    shown = run_on_terminal(check)
    assert shown.returncode == 0
    assert "\x1b[33mwarning:\x1b[0m " in shown.text
    assert "\n\x1b[1mssh\x1b[0m:  22/tcp  opens for 60 s" in shown.text


def test_errors_are_red(check: list[str], tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text("[{}]")
    shown = run_on_terminal(check)
    assert shown.returncode == 1
    assert all(line.startswith("\x1b[31mnfpkd:\x1b[0m /") for line in shown.text.splitlines())
    (tmp_path / "rules.json").write_text(json.dumps([GOOD]))
    assert "\n\x1b[31mnfpkd:\x1b[0m " in run_on_terminal([*check, "--strict"]).text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_gets_none(check: list[str], environment: dict[str, str]) -> None:
    shown = run_on_terminal(check, environment)
    assert "warning: " in shown.text
    assert "\x1b" not in shown.text


def test_no_color_counts_only_if_it_says_something(check: list[str]) -> None:
    assert COLOUR.search(run_on_terminal(check, {"NO_COLOR": ""}).text)


def test_what_is_read_by_programs_is_not_coloured(check: list[str]) -> None:
    done = run(check)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.startswith("ssh:  22/tcp  opens for 60 s")


def test_a_terminal_and_a_pipe_show_the_same_words(check: list[str]) -> None:
    done = run(check)
    assert COLOUR.sub("", run_on_terminal(check).text) == done.stderr + done.stdout


@pytest.mark.parametrize("role", Role)
def test_every_role_stands_out(role: Role) -> None:
    painted = paint(role, "text")
    assert painted != "text"
    assert click.unstyle(painted) == "text"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_not_coloured(command: str) -> None:
    assert "\x1b" not in COMMANDS[command].get_help(click.Context(COMMANDS[command]))


# Progress


@contextlib.contextmanager
def terminal() -> Iterator[io.FileIO]:
    """Have standard error on a terminal, and yield what reads from it."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    reader = io.FileIO(ours)
    with reader, io.TextIOWrapper(io.FileIO(theirs, "w")) as stderr, contextlib.redirect_stderr(stderr):
        yield reader


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PATIENCE_SECONDS", 0.05)


def sent(terminal: io.FileIO) -> str:
    return (terminal.read() or b"").decode()


def wait_for(terminal: io.FileIO, text: str) -> str:
    deadline = time.monotonic() + 10
    seen = ""
    while text not in seen and time.monotonic() < deadline:
        seen += sent(terminal)
        time.sleep(0.01)
    return seen


@pytest.mark.usefixtures("impatient")
def test_what_takes_its_time_is_said_and_wiped_away() -> None:
    with terminal() as screen:
        with progress("counting"):
            assert wait_for(screen, "0 s") == "\rcounting: 0 s"
            assert "\rcounting: 1 s" in wait_for(screen, "1 s")
        assert sent(screen) == "\r" + " " * len("counting: 1 s") + "\r"


def test_what_is_quick_needs_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PATIENCE_SECONDS", 30)
    began = time.monotonic()
    with terminal() as screen:
        with progress("counting"):
            pass
        assert sent(screen) == ""
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("impatient")
def test_an_error_leaves_an_empty_line_and_no_thread() -> None:
    def fail(screen: io.FileIO) -> None:
        with progress("counting"):
            wait_for(screen, "0 s")
            raise ZeroDivisionError

    before = threading.active_count()
    with terminal() as screen:
        with pytest.raises(ZeroDivisionError):
            fail(screen)
        assert sent(screen).endswith("\r")
    assert threading.active_count() == before


@pytest.mark.usefixtures("impatient")
def test_without_a_terminal_nothing_is_said() -> None:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), progress("counting"):
        time.sleep(0.2)
    assert stderr.getvalue() == ""
