from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.state import Grant
from nfpkd.rules.model import Protocol, Service
from nfpkd.verifier.ledger import GrantLedger

SSH = Service(Protocol.TCP, 22)
ONCE, SLIDING = Door(4, 32, Mode.ONCE), Door(4, 32, Mode.EXTEND, 60)


def grant(number: int = 1, seconds: int = 60, **more: Any) -> Grant:
    return Grant(f"192.0.2.{number}", SSH, "ssh", seconds, seconds, **more)


def test_a_live_grant_has_the_seconds_that_are_left() -> None:
    ledger = GrantLedger()
    ledger.note([grant()], 1000.0)
    assert ledger.live(1000.0) == [grant()]
    assert ledger.live(1020.5) == [grant()._replace(expires=39)]
    # Less than a second would be a whole window, for nft.
    assert ledger.live(1059.5) == []


def test_what_the_kernel_has_is_all_that_there_is() -> None:
    ledger = GrantLedger()
    ledger.note([grant(1), grant(2)], 0.0)
    ledger.adopt([grant(2)._replace(expires=7), grant(3)], 10.0)
    assert ledger.live(10.0) == [grant(2)._replace(expires=7), grant(3)]


def test_a_longer_grant_stays() -> None:
    ledger = GrantLedger()
    ledger.note([grant(seconds=600), grant(seconds=10)], 0.0)
    assert ledger.outlasts(grant(seconds=10), 589.0)
    assert not ledger.outlasts(grant(seconds=10), 591.0)
    assert not ledger.outlasts(grant(2, seconds=10), 0.0)
    ledger.note([grant(seconds=10)], 591.0)
    assert ledger.live(591.0) == [grant(seconds=10)]


def test_a_grant_without_end_has_none() -> None:
    ledger = GrantLedger()
    ledger.note([grant(seconds=0)], 0.0)
    assert ledger.outlasts(grant(seconds=600), 1e9)
    assert ledger.live(1e9) == [grant(seconds=0)]


def test_a_grant_for_one_connection_counts_but_is_never_live() -> None:
    ledger = GrantLedger()
    ledger.note([grant(door=ONCE)], 0.0)
    assert ledger.outlasts(grant(door=ONCE, seconds=10), 0.0)
    assert ledger.live(0.0) == []


@pytest.mark.parametrize(("door", "slides"), [(None, False), (ONCE, False), (SLIDING, True)])
def test_sliding_grants_are_known(door: Door | None, slides: bool) -> None:
    ledger = GrantLedger()
    ledger.note([grant(door=door)], 0.0)
    assert ledger.has_sliding is slides


def test_one_sets_grants_can_be_forgotten() -> None:
    ledger = GrantLedger()
    ledger.note([grant(), grant(door=SLIDING), grant(2)], 0.0)
    ledger.forget({"grants4"})
    assert ledger.live(0.0) == [grant(door=SLIDING)]


def test_it_holds_no_more_than_it_may_and_no_long_ended_ones() -> None:
    ledger = GrantLedger(capacity=3)
    ledger.note([grant(n, seconds=10) for n in range(5)], 0.0)
    assert [found.source for found in ledger.live(0.0)] == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    ledger.note([grant(0, seconds=30)], 5.0)
    ledger.note([grant(7)], 12.0)
    assert {found.source for found in ledger.live(12.0)} == {"192.0.2.0", "192.0.2.7"}
    assert len(ledger) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.integers(0, 9)), max_size=60))
def test_every_source_has_its_longest_grant(steps: list[tuple[int, int, int]]) -> None:
    ledger, ends, now = GrantLedger(), dict.fromkeys(range(6), 0), 0
    for number, seconds, wait in steps:
        now += wait
        ledger.note([grant(number, seconds)], float(now))
        ends[number] = max(ends[number], now + seconds)
    left = {found.source: found.expires for found in ledger.live(float(now))}
    assert left == {f"192.0.2.{number}": end - now for number, end in ends.items() if end > now}


def test_what_has_ended_does_not_pile_up() -> None:
    ledger = GrantLedger()
    for number in range(5000):
        ledger.note([grant()._replace(source=f"10.0.{number >> 8}.{number & 255}", timeout=10, expires=10)], number)
    assert len(ledger) <= 1024
