"""Runs rows: every system in turn, round after round, so that what drifts drifts for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.bench.figures import Spread, spread
from lab.bench.measurement import Measurement, Verdict

Say = Callable[[str], object]


@dataclass
class Outcome:
    """What a row came to: by system and figure, one number a round; what is *missing*, and what *failed*, with why."""

    row: Measurement
    rounds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> dict[str, dict[str, Spread]]:
        return {
            system: {figure: spread(values) for figure, values in figures.items()}
            for system, figures in self.rounds.items()
        }

    @property
    def verdicts(self) -> list[Verdict]:
        results = self.results
        return [target.judge(results) for target in self.row.targets]

    def add(self, system: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.rounds.setdefault(system, {}).setdefault(name, []).append(value)


def run_row(row: Measurement, rounds: int, say: Say) -> Outcome:
    """Measure all systems of *row* that are here; what fails is noted and not tried again."""
    outcome = Outcome(row, missing=dict(row.missing()))
    present = [system for system in row.systems if system not in outcome.missing]
    for turn in range(rounds):
        for system in rotated(present, turn):
            if system in outcome.failed:
                continue
            started = time.monotonic()
            try:
                outcome.add(system, dict(row.run(system)))
            except Exception as error:  # noqa: BLE001  (one system's fault must not cost the others their rounds)
                outcome.failed[system] = f"{type(error).__name__}: {error}"
            note = f" FAILED: {outcome.failed[system]}" if system in outcome.failed else ""
            say(f"{row.name}, round {turn + 1} of {rounds}: {system}, {time.monotonic() - started:.1f} s{note}")
    return outcome


def rotated(systems: Sequence[str], turn: int) -> list[str]:
    """Return *systems* with another one in front each round: being first must not be anybody's lot."""
    start = turn % len(systems) if systems else 0
    return [*systems[start:], *systems[:start]]
