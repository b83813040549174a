"""What a service manager hears: a socket of the test's own stands in for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as a service manager has it, and its name as NOTIFY_SOCKET gives it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"@nfpkd-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        yield sock, name


def test_each_message_is_a_datagram_of_its_own(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("guarding by 3 rules")
    notifier.status("the rule files have errors")
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.alive()
    notifier.stopping()
    notifier.close()
    assert sock.recv(4096) == b"READY=1\nSTATUS=guarding by 3 rules"
    assert sock.recv(4096) == b"STATUS=the rule files have errors"
    first, stamp = sock.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert sock.recv(4096) == b"WATCHDOG=1"
    assert sock.recv(4096) == b"STOPPING=1"


def test_children_inherit_none_of_it() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier(environment).close()
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("address", [None, "", "relative/path", "vsock:2:1234"])
def test_without_a_manager_nothing_is_said(address: str | None) -> None:
    environment = {"WATCHDOG_USEC": "1000000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    notifier.ready("nobody hears this")
    notifier.close()


def test_a_manager_that_does_not_listen_ends_nothing(tmp_path: Path) -> None:
    # The second is longer than a Unix socket's name may be.
    for address in (str(tmp_path / "gone"), "/" + "x" * 200):
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.alive()
        notifier.close()


def test_a_manager_that_does_not_read_holds_nothing_up(manager: tuple[socket.socket, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager[1]})
    for _ in range(10_000):
        notifier.alive()
    notifier.close()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(usec: str, pid: str, seconds: float | None) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid})
    assert notifier.watchdog_seconds == seconds
    notifier.close()
