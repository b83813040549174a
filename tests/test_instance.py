"""One verifier for each network namespace, and who it is."""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import threading
from collections.abc import Iterator

import pytest

from nfpkd import instance
from nfpkd.errors import KernelError
from nfpkd.instance import InstanceLock, Report, find_instance, find_report, parse_report_untrusted


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


@pytest.fixture
def squatter(name: str) -> Iterator[socket.socket]:
    """Somebody else's socket of this name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(name)
        yield sock


@pytest.mark.parametrize("listens", [True, False])
def test_who_may_not_run_it_keeps_nobody_from_running(
    squatter: socket.socket, listens: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "_find_users", set)
    monkeypatch.setattr(instance, "has_net_admin", lambda _: False)
    if listens:
        squatter.listen()
    lock = InstanceLock()
    assert "a process that is no nfpkd has the name of its lock" in caplog.text
    assert find_instance() is None
    # It may be asked for, where nobody asks.
    lock.answer()
    lock.release()


@pytest.mark.usefixtures("lock")
def test_whoever_may_change_the_firewall_may_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "_find_users", set)
    monkeypatch.setattr(instance, "has_net_admin", lambda process: process == os.getpid())
    assert find_instance() == os.getpid()


def test_root_the_service_and_who_asks_may_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "SERVICE_USER", "nobody")
    assert instance._find_users() == {0, os.geteuid(), pwd.getpwnam("nobody").pw_uid}
    monkeypatch.setattr(instance, "SERVICE_USER", "no such user")
    assert instance._find_users() == {0, os.geteuid()}


@pytest.mark.usefixtures("lock")
def test_whoever_asks_is_answered_at_once() -> None:
    """Also while the holder is busy with its start."""
    assert [find_instance() for _ in range(20)] == [os.getpid()] * 20


def test_the_answer_is_the_same_however_often_it_is_asked_for(lock: InstanceLock) -> None:
    for _ in range(500):
        assert find_instance() == os.getpid()
        lock.answer()


def test_those_who_stay_are_in_nobodys_way(lock: InstanceLock, name: str) -> None:
    """Any user of the host may connect."""
    others = []
    try:
        for _ in range(300):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            others.append(sock)
            sock.connect(name)
            if len(others) % 50 == 0:
                lock.answer()
        assert find_instance() == os.getpid()
    finally:
        for sock in others:
            sock.close()


def ask(lock: InstanceLock) -> Report | None:
    """Ask while *lock* is served, as the daemon's event loop does it."""
    found: list[Report | None] = []
    asking = threading.Thread(target=lambda: found.append(find_report()))
    asking.start()
    while asking.is_alive():
        lock.answer()
        asking.join(0.01)
    return found[0]


def test_whoever_asks_is_told_how_things_are_now(lock: InstanceLock) -> None:
    assert ask(lock) is None
    for report in (Report("guarding by 1 rule"), Report("the last reload failed", stale=True)):
        lock.report(report)
        assert ask(lock) == report


def test_nobody_says_nothing() -> None:
    assert find_report() is None


@pytest.mark.usefixtures("lock")
def test_who_does_not_answer_is_not_waited_for_long() -> None:
    assert find_report() is None


@pytest.mark.parametrize(
    "data", [b"", b"x", b"5", b"[]", b'["x"]', b'["x", 1]', b"[5, true]", b'["\\u001b[2J", true]', b"[" * 1000, b"\xff"]
)
def test_what_is_no_report_says_nothing(data: bytes) -> None:
    assert parse_report_untrusted(data) is None
