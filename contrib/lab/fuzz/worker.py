"""The process that atheris runs in.  It never comes back from a fault, so `lab.fuzz` starts and watches it."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nfpkd"]):
    from lab.fuzz.mutators import MUTATORS
    from lab.fuzz.targets import make_target
    from nfpkd.logs import set_up_logging


class _Nowhere(io.StringIO):
    """What is logged of an input is made and forgotten."""

    def write(self, text: str) -> int:
        return len(text)


def main(arguments: list[str]) -> None:
    """Try inputs; *arguments* are the target, where to say what was tried, and libFuzzer's own options."""
    name, report, *options = arguments
    set_up_logging(logging.WARNING, "json", _Nowhere())
    with tempfile.TemporaryDirectory(dir=scratch_home()) as scratch:
        target = make_target(name, Path(scratch), thorough=False)

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            return MUTATORS[name](data, max_size, seed, atheris.Mutate)

        def attempt(data: bytes) -> None:
            try:
                target(data)
            except BaseException:
                _cancel_alarm()
                raise

        custom = {"custom_mutator": mutate} if name in MUTATORS else {}
        atheris.Setup([sys.argv[0], *options], attempt, **custom)
        try:
            atheris.Fuzz()
        finally:
            _cancel_alarm()
            Path(report).write_text(json.dumps(target.tried))


def _cancel_alarm() -> None:
    """Cancel libFuzzer's timer: a process that is ending has no handler for it any more, and would be killed."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def scratch_home() -> str | None:
    """Return where files are written without a disk, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


if __name__ == "__main__":
    main(sys.argv[1:])
