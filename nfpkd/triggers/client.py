"""The daemon's end of the helper: a child of its own, or one that the service manager starts."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from nfpkd.logs import log_event
from nfpkd.triggers.message import Event, Message, encode_message

# The longest that a command may run, and some time to end.
PATIENCE_SECONDS = 3700.0


class Helper(Protocol):
    """What the daemon asks of a helper, wherever it runs.  Nothing raises, and only `close` may wait."""

    def reload(self) -> None:
        """Have the rule files read again before the next command."""
        ...

    def run(self, event: Event, rule: str, source: str) -> None:
        """Have *rule*'s command for *event* run; what a helper does not take is logged."""
        ...

    def close(self) -> None:
        """Let the helper finish what it runs."""
        ...


class TriggerHelper:
    """A helper process; start it before privileges are given up."""

    def __init__(
        self, directory: Path, *, strict_modes: bool, log_level: int, log_format: str, group: int | None = None
    ) -> None:
        """Start it, for the rules below *directory*; *group* is the one that may read them beside root's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        strict = "strict" if strict_modes else "loose"
        command = [sys.executable, "-P", "-m", "nfpkd.triggers.helper", str(directory), strict]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, str(log_level), log_format],
                stdin=theirs.fileno(),
                extra_groups=None if group is None else [group],
            )
        ours.setblocking(False)
        self._socket = ours

    def reload(self) -> None:
        self._send(Message(Event.RELOAD))

    def run(self, event: Event, rule: str, source: str) -> None:
        self._send(Message(event, rule, source))

    def close(self) -> None:
        """Wait for its end, too."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
            return
        self._process.kill()
        self._process.wait()

    def _send(self, message: Message) -> None:
        try:
            self._socket.send(encode_message(message))
        except OSError as error:
            _log_unreachable(message, error)


class TriggerSocket:
    """A helper behind a socket of the service manager's, which starts one for each connection.

    It has the privileges that the daemon never had.  The connection is made when
    there is a command to run, and again if that helper has ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def reload(self) -> None:
        # A helper that is not there yet will read the files when it is.
        if self._socket is not None:
            self._send(Message(Event.RELOAD))

    def run(self, event: Event, rule: str, source: str) -> None:
        self._send(Message(event, rule, source))

    def close(self) -> None:
        """The helper ends by itself, when it has done what it was sent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: Message) -> None:
        data = encode_message(message)
        try:
            if self._socket is not None:
                try:
                    self._socket.send(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close()
                else:
                    return
            self._socket = self._connect()
            self._socket.send(data)
        except OSError as error:
            _log_unreachable(message, error)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Knocks are not to wait for it.
        sock.setblocking(False)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        return sock


def _log_unreachable(message: Message, error: OSError) -> None:
    text = f"the helper for commands cannot be reached: {error.strerror}"
    log_event(logging.ERROR, "trigger_failed", text, rule=message.rule, source=message.source)
