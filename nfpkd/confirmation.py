"""A change that undoes itself unless it is confirmed: for who might lock themselves out.

What was there before is written down, and a process of its own is started that
waits; only then is the change made.  That process outlives the terminal and the
command, and puts everything back unless `nfpkd confirm` came first.  Which of the two
was first is decided by who renames the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import syslog
import time
from pathlib import Path

from nfpkd.errors import KernelError
from nfpkd.firewall.kernel import Kernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json
from nfpkd.firewall.rollback import restore_table
from nfpkd.instance import find_instance

DIRECTORY = Path("/run/nfpkd")
# How long `nfpkd run` may take to end when it is to be undone.
_PATIENCE_SECONDS = 20.0


class Confirmation:
    """The change of this network namespace that waits to be confirmed, if there is one."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        # Network namespaces share the files, and each has a firewall of its own.
        namespace = Path("/proc/thread-self/ns/net").stat().st_ino
        self._file = directory / f"pending-{namespace}.json"

    def arm(self, kernel: Kernel, seconds: int) -> None:
        """Have everything put back in so many *seconds*, as it is now; raises KernelError."""
        generation = secrets.token_hex(8)
        text = json.dumps({"generation": generation, "listing": kernel.list(TABLE)})
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Grants tell who comes from where.
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
        except FileExistsError:
            raise KernelError("an earlier change still waits to be confirmed", "run `nfpkd confirm`, or wait") from None
        except OSError as error:
            raise KernelError(f"{self._file} cannot be written: {error.strerror}") from None
        waiting = [sys.executable, "-P", "-m", "nfpkd", "rollback", generation, str(seconds)]
        null = subprocess.DEVNULL
        # In a session of its own, which no terminal ends; nobody waits for it.
        subprocess.Popen(waiting, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True)  # noqa: S603

    def confirm(self) -> bool:
        """Let the change stay; return False if none is waiting (any more)."""
        return self._claim() is not None

    def is_waiting(self, generation: str) -> bool:
        """Tell whether it is change *generation* that waits."""
        try:
            return bool(json.loads(self._file.read_text())["generation"] == generation)
        except FileNotFoundError:
            return False

    def roll_back(self, generation: str, kernel: Kernel) -> bool:
        """Put back what was there before change *generation*; return False if it was confirmed. Raises KernelError."""
        pending = self._claim() if self.is_waiting(generation) else None
        if pending is None:
            return False
        _stop_instance()
        kernel.apply(restore_table(pending["listing"]))
        syslog.syslog(syslog.LOG_WARNING, "nfpkd: not confirmed in time; the firewall is as it was before")
        return True

    def _claim(self) -> Json | None:
        """Take the waiting change, and return it; None if there is none, or somebody else was first."""
        claimed = self._file.with_suffix(f".{os.getpid()}")
        try:
            self._file.rename(claimed)
        except FileNotFoundError:
            return None
        pending: Json = json.loads(claimed.read_text())
        claimed.unlink()
        return pending


def _stop_instance() -> None:
    """End a running `nfpkd run`: it would go on enforcing what is to be undone."""
    holder = find_instance()
    if holder is None:
        return
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
        while find_instance() == holder:
            if time.monotonic() > deadline:
                os.kill(holder, signal.SIGKILL)
            time.sleep(0.05)
