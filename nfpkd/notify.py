"""Telling the service manager how things are: sd_notify(3), without its library.

A datagram of ``NAME=value`` lines, to the socket that NOTIFY_SOCKET names.
Where there is none, nothing is said; a manager that does not listen ends nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Speaks to the service manager that started this process, if one did.

    *watchdog_seconds* is how often it wants to hear `alive`, None for never.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Take what concerns us out of *environment*: who is started from here does not speak for us."""
        address = environment.pop("NOTIFY_SOCKET", "")
        patience = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "")
        # Abstract sockets are written with an @ for their zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.watchdog_seconds: float | None = None
        if self._socket and patience.isdecimal() and int(patience) and meant_for in ("", str(os.getpid())):
            # Half of it, so that one that comes late does no harm.
            self.watchdog_seconds = int(patience) / 2_000_000

    def ready(self, status: str) -> None:
        """Say that what was begun, the start or a reload, is done; *status* is for people."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        # CLOCK_MONOTONIC, which tells the manager whether this is the reload that it asked for.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)
