"""One verifier for each network namespace, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nfpkd.errors import KernelError

# An abstract Unix socket belongs to the network namespace, as the table does,
# and goes with its process, however that ends.
_NAME = "\0nfpkd"
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
        """Take the lock; raises KernelError, naming the process that holds it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(_NAME)
        except OSError:
            self._socket.close()
            holder = find_instance()
            who = f" (process {holder})" if holder else ""
            raise KernelError(f"nfpkd is already running here{who}", "stop that one first") from None
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
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[0])
    return None


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
