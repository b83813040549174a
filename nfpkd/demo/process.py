"""A program whose output is followed while it runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from nfpkd.demo.namespaces import Namespace

PATIENCE_SECONDS = 20.0

# -P: the installed nfpkd, not one that happens to lie in the current directory.
NFPKD = (sys.executable, "-P", "-m", "nfpkd")


class Followed:
    """A command running in *namespace*; both its outputs are kept, line by line."""

    def __init__(self, namespace: Namespace, command: Sequence[str]) -> None:
        self.process = namespace.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines: list[str] = []
        self._read = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def wait_for(self, text: str, patience: float = PATIENCE_SECONDS) -> list[str]:
        """Return the lines since the last call up to the first with *text*.

        Raises TimeoutError, with what came instead, if it does not come.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            while True:
                for index in range(self._read, len(self.lines)):
                    if text in self.lines[index]:
                        fresh = self.lines[self._read : index + 1]
                        self._read = index + 1
                        return fresh
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    seen = "\n".join(self.lines[self._read :]) or "nothing"
                    raise TimeoutError(f'waited for "{text}" and saw: {seen}')
                self._changed.wait(remaining)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> list[str]:
        """End it by a signal, as an init system would, and return the lines not read yet."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.wait()
        rest = self.lines[self._read :]
        self._read = len(self.lines)
        return rest

    def wait(self) -> int:
        """Wait until it has ended and all its output is read; return its exit code."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise TimeoutError("it did not end when asked to") from None
        self._thread.join(PATIENCE_SECONDS)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError):
            self.stop()

    def _follow(self) -> None:
        stream = self.process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    with self._changed:
                        self.lines.append(line.rstrip("\n"))
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
