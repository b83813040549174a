"""From samples to what the table says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """What the rounds came to: the middle one, and the two at the ends."""

    median: float
    least: float
    most: float


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that *share* (0 to 1) of *samples* do not exceed.

    Of nothing it is infinite: what never came took for ever.
    """
    if not samples:
        return math.inf
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(rounds: Sequence[float]) -> Spread:
    """Return the spread of one figure over its rounds; raises ValueError if there was none."""
    ordered = sorted(rounds)
    if not ordered:
        raise ValueError("no rounds")
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Spread(median, ordered[0], ordered[-1])


def best(values: Sequence[float], *, least: bool) -> float:
    """Return the best of *values*: the least where less is better, else the most."""
    return min(values) if least else max(values)


def shown(value: float) -> str:
    """Return *value* as the table has it: three digits that count, thousands apart, no exponent."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
