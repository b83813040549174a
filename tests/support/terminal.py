"""A terminal to run commands on."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Shown(NamedTuple):
    """What a terminal was sent, and how the command ended."""

    text: str
    returncode: int


def run_on_terminal(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Shown:
    """Run *command* with its output on a terminal; *environment* is added to one that allows colours."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    full = {**inherited, "TERM": "xterm", **(environment or {})}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=full)
    os.close(theirs)
    sent = b""
    with process:
        # A terminal ends with an error, once nobody has it open any more.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65536):
                sent += chunk
        code = process.wait(60)
    os.close(ours)
    return Shown(sent.decode().replace("\r\n", "\n"), code)
