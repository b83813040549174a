"""Text for people: columns, and what is to stand out on a terminal that has colours."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence

# A cell that is wider moves what is behind it, rather than every row's.
_WIDEST = 40


class Role(enum.Enum):
    """Why a piece of text stands out."""

    HEADING = enum.auto()
    ERROR = enum.auto()
    WARNING = enum.auto()
    GOOD = enum.auto()
    NEW = enum.auto()
    GONE = enum.auto()
    ASIDE = enum.auto()


# Returns the text as it is to be shown.  Columns are counted before, because colours have no width.
Paint = Callable[[Role, str], str]


def plain(_: Role, text: str) -> str:
    return text


def align(rows: Iterable[Sequence[str]], indent: str = "  ") -> Iterator[str]:
    """Yield *rows* in columns, without those that are empty in every row."""
    table = list(rows)
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        yield (indent + "  ".join(cells)).rstrip()
