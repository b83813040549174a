"""How long nfpkd's processes take to start."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping

from lab.bench.figures import percentile
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.stage import guarding, make_stage, open_rule
from lab.bench.timing import time_command
from lab.hosts import KNOCK_PORT, Lab
from nfpkd.demo.process import NFPKD
from support.network import KEY, SERVER4, make_knock

_EMPTY_CLICK, _NC, _KNOCK, _HELP = "empty click program", "nc -u", "nfpkd knock", "nfpkd --help"
_EMPTY = """
import click

@click.command()
def main():
    pass

main()
"""


class Guarded(Measurement):
    """From the start of `nfpkd run`, with one rule, until it logs that it guards: by then the port is closed."""

    name = "start"
    title = "start to guarded"
    systems = ("nfpkd run",)
    figures = (Figure("time", "s"),)
    targets = (Target("under 1 s", "nfpkd run", "time", at_most=1.0),)

    def run(self, system: str) -> Mapping[str, float]:  # noqa: ARG002  (there is but one)
        with make_stage() as lab:
            lab.actions.write("rules.json", open_rule())
            started = time.monotonic()
            with guarding(lab):
                return {"time": time.monotonic() - started}


class Commands(Measurement):
    """Whole processes, from start to end, several in a row: the median of them.

    `nc -u` sends a knock that was made before; `nfpkd knock` makes one.  The empty click
    program is a command that does nothing, run by the same Python with the same options.
    """

    name = "commands"
    title = "whole processes of short commands"
    systems = (_EMPTY_CLICK, _HELP, _KNOCK, _NC)
    figures = (Figure("time", "ms"),)
    reference = _EMPTY_CLICK
    targets = tuple(
        Target(f"{what}: at most 1.3 times the empty click program", what, "time", at_most=1.3, of=(_EMPTY_CLICK,))
        for what in (_HELP, _KNOCK)
    )

    def __init__(self, scale: Scale) -> None:
        self._samples = max(3, scale.samples // 10)

    def missing(self) -> Mapping[str, str]:
        return {} if shutil.which("nc") else {_NC: "no nc on the path; Debian's package is netcat-openbsd"}

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab:
            command, stdin = _prepare(lab, system)
            times = [time_command(lab.network.client, command, stdin).seconds for _ in range(self._samples)]
        return {"time": percentile(times, 0.5) * 1000}


def _prepare(lab: Lab, what: str) -> tuple[list[str], str]:
    """Return the command and the file that it reads."""
    if what == _HELP:
        return [*NFPKD, "--help"], ""
    if what == _KNOCK:
        key = lab.folder / "key"
        key.touch(mode=0o600)
        key.write_text(KEY)
        return [*NFPKD, "knock", SERVER4, "--port", str(KNOCK_PORT), "--key-file", str(key)], ""
    if what == _NC:
        knock = lab.folder / "knock"
        knock.write_bytes(make_knock(KNOCK_PORT))
        # -q 0: end with its input, instead of waiting for an answer.
        return ["nc", "-u", "-q", "0", SERVER4, str(KNOCK_PORT)], str(knock)
    program = lab.folder / "empty.py"
    program.write_text(_EMPTY)
    return [sys.executable, "-P", str(program)], ""
