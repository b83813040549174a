"""A process that has nfpkd loaded, and makes one command after another from it only to kill it.

Python's start takes longer than most commands, so that nearly every kill of a fresh
process would hit the start.  A copy of one that has everything loaded begins at once.

The process itself reads orders from standard input, a line of JSON each, and says on
standard output when each is done; see `Nursery`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfpkd.demo.namespaces import Namespace


class Nursery:
    """The other end of such a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def kill(self, command: list[str], after: float) -> None:
        """Run an nfpkd *command*, and kill it after so many seconds, if it has not ended by then."""
        self._order(command=command, after=after)

    def kill_in_reload(self, command: list[str], after: float, *, replace: tuple[Path, Path]) -> None:
        """Run `nfpkd run` until it guards, rename a rule file as told, and kill it so many seconds after SIGHUP."""
        fresh, old = map(str, replace)
        self._order(command=command, after=after, ready="guarding", replace=[fresh, old])

    def _order(self, **order: object) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("unreachable: both are pipes")
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        if not stdout.readline():
            raise RuntimeError("the nursery is gone")


@contextlib.contextmanager
def make_nursery(host: Namespace) -> Iterator[Nursery]:
    pipe = subprocess.PIPE
    with host.start([sys.executable, "-m", "lab.nursery"], stdin=pipe, stdout=pipe) as process:
        try:
            yield Nursery(process)
        finally:
            process.terminate()


def main() -> None:
    """Do as ordered until standard input ends."""
    # Loads what the commands load when they run.
    import nfpkd.cli
    import nfpkd.cli.shared
    import nfpkd.daemon
    import nfpkd.firewall.kernel  # noqa: F401

    for line in sys.stdin:
        _obey(json.loads(line))
        print("done", flush=True)


def _obey(order: dict[str, Any]) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _become(order["command"], writing)
    os.close(writing)
    with os.fdopen(reading) as output:
        if "ready" in order:
            said = list(_read_until(output, order["ready"]))
            if order["ready"] not in said[-1]:
                raise RuntimeError(f"it never got ready: {said}")
            os.replace(*order["replace"])  # noqa: PTH105  (two paths from a list)
            os.kill(child, signal.SIGHUP)
        time.sleep(order["after"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read_until(output: Iterator[str], text: str) -> Iterator[str]:
    yield ""
    for line in output:
        yield line
        if text in line:
            return


def _become(command: list[str], output: int) -> None:
    import nfpkd.cli

    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        nfpkd.cli.main(command, prog_name="nfpkd")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(70)


if __name__ == "__main__":
    main()
