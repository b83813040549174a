"""The helper process: runs the commands of rules, for a daemon that must not.

Started as ``python -m nfpkd.triggers.helper`` with its end of a socket pair as
standard input.  It knows the rules from their files, not from the daemon, and
ends when the daemon does, after what is running.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nfpkd.errors import RulesError, TriggerError, reason_of
from nfpkd.logs import log_event, set_up_logging
from nfpkd.privileges import forbid_new_privileges
from nfpkd.rules.model import Rule, format_tag
from nfpkd.triggers.command import Account, check_command, describe_account, find_account, make_environment
from nfpkd.triggers.message import MAX_LENGTH, Event, Message, decode_message_untrusted

AT_ONCE = 4
# What waits for its turn; more is refused, loudly.
MAX_WAITING = 64
# Of a command's output only the last line is kept.
MAX_LINE = 1000


class Helper:
    """Runs commands for the rules below *directory*."""

    def __init__(self, directory: Path, *, strict_modes: bool = True) -> None:
        self._directory = directory
        self._strict_modes = strict_modes
        self._rules: dict[str, Rule] | None = None
        # Those that had a window: it ends with its rule, of which the files know nothing then.
        self._opened: dict[str, Rule] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._unfinished: set[Future[None]] = set()

    def serve(self, sock: socket.socket) -> None:
        """Do what comes through *sock* until its other end is closed, and finish what was begun."""
        with self._pool:
            while data := sock.recv(MAX_LENGTH):
                try:
                    self._take(decode_message_untrusted(data))
                except TriggerError as error:
                    log_event(logging.ERROR, "trigger_refused", f"the helper was sent {error}")

    def _take(self, message: Message) -> None:
        if message.event is Event.RELOAD:
            self._rules = None
            return
        self._unfinished = {future for future in self._unfinished if not future.done()}
        try:
            if len(self._unfinished) >= AT_ONCE + MAX_WAITING:
                raise TriggerError("too many commands are waiting")
            rule = self._find_rule(message)
        except TriggerError as error:
            _log_failure(message, error)
            return
        self._unfinished.add(self._pool.submit(_run, message, rule))

    def _find_rule(self, message: Message) -> Rule:
        if self._rules is None:
            # Many a helper never runs a command, and the loader is most of its size.
            from nfpkd.rules.loader import load_rules

            try:
                loaded = load_rules(self._directory, strict_modes=self._strict_modes)
            except RulesError:
                # The daemon has said what is wrong, and goes on by the rules of before.
                raise TriggerError("the rule files have errors") from None
            self._rules = {rule.name: rule for rule in loaded.rules}
        before = self._opened if message.event is Event.CLOSE else {}
        rule = self._rules.get(message.rule) or before.get(message.rule)
        if rule is None:
            raise TriggerError("there is no such rule")
        if rule.trigger.close_command:
            self._opened[rule.name] = rule
        return rule


def _run(message: Message, rule: Rule) -> None:
    trigger = rule.trigger
    argv = trigger.close_command if message.event is Event.CLOSE else trigger.command
    if not argv:
        return
    try:
        account = find_account(trigger.user)
        how, code, line = _execute(argv, account, _make_environment(message, rule, account), trigger.timeout)
    except TriggerError as error:
        _log_failure(message, error)
        return
    except Exception as error:  # noqa: BLE001  (nobody asks the pool how its work ended)
        _log_failure(message, TriggerError(f"{type(error).__name__}: {error}"))
        return
    log_event(
        logging.INFO if code == 0 else logging.ERROR,
        "trigger_ended",
        f"command {message.event.label}: {how}",
        rule=rule.name,
        source=message.source,
        user=describe_account(account),
        output=line,
    )


def _make_environment(message: Message, rule: Rule, account: Account) -> dict[str, str]:
    return make_environment(
        account,
        event=message.event.label,
        rule=rule.name,
        source=message.source,
        ports=rule.describe_services() if rule.ports else "",
        tag=format_tag(rule.tag),
    )


def _execute(
    argv: tuple[str, ...], account: Account, environment: dict[str, str], timeout: int
) -> tuple[str, int | None, str]:
    """Run *argv* to its end; return how it ended in words, its exit code, and its last line.

    Raises TriggerError if it cannot be run.
    """
    check_command(argv[0])
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
    elif account.uid != os.geteuid():
        raise TriggerError(f"it should run as {account.name}, which takes root")
    try:
        process = subprocess.Popen(  # noqa: S603  (an argument list, from a file that only root can write)
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            umask=0o077,
            start_new_session=True,
            env=environment,
            **identity,
        )
    except OSError as error:
        raise TriggerError(f"{argv[0]}: {reason_of(error)}") from None
    with process:
        tail = _Tail(process)
        in_time = tail.follow(timeout)
        # Whether the leader has ended or not: nothing of its group stays behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        line = tail.last_line()
    if not in_time:
        return f"stopped after {timeout} s", None, line
    return (f"exit status {code}" if code >= 0 else f"ended by signal {-code}"), code, line


class _Tail:
    """The end of what a command prints, read while it runs so that it never waits for a reader.

    It is not read to its end: what the command started in a session of its own,
    as services are, may keep the output open for good.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  (this tells mypy)
        self._pid = process.pid
        self._output = process.stdout.fileno()
        self._data = b""
        os.set_blocking(self._output, False)

    def follow(self, timeout: float) -> bool:
        """Read until the command has ended, but not longer than *timeout* seconds; return whether it has."""
        deadline = time.monotonic() + timeout
        ended = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.register(self._output, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
                if ended in ready:
                    return True
                if self._output in ready and not self._read():
                    poll.unregister(self._output)
            return False
        finally:
            os.close(ended)

    def last_line(self) -> str:
        """Return the last line of the output so far that is not empty."""
        # As much as a pipe holds: a service may go on writing.
        for _ in range(16):
            if not self._read():
                break
        lines = [line for line in self._data.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][-MAX_LINE:] if lines else ""

    def _read(self) -> bool:
        """Read what is there; return False if there is nothing, or never will be."""
        try:
            chunk = os.read(self._output, 65536)
        except BlockingIOError:
            return False
        self._data = (self._data + chunk)[-4 * MAX_LINE :]
        return bool(chunk)


def _log_failure(message: Message, error: TriggerError) -> None:
    text = f"command {message.event.label} not run: {error}"
    log_event(logging.ERROR, "trigger_failed", text, rule=message.rule, source=message.source)


def main(arguments: list[str]) -> None:
    """Serve standard input; *arguments* are the rule directory, the strict modes, the log level and its format."""
    directory, strict_modes, level, form = arguments
    set_up_logging(int(level), form)
    # The daemon decides when to end; a Ctrl-C in its terminal, or an init system, reaches both.
    # Handled, not ignored: what is ignored stays so in every command.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    # As it is by nohup, and by shells for what they start in the background.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    forbid_new_privileges()
    with socket.socket(fileno=os.dup(0)) as sock:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        Helper(Path(directory), strict_modes=strict_modes == "strict").serve(sock)


if __name__ == "__main__":
    main(sys.argv[1:])
