"""A helper behind a socket: the test accepts connections, as the service manager would."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.triggers.client import TriggerSocket
from nfpkd.triggers.message import MAX_LENGTH, Event, Message, decode_message_untrusted

SOURCE = "192.0.2.1"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen(1)
        sock.settimeout(5)
        yield sock


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TriggerSocket]:
    client = TriggerSocket(tmp_path / "socket")
    yield client
    client.close()


def accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(5)
    return connection


def receive(connection: socket.socket) -> Message:
    return decode_message_untrusted(connection.recv(MAX_LENGTH))


def test_the_first_command_makes_the_connection_and_the_next_use_it(
    listener: socket.socket, client: TriggerSocket
) -> None:
    # A helper that is not there has read nothing yet.
    client.reload()
    assert select.select([listener], [], [], 0) == ([], [], [])
    client.run(Event.OPEN, "ssh", SOURCE)
    client.reload()
    client.run(Event.CLOSE, "ssh", SOURCE)
    with accept(listener) as connection:
        assert [receive(connection) for _ in range(3)] == [
            Message(Event.OPEN, "ssh", SOURCE),
            Message(Event.RELOAD),
            Message(Event.CLOSE, "ssh", SOURCE),
        ]
        client.close()
        assert connection.recv(MAX_LENGTH) == b""


def test_a_helper_that_has_ended_is_asked_for_anew(listener: socket.socket, client: TriggerSocket) -> None:
    client.run(Event.OPEN, "ssh", SOURCE)
    accept(listener).close()
    client.run(Event.OPEN, "vpn", SOURCE)
    with accept(listener) as connection:
        assert receive(connection) == Message(Event.OPEN, "vpn", SOURCE)


def test_nobody_behind_the_socket_is_said_and_stops_nothing(
    tmp_path: Path, client: TriggerSocket, caplog: pytest.LogCaptureFixture
) -> None:
    client.run(Event.OPEN, "ssh", SOURCE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "socket"))
        client.run(Event.OPEN, "ssh", SOURCE)
    assert [record.message for record in caplog.records] == [
        "the helper for commands cannot be reached: No such file or directory",
        "the helper for commands cannot be reached: Connection refused",
    ]


def test_a_helper_that_takes_no_more_is_not_waited_for(
    listener: socket.socket, client: TriggerSocket, caplog: pytest.LogCaptureFixture
) -> None:
    client.run(Event.OPEN, "ssh", SOURCE)
    with accept(listener) as connection:
        for _ in range(10_000):
            client.run(Event.OPEN, "ssh", SOURCE)
            if caplog.records:
                break
        assert (
            caplog.records[0].message == "the helper for commands cannot be reached: Resource temporarily unavailable"
        )
        # It is slow, not gone: no second one is started beside it.
        assert select.select([listener], [], [], 0) == ([], [], [])
        assert receive(connection).rule == "ssh"
