"""What a row of the table is: the interface between those who measure, those who run and those who report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from lab.bench.figures import Spread, best

# By system, then by figure: the spread over the rounds.
Results = Mapping[str, Mapping[str, Spread]]


@dataclass(frozen=True)
class Figure:
    """One of the numbers that a row yields, such as the median latency, and its *unit*."""

    name: str
    unit: str


@dataclass(frozen=True)
class Verdict:
    """Whether a target was met; *met* is None where what it is compared with was not measured."""

    text: str
    met: bool | None
    value: float | None
    limit: float | None


@dataclass(frozen=True)
class Target:
    """What is to be reached: *system*'s median of *figure* against a number, or against others' medians times it.

    Exactly one of *at_most* and *at_least* is given.  *of* names the systems to compare
    with, of which the best counts; *of_figure* is theirs if it has another name.
    """

    text: str
    system: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    of: tuple[str, ...] = ()
    of_figure: str = ""

    def judge(self, results: Results) -> Verdict:
        value = _median(results, self.system, self.figure)
        factor = self.at_most if self.at_most is not None else self.at_least
        limit = factor
        if self.of and factor is not None:
            found = [_median(results, system, self.of_figure or self.figure) for system in self.of]
            known = [median for median in found if median is not None]
            limit = factor * best(known, least=self.at_most is not None) if known else None
        if value is None or limit is None:
            return Verdict(self.text, None, value, limit)
        return Verdict(self.text, value <= limit if self.at_most is not None else value >= limit, value, limit)


@dataclass(frozen=True)
class Scale:
    """How much is done: *samples* of what takes milliseconds, *seconds* of what is counted, *sizes* of rule sets.

    *quick* leaves out what would take long, *long* adds what takes very long.
    """

    rounds: int
    samples: int
    seconds: float
    sizes: tuple[int, ...]
    quick: bool = False
    long: bool = False


class Measurement(ABC):
    """One row.

    *systems* are what is compared, in the table's order; ratios are against
    *reference*, one of them or nothing.  *chart* names the figure that is drawn, if any is.
    """

    name: str
    title: str
    systems: tuple[str, ...]
    figures: tuple[Figure, ...]
    reference: str = ""
    targets: tuple[Target, ...] = ()
    chart: str = ""

    def missing(self) -> Mapping[str, str]:
        """Return the systems that this machine does not have, and why."""
        return {}

    @abstractmethod
    def run(self, system: str) -> Mapping[str, float]:
        """Measure *system* for one round; return the figures by name.

        Raises whatever keeps it from measuring: the runner notes it and goes on.
        """


def _median(results: Results, system: str, figure: str) -> float | None:
    spread = results.get(system, {}).get(figure)
    return None if spread is None else spread.median
