"""What was tried, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Result(NamedTuple):
    """*good* tells whether what was *seen* is what was *wanted*."""

    what: str
    how_much: str
    seen: str
    wanted: str
    good: bool


def render_table(results: Iterable[Result]) -> str:
    """Return *results* as a table in Markdown."""
    lines = ["| what was tried | how much | seen | wanted | |", "|---|---|---|---|---|"]
    for what, how_much, seen, wanted, good in results:
        lines.append(f"| {what} | {how_much} | {seen} | {wanted} | {'held' if good else '**not held**'} |")
    return "\n".join(lines)
