"""How often a rule's knocks are accepted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.rules.model import DEFAULT_RATE
from nfpkd.verifier.ratelimit import TokenBucket

# Multiples of a power of two are exact in a float: no rounding decides a case.
steps = st.lists(st.integers(0, 64).map(lambda n: n / 16), min_size=1, max_size=60)


def test_the_first_is_let_through_at_any_time() -> None:
    assert TokenBucket(*DEFAULT_RATE).take(0.0)
    assert TokenBucket(*DEFAULT_RATE).take(1e9)


@pytest.mark.parametrize(("later", "passes"), [(0.0, False), (1.0, False), (4.9, False), (5.0, True), (1000.0, True)])
def test_by_default_one_in_five_seconds(later: float, passes: bool) -> None:
    bucket = TokenBucket(*DEFAULT_RATE)
    assert bucket.take(1024.0)
    assert bucket.take(1024.0 + later) is passes


def test_refused_attempts_cost_nothing() -> None:
    bucket = TokenBucket(*DEFAULT_RATE)
    assert [bucket.take(1024.0 + second) for second in range(11)] == [second % 5 == 0 for second in range(11)]


def test_a_long_silence_saves_up_no_more_than_the_burst() -> None:
    bucket = TokenBucket(knocks=1, per=5, burst=3)
    bucket.take(0.0)
    assert [bucket.take(1e6) for _ in range(5)] == [True, True, True, False, False]


def test_a_rate_of_several() -> None:
    bucket = TokenBucket(knocks=2, per=1.0, burst=2)
    assert [bucket.take(1024 + t / 4) for t in range(9)] == [True, True, True, False, True, False, True, False, True]


@given(steps, st.integers(1, 4), st.sampled_from([0.5, 1.0, 4.0]), st.integers(1, 4))
def test_no_interval_sees_more_than_its_rate_and_one_burst(
    waits: list[float], knocks: int, per: float, burst: int
) -> None:
    bucket = TokenBucket(knocks, per, burst)
    now, passed = 1024.0, []
    for wait in waits:
        now += wait
        if bucket.take(now):
            passed.append(now)
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first + 1 <= burst + math.floor((end - start) * knocks / per)


@given(steps)
def test_what_keeps_to_the_rate_is_never_refused(waits: list[float]) -> None:
    bucket = TokenBucket(knocks=1, per=4.0, burst=1)
    now = 1024.0
    for wait in waits:
        now += 4.0 + wait
        assert bucket.take(now)
