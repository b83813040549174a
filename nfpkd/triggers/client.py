"""The daemon's end of the helper."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
from pathlib import Path

from nfpkd.logs import log_event
from nfpkd.triggers.message import Event, Message, encode_message

# The longest that a command may run, and some time to end.
PATIENCE_SECONDS = 3700.0


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
        """Have the rule files read again before the next command."""
        self._send(Message(Event.RELOAD))

    def run(self, event: Event, rule: str, source: str) -> None:
        """Have *rule*'s command for *event* run; never waits, and a helper that takes no more is logged."""
        self._send(Message(event, rule, source))

    def close(self) -> None:
        """Let the helper finish what it runs, and wait for its end."""
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
            text = f"the helper for commands cannot be reached: {error.strerror}"
            log_event(logging.ERROR, "trigger_failed", text, rule=message.rule, source=message.source)
