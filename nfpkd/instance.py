"""One verifier for each network namespace."""

from __future__ import annotations

import contextlib
import socket
import struct

from nfpkd.errors import KernelError

# An abstract Unix socket belongs to the network namespace, as the table does,
# and goes with its process, however that ends.
_NAME = "\0nfpkd"
_UCRED = struct.Struct("=iII")
_TIMEVAL = struct.Struct("@ll")
# Before the lock's holder gets to it.
_MOST_ASKING = 64


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

    def fileno(self) -> int:
        return self._socket.fileno()

    def dismiss(self) -> None:
        """Let go who asked who holds the lock, for others who ask; the kernel has told them.

        Call it whenever the socket is readable.
        """
        with contextlib.suppress(OSError):
            for _ in range(_MOST_ASKING):
                self._socket.accept()[0].close()

    def release(self) -> None:
        self._socket.close()


def find_instance() -> int | None:
    """Return the process id of the `nfpkd run` of this network namespace, or None if there is none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Waits for its turn where many ask at once, but not for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(1, 0))
        sock.connect(_NAME)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[0])
    return None
