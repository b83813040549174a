"""From samples to spreads, and whether targets are met."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.bench.figures import Spread, best, percentile, shown, spread
from lab.bench.measurement import Results, Target


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (1.0, 100.0)],
)
def test_percentile_is_a_sample_that_was_seen(share: float, expected: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == expected


def test_what_never_came_took_for_ever() -> None:
    assert percentile([], 0.5) == math.inf


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 1))
def test_so_many_samples_do_not_exceed_the_percentile(samples: list[float], share: float) -> None:
    found = percentile(samples, share)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= share * len(samples) - 1e-9


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [([3.0], Spread(3.0, 3.0, 3.0)), ([5.0, 1.0, 2.0], Spread(2.0, 1.0, 5.0)), ([4.0, 1.0], Spread(2.5, 1.0, 4.0))],
)
def test_spread(rounds: list[float], expected: Spread) -> None:
    assert spread(rounds) == expected


def test_no_rounds_have_no_spread() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        spread([])


def test_best() -> None:
    assert best([3.0, 1.0, 2.0], least=True) == 1.0
    assert best([3.0, 1.0, 2.0], least=False) == 3.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (math.nan, "-"),
        (math.inf, "-"),
        (0.0512, "0.0512"),
        (0.05, "0.0500"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (123.6, "124"),
        (1234567.0, "1,234,567"),
        (-12.345, "-12.3"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert shown(value) == text


RESULTS: Results = {
    "ours": {"p50": Spread(2.0, 1.0, 3.0), "rate": Spread(90.0, 80.0, 99.0)},
    "slow": {"p50": Spread(300.0, 300.0, 300.0), "rate": Spread(50.0, 50.0, 50.0)},
    "quick": {"p50": Spread(100.0, 100.0, 100.0), "rate": Spread(100.0, 100.0, 100.0)},
}


@pytest.mark.parametrize(
    ("target", "met", "limit"),
    [
        (Target("", "ours", "p50", at_most=2.0), True, 2.0),
        (Target("", "ours", "p50", at_most=1.9), False, 1.9),
        (Target("", "ours", "rate", at_least=90), True, 90),
        (Target("", "ours", "rate", at_least=91), False, 91),
        # 50 times faster than the best of the two, which is the quicker.
        (Target("", "ours", "p50", at_most=1 / 50, of=("slow", "quick")), True, 2.0),
        (Target("", "ours", "p50", at_most=1 / 51, of=("slow", "quick")), False, 100 / 51),
        (Target("", "ours", "rate", at_least=0.9, of=("slow", "quick")), True, 90.0),
        (Target("", "ours", "rate", at_least=0.91, of=("slow", "quick")), False, 91.0),
        (Target("", "ours", "p50", at_most=0.03, of=("slow",), of_figure="rate"), False, 1.5),
        # The one that is missing is left out.
        (Target("", "ours", "p50", at_most=1.0, of=("missing", "quick")), True, 100.0),
    ],
)
def test_targets(target: Target, met: bool, limit: float) -> None:
    verdict = target.judge(RESULTS)
    assert verdict.met is met
    assert verdict.limit == pytest.approx(limit)


def test_nothing_is_met_against_what_is_missing() -> None:
    verdict = Target("", "ours", "p50", at_most=1.5, of=("missing",)).judge(RESULTS)
    assert (verdict.met, verdict.value, verdict.limit) == (None, 2.0, None)


def test_nothing_is_met_by_what_is_missing() -> None:
    verdict = Target("", "missing", "p50", at_most=1.5).judge(RESULTS)
    assert (verdict.met, verdict.value) == (None, None)


def test_rounds_in_which_all_was_lost_meet_nothing() -> None:
    lost: Results = {"ours": {"p50": spread([1.0, math.inf, math.inf])}}
    assert lost["ours"]["p50"] == Spread(math.inf, 1.0, math.inf)
    assert Target("", "ours", "p50", at_most=1e9).judge(lost).met is False
