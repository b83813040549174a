"""Exactly one verdict for every packet, with a stand-in for the kernel's queue."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nfpkd.errors import KernelError
from nfpkd.verifier import queue
from nfpkd.verifier.listeners import Listener
from nfpkd.verifier.queue import BATCH, PacketQueue


class FakePacket:
    indev = 3

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self.verdicts: list[str] = []

    def get_payload(self) -> bytes:
        return self._payload

    def accept(self) -> None:
        self.verdicts.append("accept")

    def drop(self) -> None:
        self.verdicts.append("drop")


class FakeNetfilterQueue:
    """Behaves as NetfilterQueue 1.1 does: what is received is one packet; ENOBUFS is swallowed, EAGAIN ends the run."""

    refusal: OSError | None = None

    def __init__(self) -> None:
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.packets: list[FakePacket] = []
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

    def run_socket(self, sock: Any) -> None:
        while True:
            try:
                payload = sock.recv(4096)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    return
                raise
            packet = FakePacket(payload)
            self.packets.append(packet)
            self._callback(packet)

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

    def deliver(self, *payloads: bytes) -> list[list[str]]:
        """Let the kernel deliver packets, and return each one's verdicts."""
        for payload in payloads:
            self.fake.kernel.send(payload)
        before = len(self.fake.packets)
        self.queue.drain()
        return [packet.verdicts for packet in self.fake.packets[before:]]


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    opened.queue.close()


def test_the_handlers_answer_is_the_verdict(opened: Opened) -> None:
    opened.answer = lambda payload: payload == b"pass"
    assert opened.deliver(b"pass", b"knock", b"pass") == [["accept"], ["drop"], ["accept"]]
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
        assert opened.deliver(b"good", b"bad", b"good") == [["drop"], ["accept"], ["drop"]]
    assert opened.queue.failures == 1
    assert "could not be judged" in caplog.text


def test_a_packet_gets_its_verdict_also_when_the_process_is_interrupted(opened: Opened) -> None:
    def answer(_: bytes) -> bool:
        raise KeyboardInterrupt

    opened.answer = answer
    with pytest.raises(KeyboardInterrupt):
        opened.deliver(b"packet")
    assert [packet.verdicts for packet in opened.fake.packets] == [["accept"]]


def test_nothing_waiting_is_nothing_to_do(opened: Opened) -> None:
    assert opened.deliver() == []


class Flood:
    """A socket with no end of packets."""

    def __init__(self, errors: tuple[int, ...] = ()) -> None:
        self._errors = list(errors)
        self.flags: set[int] = set()

    def recv(self, _: int, flags: int) -> bytes:
        self.flags.add(flags)
        if self._errors:
            raise OSError(self._errors.pop(0), "refused")
        return b"packet"

    def close(self) -> None:
        """Nothing to give back."""


def put(opened: Opened, flood: Flood, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.queue._socket.close()
    monkeypatch.setattr(opened.queue, "_socket", flood)


def test_a_flood_gives_the_loop_its_turn_after_each_batch(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Flood()
    put(opened, flood, monkeypatch)
    for turn in (1, 2):
        assert opened.deliver() == [["accept"]] * BATCH
        assert len(opened.seen) == turn * BATCH
    # A drained queue may not block the loop.
    assert flood.flags == {socket.MSG_DONTWAIT}


def test_losses_are_counted_and_stop_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    put(opened, Flood((errno.ENOBUFS, errno.ENOBUFS)), monkeypatch)
    assert opened.deliver() == [["accept"]] * (BATCH - 2)
    assert opened.queue.overruns == 2


def test_a_broken_socket_is_told(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    put(opened, Flood((errno.EBADF,)), monkeypatch)
    with pytest.raises(OSError, match="refused"):
        opened.deliver()
    assert opened.queue.overruns == 0


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
