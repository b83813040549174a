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
from typing import NamedTuple

from nfpkd.errors import KernelError, NfpkdError, StateError
from nfpkd.firewall.kernel import Kernel, Listing
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.rollback import restore_table
from nfpkd.instance import find_instance

DIRECTORY = Path("/run/nfpkd")
# How long `nfpkd run` may take to end when it is to be undone.
_PATIENCE_SECONDS = 20.0


class Pending(NamedTuple):
    """A change that waits: *listing* is what nft listed of our table before it, None where there was no table."""

    generation: str
    listing: Listing | None


def parse_pending(data: bytes) -> Pending:
    """Return the change that was written down as *data*; raises StateError for anything else."""
    try:
        found = json.loads(data)
        generation, listing = found["generation"], found["listing"]
    except (LookupError, TypeError, ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(generation, str) or not (listing is None or _is_listing(listing)):
        raise _damaged()
    return Pending(generation, listing)


def _is_listing(value: object) -> bool:
    """Tell whether *value* has the shape of nft's listings: objects, each of them described by kind."""
    return isinstance(value, list) and all(
        isinstance(entry, dict) and all(isinstance(described, dict) for described in entry.values()) for entry in value
    )


def _damaged() -> StateError:
    reason = "the change that waits to be confirmed cannot be undone, for what was noted of the time before is damaged"
    return StateError(reason, 'see "nfpkd status" for what is in force; "nfpkd teardown" takes the guard away')


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
        fresh = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Grants tell who comes from where.
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            self._put_in_place(fresh)
        except OSError as error:
            raise KernelError(f"{self._file} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()
        waiting = [sys.executable, "-P", "-m", "nfpkd", "rollback", generation, str(seconds)]
        null = subprocess.DEVNULL
        # In a session of its own, which no terminal ends; nobody waits for it.
        subprocess.Popen(waiting, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True)  # noqa: S603

    def confirm(self) -> bool:
        """Let the change stay; return False if none is waiting (any more)."""
        claimed = self._claim()
        if claimed is not None:
            claimed.unlink()
        return claimed is not None

    def is_waiting(self, generation: str) -> bool:
        """Tell whether it is change *generation* that waits."""
        try:
            return parse_pending(self._file.read_bytes()).generation == generation
        except FileNotFoundError:
            return False
        except StateError:
            # Whichever it is, it is not confirmed; there is one at a time.
            return True

    def roll_back(self, generation: str, kernel: Kernel) -> bool:
        """Put back what was there before change *generation*; return False if it was confirmed.

        Raises KernelError or StateError if it cannot be put back.
        """
        claimed = self._claim() if self.is_waiting(generation) else None
        if claimed is None:
            return False
        data = claimed.read_bytes()
        claimed.unlink()
        try:
            pending = parse_pending(data)
            _stop_instance()
            kernel.apply(restore_table(pending.listing))
        except NfpkdError as error:
            # Nobody reads what the waiting process prints.
            syslog.syslog(syslog.LOG_ERR, f"nfpkd: not confirmed in time: {error}")
            raise
        syslog.syslog(syslog.LOG_WARNING, "nfpkd: not confirmed in time; the firewall is as it was before")
        return True

    def _put_in_place(self, fresh: Path) -> None:
        """Give what is written its name: whole or not at all, and only if no other has it."""
        try:
            self._file.hardlink_to(fresh)
        except FileExistsError:
            raise KernelError("an earlier change still waits to be confirmed", "run `nfpkd confirm`, or wait") from None

    def _claim(self) -> Path | None:
        """Take the waiting change, and return where it is now; None if there is none, or somebody else was first."""
        claimed = self._file.with_suffix(f".{os.getpid()}")
        try:
            return self._file.rename(claimed)
        except FileNotFoundError:
            return None


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
