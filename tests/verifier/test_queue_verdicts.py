"""Exactly one verdict for every packet, with a stand-in for the kernel's queue."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import KernelError
from nfpkd.verifier import queue
from nfpkd.verifier.listeners import Listener
from nfpkd.verifier.queue import BATCH, MOST_UNANSWERED, PacketQueue

# linux/netfilter.h, linux/netfilter/nfnetlink_queue.h
VERDICTS = {0: "drop", 1: "accept"}
VERDICT_BATCH = (3 << 8) | 3
VERDICT_HDR = 2


class FakePacket:
    indev = 3

    def __init__(self, number: int, payload: bytes) -> None:
        self.id = number
        self._payload = payload

    def get_payload(self) -> bytes:
        return self._payload


class FakeNetfilterQueue:
    """Behaves as NetfilterQueue 1.1 and the kernel behind it do.

    What is received is one packet, until there are no more; what the callback raises ends the run.  A verdict that
    comes back is for all packets up to its number that have none yet.
    """

    refusal: OSError | None = None

    def __init__(self) -> None:
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.setblocking(False)
        self._ours.setblocking(False)
        self.packets: list[bytes] = []
        self.verdicts: dict[int, str] = {}
        self.messages = 0
        self.bound: dict[int, dict[str, int]] = {}

    def bind(self, number: int, callback: Callable[[Any], None], **settings: int) -> None:
        if self.refusal is not None:
            self.kernel.close()
            self._ours.close()
            raise self.refusal
        self.bound[number] = settings
        self._callback = callback

    def get_fd(self) -> int:
        return self._ours.fileno()

    def run(self, block: bool = True) -> None:
        assert not block
        while True:
            try:
                payload = self._ours.recv(4096)
            except BlockingIOError:
                return
            self.packets.append(payload)
            self._callback(FakePacket(len(self.packets), payload))
            self.read_verdicts()

    def read_verdicts(self) -> None:
        """Do what the kernel does with each message."""
        while True:
            try:
                message = self.kernel.recv(4096)
            except BlockingIOError:
                return
            length, kind, flags, _, _, _, _, number = struct.unpack_from("=IHHIIBBH", message)
            assert (length, kind, flags) == (len(message), VERDICT_BATCH, 1)
            assert socket.ntohs(number) in self.bound
            assert struct.unpack_from("=HH", message, 20) == (12, VERDICT_HDR)
            verdict, last = struct.unpack_from(">II", message, 24)
            waiting = [one for one in range(1, last + 1) if one not in self.verdicts]
            assert waiting, "a verdict on nothing"
            self.verdicts.update(dict.fromkeys(waiting, VERDICTS[verdict]))
            self.messages += 1

    def unbind(self) -> None:
        self.bound.clear()
        self._ours.close()
        self.kernel.close()


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "NetfilterQueue", FakeNetfilterQueue)


class Opened:
    """A queue on a fake, and what its handler was given."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.interfaces: set[int] = set()
        self.answer: Callable[[bytes], bool] = lambda _: True
        self.queue = PacketQueue(7, self._handle)
        fake: Any = self.queue._queue
        self.fake: FakeNetfilterQueue = fake

    def _handle(self, payload: bytes, interface: int) -> bool:
        self.seen.append(payload)
        self.interfaces.add(interface)
        return self.answer(payload)

    def deliver(self, *payloads: bytes) -> list[str | None]:
        """Let the kernel deliver packets, and return each one's verdict."""
        before = len(self.fake.packets)
        for payload in payloads:
            self.fake.kernel.send(payload)
        try:
            self.queue.drain()
        finally:
            self.fake.read_verdicts()
        return [self.fake.verdicts.get(number + 1) for number in range(before, len(self.fake.packets))]


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    opened.queue.close()


def test_the_handlers_answer_is_the_verdict(opened: Opened) -> None:
    opened.answer = lambda payload: payload == b"pass"
    assert opened.deliver(b"pass", b"knock", b"pass") == ["accept", "drop", "accept"]
    assert opened.seen == [b"pass", b"knock", b"pass"]
    assert opened.interfaces == {FakePacket.indev}
    assert opened.queue.failures == 0


def test_a_handler_that_raises_lets_its_packet_go_on(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    def answer(payload: bytes) -> bool:
        if payload == b"bad":
            raise ZeroDivisionError
        return False

    opened.answer = answer
    with caplog.at_level(logging.ERROR):
        assert opened.deliver(b"good", b"bad", b"good") == ["drop", "accept", "drop"]
    assert opened.queue.failures == 1
    assert "could not be judged" in caplog.text


def test_a_packet_gets_its_verdict_also_when_the_process_is_interrupted(opened: Opened) -> None:
    def answer(_: bytes) -> bool:
        raise KeyboardInterrupt

    opened.answer = answer
    with pytest.raises(KeyboardInterrupt):
        opened.deliver(b"packet")
    assert opened.fake.verdicts == {1: "accept"}


def test_nothing_waiting_is_nothing_to_do(opened: Opened) -> None:
    assert opened.deliver() == []


def test_packets_that_fare_alike_share_a_verdict(opened: Opened) -> None:
    opened.answer = lambda payload: payload != b"knock"
    assert opened.deliver(b"a", b"b", b"knock", b"knock", b"c") == ["accept", "accept", "drop", "drop", "accept"]
    assert opened.fake.messages == 3


def test_so_many_wait_for_a_verdict_and_no_more(opened: Opened) -> None:
    waiting = []

    def answer(_: bytes) -> bool:
        opened.fake.read_verdicts()
        waiting.append(len(opened.fake.packets) - len(opened.fake.verdicts))
        return True

    opened.answer = answer
    for _ in range(3):
        assert opened.deliver(*[b"packet"] * 100) == ["accept"] * 100
    assert max(waiting) == MOST_UNANSWERED + 1


@given(st.lists(st.lists(st.booleans(), max_size=100), max_size=4))
def test_every_packet_gets_its_own_verdict(turns: list[list[bool]]) -> None:
    opened = Opened()
    opened.answer = lambda payload: payload == b"pass"
    for verdicts in turns:
        expected = ["accept" if accept else "drop" for accept in verdicts]
        assert opened.deliver(*(b"pass" if accept else b"knock" for accept in verdicts)) == expected
    opened.queue.close()


def test_a_flood_gives_the_loop_its_turn_after_each_batch(opened: Opened) -> None:
    def answer(_: bytes) -> bool:
        opened.fake.kernel.send(b"another")
        return True

    opened.answer = answer
    opened.fake.kernel.send(b"first")
    for turn in (1, 2):
        assert opened.deliver() == ["accept"] * BATCH
        assert len(opened.seen) == turn * BATCH


def test_a_kernel_that_takes_no_verdict_is_told(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def send(self, _: bytes) -> int:
            raise OSError(errno.ENOBUFS, "no room")

        def close(self) -> None:
            """Nothing to give back."""

    whole = opened.queue._socket
    with monkeypatch.context() as patched:
        patched.setattr(opened.queue, "_socket", Broken())
        with pytest.raises(OSError, match="no room"):
            opened.deliver(b"packet")
    assert opened.queue._socket is whole
    # It is made up for.
    assert opened.deliver(b"next") == ["accept"]
    assert opened.fake.verdicts == {1: "accept", 2: "accept"}


def test_the_queue_is_taken_as_measured_and_given_back() -> None:
    opened = Opened()
    assert opened.fake.bound == {7: {"max_len": 256, "range": 512, "sock_len": 8 * 1024 * 1024}}
    assert opened.queue.fileno() not in (-1, opened.fake.get_fd())
    opened.queue.close()
    assert opened.fake.bound == {}
    assert opened.queue.fileno() == -1


@pytest.mark.parametrize(
    ("listeners", "reason", "remedy"),
    [
        ({7: Listener(1, 0, 0, 0)}, "queue 7 is used by another process", "--queue"),
        ({8: Listener(1, 0, 0, 0)}, "cannot listen on queue 7", "CAP_NET_ADMIN"),
    ],
)
def test_a_queue_that_cannot_be_taken(
    monkeypatch: pytest.MonkeyPatch, listeners: dict[int, Listener], reason: str, remedy: str
) -> None:
    monkeypatch.setattr(FakeNetfilterQueue, "refusal", OSError("Failed to create queue 7."))
    monkeypatch.setattr(queue, "find_queue_listeners", lambda: listeners)
    with pytest.raises(KernelError) as caught:
        PacketQueue(7, lambda *_: True)
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy
