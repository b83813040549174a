"""One verifier for each network namespace, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nfpkd.errors import KernelError
from nfpkd.logs import log_event
from nfpkd.privileges import has_net_admin

# An abstract Unix socket belongs to the network namespace, as the table does,
# and goes with its process, however that ends.
_NAME = "\0nfpkd"
# Whom the packages make.
SERVICE_USER = "nfpkd"
_UCRED = struct.Struct("=iII")
_TIMEVAL = struct.Struct("@ll")
# Before the lock's holder gets to it.
_MOST_ASKING = 64
_MAX_REPORT = 1000


class Report(NamedTuple):
    """How things are with an instance: *status* is for people; *stale* says that the rule files are not in force."""

    status: str
    stale: bool = False


class InstanceLock:
    """Held by `nfpkd run`: a second one would fight the first over the table."""

    def __init__(self) -> None:
        """Take the lock; raises KernelError, naming the process that holds it.

        Every user of the host could take its name.  Who may not run nfpkd does not keep it from
        running; then only the packet queue tells two of them apart, which takes a privilege.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(_NAME)
        except OSError:
            if (process := find_instance()) is not None:
                self._socket.close()
                raise KernelError(f"nfpkd is already running here (process {process})", "stop that one first") from None
            text = "a process that is no nfpkd has the name of its lock: going on without it, and without a status"
            log_event(logging.WARNING, "lock_taken", text, name=_NAME.replace("\0", "@"))
            # Any that is free: nobody will ask there.
            self._socket.bind("")
        self._socket.setblocking(False)
        self._socket.listen(_MOST_ASKING)
        self._answer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def report(self, report: Report) -> None:
        """Tell this, from now on, whoever asks."""
        self._answer = json.dumps(report).encode()

    def answer(self) -> None:
        """Answer those who ask, and let them go, for others; who holds the lock, the kernel has told them.

        Call it whenever the socket is readable.
        """
        with contextlib.suppress(OSError):
            for _ in range(_MOST_ASKING):
                self._answer_to(self._socket.accept()[0])

    def _answer_to(self, asking: socket.socket) -> None:
        # Who only wants to know the process is gone by now; nobody is waited for.
        with asking, contextlib.suppress(OSError):
            asking.send(self._answer, socket.MSG_DONTWAIT)

    def release(self) -> None:
        self._socket.close()


def find_instance() -> int | None:
    """Return the process id of the `nfpkd run` of this network namespace, or None if there is none."""
    with contextlib.suppress(OSError), _ask() as sock:
        process, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        # The service cannot see what others may do, and any of them could take the name.
        return int(process) if user in _find_users() or has_net_admin(process) else None
    return None


def _find_users() -> set[int]:
    """Return who runs nfpkd, if anybody does: root, who also begins with ``--user``; the service; whoever asks."""
    users = {0, os.geteuid()}
    with contextlib.suppress(KeyError):
        users.add(pwd.getpwnam(SERVICE_USER).pw_uid)
    return users


def find_report() -> Report | None:
    """Return what the `nfpkd run` of this network namespace says of itself; None if nobody answers.

    Where none is running, any user of the host may answer in its place.
    """
    with contextlib.suppress(OSError), _ask() as sock:
        return parse_report_untrusted(sock.recv(_MAX_REPORT))
    return None


def parse_report_untrusted(data: bytes) -> Report | None:
    """Return the report in *data*; None for anything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    match found:
        case [str(status), bool(stale)] if status.isprintable():
            return Report(status, stale)
    return None


@contextlib.contextmanager
def _ask() -> Iterator[socket.socket]:
    """Connect to whoever holds the lock; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Waits for its turn where many ask at once, and for an answer, but not for ever.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(1, 0))
        sock.connect(_NAME)
        yield sock
