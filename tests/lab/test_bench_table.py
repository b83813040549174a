"""The runner and what is printed of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest

from lab.bench.measurement import Figure, Measurement, Target
from lab.bench.runner import Outcome, rotated, run_row
from lab.bench.table import render_json, render_text

MACHINE = {"machine": "a small one"}


class Counted(Measurement):
    """A row whose figures say when they were taken; it keeps the order of its turns."""

    name = "counted"
    title = "a row of the tests"
    systems = ("ours", "theirs", "absent", "broken")
    figures = (Figure("p50", "ms"), Figure("rate", "packets/s"))
    reference = "ours"
    targets = (
        Target("at most half of theirs", "ours", "p50", at_most=0.5, of=("theirs",)),
        Target("a thousand", "ours", "rate", at_least=1000),
        Target("as good as what is not here", "ours", "p50", at_most=1, of=("absent",)),
        Target("of what is not here", "absent", "p50", at_most=1),
    )

    def __init__(self) -> None:
        self.order: list[str] = []

    def missing(self) -> Mapping[str, str]:
        return {"absent": "nobody has it"}

    def run(self, system: str) -> Mapping[str, float]:
        self.order.append(system)
        if system == "broken":
            raise RuntimeError("out of order")
        if system == "theirs":
            return {"p50": 10.0}
        return {"p50": float(len(self.order)), "rate": 12345.0}


@pytest.fixture
def outcome() -> Outcome:
    return run_row(Counted(), 3, lambda _line: None)


def test_systems_take_turns_in_being_first() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 1) == []


def test_rounds_are_interleaved_and_what_fails_is_not_tried_again() -> None:
    row = Counted()
    said: list[str] = []
    outcome = run_row(row, 3, said.append)
    assert row.order == ["ours", "theirs", "broken", "theirs", "ours", "ours", "theirs"]
    assert outcome.failed == {"broken": "RuntimeError: out of order"}
    assert outcome.missing == {"absent": "nobody has it"}
    assert outcome.rounds["ours"] == {"p50": [1.0, 5.0, 6.0], "rate": [12345.0] * 3}
    assert sum("FAILED: RuntimeError: out of order" in line for line in said) == 1


def test_the_table(outcome: Outcome) -> None:
    assert render_text([outcome], MACHINE) == (
        "machine: a small one\n"
        "\n"
        "counted: a row of the tests\n"
        "                median   least    most             ratio\n"
        "  ours    p50     5.00    1.00    6.00  ms          1.00\n"
        "          rate  12,345  12,345  12,345  packets/s   1.00\n"
        "  theirs  p50     10.0    10.0    10.0  ms          2.00\n"
        "  absent: missing: nobody has it\n"
        "  broken: FAILED: RuntimeError: out of order\n"
        "  to reach: at most half of theirs: met (5.00; 5.00)\n"
        "  to reach: a thousand: met (12,345; 1,000)\n"
        "  to reach: as good as what is not here: 5.00, with nothing to compare it with\n"
        "  to reach: of what is not here: not measured\n"
    )


def test_a_target_that_was_not_met_stands_out() -> None:
    row = Counted()
    outcome = Outcome(row)
    outcome.add("ours", {"p50": 6.0})
    outcome.add("theirs", {"p50": 10.0})
    assert "at most half of theirs: NOT MET (6.00; 5.00)" in render_text([outcome], MACHINE)


def test_json_has_every_round(outcome: Outcome) -> None:
    shown = json.loads(json.dumps(render_json([outcome], MACHINE)))
    (row,) = shown["rows"]
    assert shown["machine"] == MACHINE
    assert row["units"] == {"p50": "ms", "rate": "packets/s"}
    assert row["systems"]["theirs"]["p50"] == {
        "median": 10.0,
        "least": 10.0,
        "most": 10.0,
        "ratio": 2.0,
        "rounds": [10.0, 10.0, 10.0],
    }
    assert row["missing"] == {"absent": "nobody has it"}
    assert [target["met"] for target in row["targets"]] == [True, True, None, None]


def test_json_is_json_where_nothing_came_through() -> None:
    outcome = Outcome(Counted())
    outcome.add("ours", {"p50": math.inf})
    outcome.add("theirs", {"p50": math.inf})
    shown = render_json([outcome], MACHINE)
    json.dumps(shown, allow_nan=False)
    assert "theirs  p50       -" in render_text([outcome], MACHINE)
    assert shown["rows"][0]["systems"]["theirs"]["p50"]["median"] is None
