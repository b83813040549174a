"""One verifier for each network namespace, and who it is."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator

import pytest

from nfpkd import instance
from nfpkd.errors import KernelError
from nfpkd.instance import InstanceLock, find_instance


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A lock of the test's own: on this host, nfpkd may be running."""
    made = f"\0nfpkd-test-{secrets.token_hex(4)}"
    monkeypatch.setattr(instance, "_NAME", made)
    return made


@pytest.fixture
def lock() -> Iterator[InstanceLock]:
    made = InstanceLock()
    yield made
    made.release()


def test_nobody_runs_unless_somebody_does() -> None:
    assert find_instance() is None


def test_a_second_one_is_turned_away_and_told_who_is_first(lock: InstanceLock) -> None:
    with pytest.raises(KernelError, match=rf"already running here \(process {os.getpid()}\)"):
        InstanceLock()
    lock.release()
    InstanceLock().release()
    assert find_instance() is None


@pytest.mark.usefixtures("lock")
def test_whoever_asks_is_answered_at_once() -> None:
    """Also while the holder is busy with its start."""
    assert [find_instance() for _ in range(20)] == [os.getpid()] * 20


def test_the_answer_is_the_same_however_often_it_is_asked_for(lock: InstanceLock) -> None:
    for _ in range(500):
        assert find_instance() == os.getpid()
        lock.dismiss()


def test_those_who_stay_are_in_nobodys_way(lock: InstanceLock, name: str) -> None:
    """Any user of the host may connect."""
    others = []
    try:
        for _ in range(300):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            others.append(sock)
            sock.connect(name)
            if len(others) % 50 == 0:
                lock.dismiss()
        assert find_instance() == os.getpid()
    finally:
        for sock in others:
            sock.close()
