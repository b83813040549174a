"""A real helper process: who its commands run as, with what around them, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import select
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfpkd.triggers import client as client_module
from nfpkd.triggers.client import TriggerHelper
from nfpkd.triggers.command import PATH
from nfpkd.triggers.helper import AT_ONCE, MAX_LINE, MAX_WAITING
from nfpkd.triggers.message import Event

IS_ROOT = os.geteuid() == 0
# Whoever is not root can only run commands as themselves.
USER = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can run commands as somebody else")
V4, V6 = "192.0.2.1", "2001:db8::1"


class Bench:
    """Rules whose commands are scripts, a helper for them, and FIFOs to hear from the scripts."""

    def __init__(self, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
        # The user of the commands has to get here.
        home.chmod(0o755)
        self.home = home
        self.rules = home / "rules"
        self.rules.mkdir(mode=0o755)
        self._capfd = capfd
        self._lines = ""
        self._fifos: dict[str, int] = {}
        self.helper: TriggerHelper | None = None
        self.told = self.fifo("told")

    def fifo(self, name: str) -> int:
        """Return a FIFO that scripts may write to and read from, and that never is at its end."""
        path = self.home / name
        os.mkfifo(path)
        path.chmod(0o666)
        self._fifos[name] = os.open(path, os.O_RDWR)
        return self._fifos[name]

    def hear(self) -> str:
        """Wait for what a script writes to the FIFO "told", one line, and return it."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.told], [], [], 30)
            assert ready, "nothing was told"
            line += os.read(self.told, 1)
        return line.decode().strip()

    def script(self, text: str, name: str = "script") -> str:
        path = self.home / name
        path.write_text(f"#!/bin/sh\nTOLD={self.home}/told\nGATE={self.home}/gate\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def write_rule(self, **fields: object) -> None:
        rule = {"name": "ssh", "key": "s3cr3t", "port": [22, "80-81"], "protocol": "tcp", "ext-user": USER.pw_name}
        self.write_rules([{**rule, **fields}])

    def write_rules(self, content: object) -> None:
        path = self.rules / "rules.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(0o600)

    def start(self) -> TriggerHelper:
        self.helper = TriggerHelper(self.rules, strict_modes=True, log_level=logging.INFO, log_format="json")
        return self.helper

    def run(self, *sources: str, event: Event = Event.OPEN) -> None:
        """Start a helper if there is none, and have it run the rule's command."""
        helper = self.helper or self.start()
        for source in sources or (V4,):
            helper.run(event, "ssh", source)

    def end(self) -> list[dict[str, Any]]:
        """Let the helper finish; return what it logged since the last time."""
        if self.helper is not None:
            self.helper.close()
            assert self.helper._process.returncode == 0
            self.helper = None
        lines, self._lines = self._lines + self._capfd.readouterr().err, ""
        return [json.loads(line) for line in lines.splitlines()]

    def end_one(self) -> dict[str, Any]:
        (line,) = self.end()
        return line

    def log(self) -> list[str]:
        """Return the events that were logged so far."""
        self._lines += self._capfd.readouterr().err
        return [json.loads(line)["event"] for line in self._lines.splitlines(keepends=True) if line.endswith("\n")]

    def clean_up(self) -> None:
        if self.helper is not None:
            self.helper._process.kill()
            self.helper.close()
        for fifo in self._fifos.values():
            os.close(fifo)


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # What hangs is to fail, not to hang the tests.
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 60.0)
    # Not below pytest's own directory, which no other user can enter.
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), capfd)
        yield bench
        bench.clean_up()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def status(text: str) -> dict[str, list[str]]:
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())}


def has_ended(number: int) -> bool:
    """Tell whether a process is gone, or dead and waiting for init to take note, which some never do."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return status(Path(f"/proc/{number}/status").read_text())["State"][0] in "ZX"
    return True


def children_of(number: int) -> list[str]:
    tasks = Path(f"/proc/{number}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@as_root
def test_a_command_runs_as_its_user_and_nobody_else(bench: Bench) -> None:
    where = bench.home / "found"
    where.touch()
    where.chmod(0o666)
    bench.write_rule(**{"ext-command": [bench.script(f"exec cat /proc/self/status > {where}")]})
    bench.run()
    line = bench.end_one()
    found = status(where.read_text())
    assert found["Uid"] == [str(USER.pw_uid)] * 4
    assert found["Gid"] == [str(USER.pw_gid)] * 4
    assert set(map(int, found["Groups"])) == set(os.getgrouplist(USER.pw_name, USER.pw_gid))
    assert found["NoNewPrivs"] == ["1"]
    assert found["Umask"] == ["0077"]
    assert {found[name][0].strip("0") for name in ("CapPrm", "CapEff", "CapAmb", "CapInh")} == {""}
    # Nothing is blocked or ignored, least of all what would end it.
    assert int(found["SigBlk"][0], 16) == 0
    assert int(found["SigIgn"][0], 16) == 0
    assert line["user"].startswith("nobody:")


def test_a_command_has_a_session_of_its_own_no_input_and_no_place(bench: Bench) -> None:
    text = 'set -- $(cat /proc/$$/stat); echo "$$ $5 $6 $(readlink /proc/$$/fd/0) $(readlink /proc/$$/cwd)" > $TOLD'
    bench.write_rule(**{"ext-command": bench.script(text)})
    bench.run()
    number, group, session, stdin, place = bench.hear().split()
    assert number == group == session
    assert (stdin, place) == ("/dev/null", "/")
    assert bench.end_one()["message"] == "command open: exit status 0"


def test_a_command_has_no_socket_of_ours_open(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": bench.script("ls -l /proc/$$/fd | grep -c socket > $TOLD; true")})
    bench.run()
    assert bench.hear() == "0"
    bench.end()


@pytest.mark.parametrize(("event", "source"), [(Event.OPEN, V4), (Event.CLOSE, V6)])
def test_a_command_finds_its_environment_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, event: Event, source: str
) -> None:
    monkeypatch.setenv("OURS", "is not theirs")
    command = ["/bin/cat", "/proc/self/environ"]
    bench.write_rule(**{"ext-command": command, "close-command": command})
    bench.run(source, event=event)
    line = bench.end_one()
    assert dict(entry.split("=", 1) for entry in line["output"].split("\0") if entry) == {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": USER.pw_dir,
        "USER": USER.pw_name,
        "LOGNAME": USER.pw_name,
        "NFPKD_EVENT": event.label,
        "NFPKD_RULE": "ssh",
        "NFPKD_SOURCE": source,
        "NFPKD_PORT": "22,80-81/tcp",
        "NFPKD_TAG": "PKD0",
    }
    assert (line["level"], line["message"]) == ("info", f"command {event.label}: exit status 0")


def test_without_a_port_there_is_none_in_the_environment(bench: Bench) -> None:
    rule = {"name": "ssh", "key": "k", "tag": "0x01", "ext-user": USER.pw_name}
    bench.write_rules([{**rule, "ext-command": bench.script('echo "[$NFPKD_PORT][$NFPKD_TAG]"')}])
    bench.run()
    assert bench.end_one()["output"] == "[][0x01000000]"


def test_nothing_in_a_command_is_interpreted(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": "/bin/echo $(id) `id` | cat; $NFPKD_RULE > /x && 'a  b' *"})
    bench.run()
    assert bench.end_one()["output"] == "$(id) `id` | cat; $NFPKD_RULE > /x && a  b *"


@pytest.mark.parametrize(
    ("text", "level", "how", "output"),
    [
        ("echo first; echo last >&2; echo", "info", "exit status 0", "last"),
        ("true", "info", "exit status 0", ""),
        ("echo sorry; exit 3", "error", "exit status 3", "sorry"),
        ("kill -9 $$", "error", "ended by signal 9", ""),
        ("printf 'no newline'", "info", "exit status 0", "no newline"),
        ("printf 'caf\\303\\251 \\377'", "info", "exit status 0", "café \ufffd"),
        ("head -c 3000000 /dev/zero | tr '\\0' '\\n'; echo end", "info", "exit status 0", "end"),
        ("head -c 3000000 /dev/zero | tr '\\0' x", "info", "exit status 0", "x" * MAX_LINE),
        ("cat", "info", "exit status 0", ""),
    ],
)
def test_its_end_and_last_line_are_logged(bench: Bench, text: str, level: str, how: str, output: str) -> None:
    bench.write_rule(**{"ext-command": bench.script(text)})
    bench.run()
    line = bench.end_one()
    assert (line["event"], line["level"], line["message"]) == ("trigger_ended", level, f"command open: {how}")
    assert (line["rule"], line["source"], line["output"]) == ("ssh", V4, output)


def test_a_command_that_takes_too_long_is_ended_with_all_its_children(bench: Bench) -> None:
    text = 'sleep 1000 & first=$!; (trap "" TERM; sleep 1000) & echo $$ $first $! > $TOLD; echo waiting; wait'
    bench.write_rule(**{"ext-command": bench.script(text), "ext-timeout": 1})
    bench.run()
    processes = [int(number) for number in bench.hear().split()]
    line = bench.end_one()
    assert (line["level"], line["message"]) == ("error", "command open: stopped after 1 s")
    assert line["output"] == "waiting"
    assert len(processes) == 3
    for number in processes:
        wait_until(lambda number=number: has_ended(number))  # type: ignore[misc]


def test_what_a_command_leaves_running_is_ended_with_it(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": bench.script("sleep 1000 & echo $! > $TOLD; echo done")})
    bench.run()
    child = int(bench.hear())
    line = bench.end_one()
    assert (line["message"], line["output"]) == ("command open: exit status 0", "done")
    wait_until(lambda: has_ended(child))


def test_a_service_that_a_command_starts_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a session of its own, as daemons do, and keeps the command's output open for good."""
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 15.0)
    gate = bench.fifo("gate")
    text = "setsid sh -c 'echo $$ > '$TOLD'; exec sleep 1000' & read x < $GATE; echo done"
    bench.write_rule(**{"ext-command": bench.script(text)})
    bench.run()
    service = int(bench.hear())
    try:
        os.write(gate, b"\n")
        line = bench.end_one()
        assert (line["message"], line["output"]) == ("command open: exit status 0", "done")
        assert not has_ended(service)
    finally:
        os.kill(service, signal.SIGKILL)


def test_no_more_than_a_few_run_at_once_and_the_others_wait(bench: Bench) -> None:
    running = bench.home / "running"
    running.mkdir()
    running.chmod(0o1777)
    gate = bench.fifo("gate")
    text = f"mkdir {running}/$$; set -- {running}/*; echo $# > $TOLD; read x < $GATE; rmdir {running}/$$"
    bench.write_rule(**{"ext-command": bench.script(text)})
    sources = [f"192.0.2.{number}" for number in range(3 * AT_ONCE)]
    bench.run(*sources)
    counts = [int(bench.hear()) for _ in range(AT_ONCE)]
    assert max(counts) == AT_ONCE
    for _ in sources[AT_ONCE:]:
        os.write(gate, b"\n")
        counts.append(int(bench.hear()))
    os.write(gate, b"\n" * AT_ONCE)
    ended = bench.end()
    assert max(counts) == AT_ONCE
    assert Counter(line["source"] for line in ended) == Counter(sources)
    assert {line["message"] for line in ended} == {"command open: exit status 0"}


def test_more_than_may_wait_are_refused_loudly(bench: Bench) -> None:
    gate = bench.fifo("gate")
    bench.write_rule(**{"ext-command": bench.script("echo > $TOLD; read x < $GATE")})
    fitting = AT_ONCE + MAX_WAITING
    bench.run(*[f"192.0.2.{number}" for number in range(fitting + 2)])
    wait_until(lambda: bench.log() == ["trigger_failed"] * 2)
    os.write(gate, b"\n" * fitting)
    lines = bench.end()
    refused = [line for line in lines if line["event"] == "trigger_failed"]
    assert [line["source"] for line in refused] == [f"192.0.2.{number}" for number in (fitting, fitting + 1)]
    assert all(line["message"] == "command open not run: too many commands are waiting" for line in refused)
    assert len(lines) == fitting + 2


def test_rules_are_read_again_after_a_reload(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": bench.script("echo one > $TOLD", "one")})
    bench.run()
    assert bench.hear() == "one"
    bench.write_rule(**{"ext-command": bench.script("echo two > $TOLD", "two")})
    bench.run()
    # Until the daemon enforces what the files say, they say nothing here either.
    assert bench.hear() == "one"
    assert bench.helper is not None
    bench.helper.reload()
    bench.run()
    assert bench.hear() == "two"
    assert len(bench.end()) == 3


@pytest.mark.parametrize("content", ["[", '[{"name": "ssh"}]', '[{"name": "ssh", "key": ["s3cr3t"]}]'])
def test_a_broken_rule_file_is_said_without_its_keys(bench: Bench, content: str) -> None:
    bench.write_rules(content)
    bench.run()
    line = bench.end_one()
    assert (line["event"], line["level"]) == ("trigger_failed", "error")
    assert line["message"] == "command open not run: the rule files have errors"
    assert "s3cr3t" not in json.dumps(line)


def test_a_rule_file_that_was_mended_is_read(bench: Bench) -> None:
    bench.write_rules("[")
    bench.run()
    wait_until(lambda: bench.log() == ["trigger_failed"])
    bench.write_rule(**{"ext-command": bench.script("echo mended > $TOLD")})
    bench.run()
    assert bench.hear() == "mended"
    bench.end()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "other"}, "there is no such rule"),
        ({"ext-user": "no-such-user"}, "there is no user 'no-such-user' to run it as"),
        ({"ext-command": "/nowhere/at/all"}, "/nowhere/at/all: no such file or directory"),
        ({"ext-command": "/etc/passwd"}, "/etc/passwd is not an executable file"),
    ],
)
def test_a_command_that_cannot_be_run_is_said(bench: Bench, fields: dict[str, object], words: str) -> None:
    bench.write_rule(**{"ext-command": "/bin/true", **fields})
    bench.run()
    line = bench.end_one()
    assert (line["event"], line["level"]) == ("trigger_failed", "error")
    assert line["message"] == f"command open not run: {words}"


def test_a_program_that_the_kernel_does_not_take_is_said(bench: Bench) -> None:
    program = bench.home / "program"
    program.write_text("#!/nowhere/at/all\n")
    program.chmod(0o755)
    bench.write_rule(**{"ext-command": str(program)})
    bench.run()
    assert bench.end_one()["message"] == f"command open not run: {program}: no such file or directory"


def test_a_program_that_others_can_change_is_not_run(bench: Bench) -> None:
    path = Path(bench.script("echo run"))
    path.chmod(0o777)
    bench.write_rule(**{"ext-command": str(path)})
    bench.run()
    assert bench.end_one()["message"].startswith(f"command open not run: others can change {path}")


def test_links_in_a_circle_are_said(bench: Bench) -> None:
    (bench.home / "circle").symlink_to("circle")
    bench.write_rule(**{"ext-command": str(bench.home / "circle")})
    bench.run()
    assert bench.end_one()["event"] == "trigger_failed"


def test_an_event_without_a_command_is_nothing_to_do(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": "/bin/true"})
    bench.run(event=Event.CLOSE)
    assert bench.end() == []


def test_a_message_that_makes_no_sense_is_said_and_stops_nothing(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": bench.script("echo fine")})
    helper = bench.start()
    helper._socket.send(b"nonsense")
    bench.run()
    first, second = bench.end()
    assert (first["event"], first["level"]) == ("trigger_refused", "error")
    assert second["output"] == "fine"


def test_the_helper_ends_with_the_daemon_after_what_is_running(bench: Bench) -> None:
    gate = bench.fifo("gate")
    bench.write_rule(**{"ext-command": bench.script("echo > $TOLD; read x < $GATE; echo finished")})
    bench.run(V4, V6)
    bench.hear()
    bench.hear()
    assert bench.helper is not None
    # As when the daemon is killed: nobody says goodbye.
    bench.helper._socket.close()
    assert bench.helper._process.poll() is None
    os.write(gate, b"\n\n")
    assert [line["output"] for line in bench.end()] == ["finished", "finished"]


def test_close_waits_for_what_is_running(bench: Bench) -> None:
    gate = bench.fifo("gate")
    bench.write_rule(**{"ext-command": bench.script("echo > $TOLD; read x < $GATE; echo finished")})
    bench.run()
    bench.hear()
    opener = threading.Thread(target=os.write, args=(gate, b"\n"))
    opener.start()
    assert bench.end_one()["output"] == "finished"
    opener.join()


def test_a_helper_that_does_not_end_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fifo("gate")
    bench.write_rule(**{"ext-command": bench.script("echo $$ > $TOLD; read x < $GATE")})
    bench.run()
    command = int(bench.hear())
    assert bench.helper is not None
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 0.0)
    bench.helper.close()
    assert bench.helper._process.returncode == -signal.SIGKILL
    bench.helper = None
    os.kill(command, signal.SIGKILL)


def test_no_zombie_stays_while_the_helper_runs(bench: Bench) -> None:
    bench.write_rule(**{"ext-command": bench.script("sleep 0 & exit 0")})
    bench.run(V4, V6)
    wait_until(lambda: bench.log() == ["trigger_ended"] * 2)
    assert bench.helper is not None
    assert children_of(bench.helper._process.pid) == []
    bench.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_for_the_daemon_does_not_end_the_helper(bench: Bench, number: signal.Signals) -> None:
    gate = bench.fifo("gate")
    bench.write_rule(**{"ext-command": bench.script("echo > $TOLD; read x < $GATE; echo finished")})
    bench.run()
    bench.hear()
    assert bench.helper is not None
    for _ in range(3):
        bench.helper._process.send_signal(number)
    bench.run(V6)
    bench.hear()
    os.write(gate, b"\n\n")
    assert [line["output"] for line in bench.end()] == ["finished", "finished"]


def test_a_helper_that_is_gone_is_said_and_stops_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    helper = bench.start()
    helper._process.kill()
    helper._process.wait()
    helper.run(Event.OPEN, "ssh", V4)
    helper.reload()
    helper.close()
    bench.helper = None
    assert [record.event for record in caplog.records] == ["trigger_failed"] * 2  # type: ignore[attr-defined]
    assert "cannot be reached" in caplog.text
