"""The memory that makes every knock good for one time only."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfpkd.verifier.replay import DEFAULT_CAPACITY, Freshness, ReplayMemory

FRESH, SEEN, CUT_OFF, FULL = Freshness.FRESH, Freshness.SEEN, Freshness.CUT_OFF, Freshness.FULL


def digest_of(time: int, number: int = 0) -> bytes:
    """A digest covers its time, so one digest has one time."""
    return f"{time} {number}".encode()


def filled(capacity: int, time: int = 100) -> ReplayMemory:
    memory = ReplayMemory(capacity)
    for number in range(capacity):
        assert memory.admit(digest_of(time, number), time, 0) is FRESH
    return memory


def test_a_digest_is_fresh_once() -> None:
    memory = ReplayMemory()
    assert memory.admit(b"a", 100, 90) is FRESH
    assert memory.admit(b"a", 100, 90) is SEEN
    assert memory.admit(b"b", 100, 90) is FRESH
    assert len(memory) == 2


class ReplayMachine(RuleBasedStateMachine):
    """Any order of knocks, under a clock and a skew that go wherever they like."""

    CAPACITY = 6

    def __init__(self) -> None:
        super().__init__()
        self.memory = ReplayMemory(self.CAPACITY)
        self.was_fresh: set[bytes] = set()

    @rule(
        time=st.integers(0, 30) | st.sampled_from([2**63, 2**64 - 1]),
        number=st.integers(0, 3),
        oldest_valid=st.floats(-10, 40) | st.just(-math.inf) | st.sampled_from([math.inf, 2.0**63]),
    )
    def admit(self, time: int, number: int, oldest_valid: float) -> None:
        digest = digest_of(time, number)
        freshness = self.memory.admit(digest, time, oldest_valid)
        if freshness is FRESH:
            assert digest not in self.was_fresh
            self.was_fresh.add(digest)
        if freshness is FULL:
            assert len(self.memory) == self.CAPACITY

    @invariant()
    def is_bounded(self) -> None:
        assert 0 <= len(self.memory) <= self.CAPACITY
        assert len(self.memory) == sum(map(len, self.memory._seconds.values()))


TestReplayMachine = ReplayMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), unique=True), st.integers(-5, 0))
def test_what_is_new_and_still_valid_is_fresh(knocks: list[tuple[int, int]], oldest_valid: int) -> None:
    memory = ReplayMemory()
    assert all(memory.admit(digest_of(*knock), knock[0], oldest_valid) is FRESH for knock in knocks)
    assert len(memory) == len(knocks)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-10, 10))))
def test_under_a_clock_that_only_goes_forward_no_valid_knock_is_refused(knocks: list[tuple[int, int]]) -> None:
    memory = ReplayMemory()
    now = 100
    for number, (step, offset) in enumerate(knocks):
        now += step
        assert memory.admit(digest_of(now + offset, number), now + offset, now - 10) is FRESH


def test_what_is_too_old_to_be_accepted_is_forgotten() -> None:
    memory = ReplayMemory()
    for now in range(100, 1000):
        memory.admit(digest_of(now), now, now - 10)
    assert len(memory) == 11


def test_a_stamp_that_is_just_valid_is_kept() -> None:
    memory = ReplayMemory()
    memory.admit(b"a", 100, 90)
    memory.admit(b"b", 110, 100)
    assert len(memory) == 2
    memory.admit(b"c", 110, 100.5)
    assert len(memory) == 2
    assert memory.admit(b"a", 100, 90) is CUT_OFF


def test_a_clock_set_back_revives_nothing() -> None:
    memory = ReplayMemory()
    assert memory.admit(b"a", 100, 90) is FRESH
    assert memory.admit(b"b", 200, 190) is FRESH
    assert len(memory) == 1
    assert memory.admit(b"a", 100, 90) is CUT_OFF
    # Nor what was never seen: nobody can tell any more.
    assert memory.admit(b"c", 100, 90) is CUT_OFF
    assert memory.admit(b"d", 101, 90) is FRESH


def test_a_skew_that_grows_revives_nothing() -> None:
    memory = ReplayMemory()
    memory.admit(b"a", 100, 99)
    memory.admit(b"b", 200, 199)
    assert memory.admit(b"a", 100, -math.inf) is CUT_OFF


def test_a_full_memory_refuses_what_is_new_and_knows_what_is_not() -> None:
    memory = filled(3)
    assert memory.admit(b"new", 101, 90) is FULL
    assert memory.admit(digest_of(100, 1), 100, 90) is SEEN
    assert len(memory) == 3


def test_a_full_memory_recovers_when_its_oldest_second_expires() -> None:
    memory = filled(3)
    assert memory.admit(b"new", 111, 100) is FULL
    assert memory.admit(b"new", 111, 101) is FRESH
    assert len(memory) == 1
    assert memory.admit(digest_of(100, 0), 100, 90) is CUT_OFF


def test_a_full_memory_recovers_also_behind_a_stamp_of_the_future() -> None:
    memory = ReplayMemory(3)
    memory.admit(b"future", 10**9, 90)
    memory.admit(b"a", 100, 90)
    memory.admit(b"b", 101, 90)
    assert memory.admit(b"c", 111, 101) is FRESH
    assert len(memory) == 3
    assert memory.admit(b"future", 10**9, 101) is SEEN
    assert memory.admit(b"a", 100, 90) is CUT_OFF


def test_what_was_refused_for_want_of_room_is_not_held_against_it() -> None:
    memory = filled(1)
    assert memory.admit(b"new", 105, 90) is FULL
    assert memory.admit(b"new", 105, 101) is FRESH


def test_a_memory_without_an_end_is_full_for_good() -> None:
    """Where the clock is ignored nothing expires, and forgetting would let knocks be replayed."""
    memory = filled(2)
    assert memory.admit(b"new", 10**9, -math.inf) is FULL
    assert memory.admit(digest_of(100, 0), 100, -math.inf) is SEEN


def test_the_default_capacity_holds() -> None:
    memory = ReplayMemory()
    for number in range(DEFAULT_CAPACITY):
        memory.admit(digest_of(100, number), 100, 90)
    assert len(memory) == DEFAULT_CAPACITY
    assert memory.admit(b"new", 100, 90) is FULL
