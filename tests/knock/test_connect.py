"""Knocking and connecting, against servers on the loopback device that need some knocks."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from nfpkd.errors import KnockError
from nfpkd.knock.client import Address
from nfpkd.knock.connect import PATIENCE_SECONDS, connect_behind_knock
from nfpkd.rules.model import Rate
from nfpkd.verifier.ratelimit import TokenBucket

HERE = Address(socket.AF_INET, ("127.0.0.1", 0))
THERE = Address(socket.AF_INET, ("127.0.0.2", 0))


class Door:
    """A port that opens at a knock: at the one with the number *opens_at*, counted from 1."""

    def __init__(self, opens_at: int, address: str = "127.0.0.1") -> None:
        self._opens_at = opens_at
        self._socket = socket.socket()
        self._socket.bind((address, 0))
        self.port: int = self._socket.getsockname()[1]
        self.knocks: list[tuple[str, float]] = []

    def knock(self, address: Address) -> None:
        self.knocks.append((str(address), time.monotonic()))
        if len(self.knocks) == self._opens_at:
            self._socket.listen()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    made = Door(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("door", [1], indirect=True)
def test_one_knock_is_enough_if_it_arrives(door: Door) -> None:
    said: list[str] = []
    with connect_behind_knock([HERE], door.port, door.knock, say=said.append) as connection:
        assert connection.getpeername() == ("127.0.0.1", door.port)
        assert connection.gettimeout() is None
    assert len(door.knocks) == 1
    assert said == []


@pytest.mark.parametrize("door", [3], indirect=True)
def test_each_try_has_a_knock_of_its_own_and_its_time(door: Door) -> None:
    said: list[str] = []
    connect_behind_knock([HERE], door.port, door.knock, say=said.append, patience=(0.2, 0.4, 0.4)).close()
    times = [when for _, when in door.knocks]
    assert len(times) == 3
    # Whole timer ticks may be missing.
    assert times[1] - times[0] > 0.19
    assert times[2] - times[1] > 0.39
    assert said == [f"127.0.0.1 port {door.port}/tcp: connection refused; knocking again"] * 2


@pytest.mark.parametrize("door", [9], indirect=True)
def test_what_was_tried_is_said_in_the_end(door: Door) -> None:
    with pytest.raises(KnockError) as caught:
        connect_behind_knock([HERE], door.port, door.knock, patience=(0.1, 0.1))
    first, second = str(caught.value).splitlines()
    assert first == f"cannot connect to 127.0.0.1 port {door.port}/tcp: connection refused, after 2 knocks in 0 s"
    assert "`nfpkd run -v` on the server" in second
    assert len(door.knocks) == 2


def test_silence_is_no_answer() -> None:
    """A full backlog makes the kernel drop the next SYN."""
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        with pytest.raises(KnockError, match="/tcp: no answer, after 2 knocks"):
            connect_behind_knock([HERE], full.getsockname()[1], lambda _: None, patience=(0.2, 0.2))


@pytest.mark.parametrize("door", [2], indirect=True)
def test_addresses_take_turns(door: Door) -> None:
    with pytest.raises(KnockError, match=r"cannot connect to 127\.0\.0\.1 port"):
        connect_behind_knock([THERE, HERE], door.port, lambda _: None, patience=(0.1, 0.1))
    connect_behind_knock([THERE, HERE], door.port, door.knock, patience=(0.1, 0.1)).close()
    assert [address for address, _ in door.knocks] == ["127.0.0.2", "127.0.0.1"]


@pytest.mark.parametrize("door", [2], indirect=True)
def test_an_address_that_nothing_can_be_sent_to_costs_no_time(door: Door) -> None:
    def knock(address: Address) -> None:
        if address == THERE:
            raise KnockError("cannot send to 127.0.0.2: network is unreachable")
        door.knock(address)

    began = time.monotonic()
    connect_behind_knock([THERE, HERE], door.port, knock, patience=(0.1, 5)).close()
    assert time.monotonic() - began < 2
    assert len(door.knocks) == 2


def test_if_nothing_can_be_sent_anywhere_that_is_said_at_once() -> None:
    def knock(address: Address) -> None:
        raise KnockError(f"cannot send to {address}")

    with pytest.raises(KnockError, match=r"^cannot send to 127\.0\.0\.2$"):
        connect_behind_knock([HERE, THERE], 22, knock)


@pytest.mark.parametrize("before", [0.0, 0.5, 2.5, 4.9])
@pytest.mark.parametrize("lost", [set(), {1}, {3}, {1, 2}])
def test_a_knock_is_accepted_whatever_came_before_and_whatever_gets_lost(before: float, lost: set[int]) -> None:
    """With a rule's default rate, and somebody else's knock *before* seconds ahead of the first one."""
    bucket = TokenBucket(*Rate())
    assert bucket.take(100.0)
    now, accepted = 100.0 + before, []
    for number, seconds in enumerate(PATIENCE_SECONDS, 1):
        if number not in lost and bucket.take(now):
            accepted.append(number)
        now += seconds
    assert accepted
    if not lost:
        assert accepted[0] <= 3
