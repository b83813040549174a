"""What was measured, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.bench.figures import Spread, shown
from lab.bench.measurement import Verdict
from lab.bench.runner import Outcome

_HEAD = ("", "", "median", "least", "most", "", "ratio")


def render_text(outcomes: Iterable[Outcome], machine: Mapping[str, str]) -> str:
    """Return the table: for each row its systems' figures, then what was to be reached."""
    lines = [f"{name}: {value}" for name, value in machine.items()]
    for outcome in outcomes:
        lines += ["", f"{outcome.row.name}: {outcome.row.title}"]
        cells = [_HEAD, *_cells(outcome)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        lines += ["  " + _align(row, widths) for row in cells]
        lines += [f"  {system}: missing: {why}" for system, why in outcome.missing.items()]
        lines += [f"  {system}: FAILED: {why}" for system, why in outcome.failed.items()]
        lines += [f"  to reach: {_describe(verdict)}" for verdict in outcome.verdicts]
    return "\n".join(lines) + "\n"


def render_json(outcomes: Iterable[Outcome], machine: Mapping[str, str]) -> dict[str, Any]:
    """Return the same with every round's figures, for programs."""
    return {"machine": dict(machine), "rows": [_row_json(outcome) for outcome in outcomes]}


def _row_json(outcome: Outcome) -> dict[str, Any]:
    row, results = outcome.row, outcome.results
    return {
        "name": row.name,
        "title": row.title,
        "reference": row.reference,
        "units": {figure.name: figure.unit for figure in row.figures},
        "systems": {
            system: {
                figure: {
                    **{name: _finite(value) for name, value in found._asdict().items()},
                    "ratio": _finite(ratio(results, row.reference, system, figure)),
                    "rounds": [_finite(value) for value in outcome.rounds[system][figure]],
                }
                for figure, found in figures.items()
            }
            for system, figures in results.items()
        },
        "missing": outcome.missing,
        "failed": outcome.failed,
        "targets": [_verdict_json(verdict) for verdict in outcome.verdicts],
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    value, limit = (None if number is None else _finite(number) for number in (verdict.value, verdict.limit))
    return {"text": verdict.text, "met": verdict.met, "value": value, "limit": limit}


def ratio(results: Mapping[str, Mapping[str, Spread]], reference: str, system: str, figure: str) -> float:
    """Return *system*'s median as a multiple of the reference's; NaN where there is nothing to compare with."""
    base = results.get(reference, {}).get(figure)
    if not base or not base.median or not math.isfinite(base.median):
        return math.nan
    return results[system][figure].median / base.median


def _cells(outcome: Outcome) -> list[tuple[str, ...]]:
    row, results = outcome.row, outcome.results
    cells: list[tuple[str, ...]] = []
    for system in row.systems:
        label = system
        for figure in row.figures:
            if figure.name not in results.get(system, {}):
                continue
            found = results[system][figure.name]
            times = ratio(results, row.reference, system, figure.name)
            numbers = (shown(found.median), shown(found.least), shown(found.most))
            cells.append((label, figure.name, *numbers, figure.unit, shown(times) if math.isfinite(times) else ""))
            label = ""
    return cells


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return one line: words to the left, numbers to the right."""
    parts = [
        text.rjust(width) if column in (2, 3, 4, 6) else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(parts).rstrip()


def _describe(verdict: Verdict) -> str:
    if verdict.value is None:
        return f"{verdict.text}: not measured"
    if verdict.met is None or verdict.limit is None:
        return f"{verdict.text}: {shown(verdict.value)}, with nothing to compare it with"
    return f"{verdict.text}: {'met' if verdict.met else 'NOT MET'} ({shown(verdict.value)}; {shown(verdict.limit)})"


def _finite(value: float) -> float | None:
    # JSON has neither NaN nor infinity.
    return value if math.isfinite(value) else None
