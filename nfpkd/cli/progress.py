"""What a person at a terminal is told while something takes its time."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import click

# What is quicker needs no word.
PATIENCE_SECONDS = 0.5


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Say *what* takes so long, and how long by now, on a terminal only; at the end the line is empty again."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(what, ended), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _tell(what: str, ended: threading.Event) -> None:
    began = time.monotonic()
    shown = ""
    pause = PATIENCE_SECONDS
    while not ended.wait(pause):
        shown = f"{what}: {time.monotonic() - began:.0f} s"
        click.echo(f"\r{shown}", nl=False, err=True)
        pause = 1.0
    if shown:
        # Not by an escape sequence, which some terminals would show.
        click.echo(f"\r{' ' * len(shown)}\r", nl=False, err=True)
