"""The relay between a connection and two descriptors: nothing lost, and each end passed on alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nfpkd.knock.relay import relay

# More than all buffers on the way hold together.
MUCH = secrets.token_bytes(1 << 20) * 16


class Proxy:
    """A relay that runs: *server* is the far end of its connection; *write* and *read* are what ssh would hold."""

    def __init__(self) -> None:
        near, self.server = self._connect()
        source, self.write = os.pipe()
        self.read, sink = os.pipe()
        self._ours = {self.write, self.read}
        self._theirs = {source, sink}
        self.server.settimeout(30)
        self._thread = threading.Thread(target=self._run, args=(near, source, sink), daemon=True)
        self._thread.start()

    @staticmethod
    def _connect() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            return near, listener.accept()[0]

    @staticmethod
    def _run(near: socket.socket, source: int, sink: int) -> None:
        with near:
            relay(near, source, sink)

    def close(self, descriptor: int) -> None:
        self._ours.remove(descriptor)
        os.close(descriptor)

    def has_ended(self, patience: float = 10) -> bool:
        self._thread.join(patience)
        return not self._thread.is_alive()

    def tear_down(self) -> None:
        self.server.close()
        for descriptor in list(self._ours):
            self.close(descriptor)
        assert self.has_ended()
        for descriptor in self._theirs:
            os.close(descriptor)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.tear_down()


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_all(descriptor: int, pause: float = 0.0) -> bytes:
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
        time.sleep(pause)
    return b"".join(parts)


def receive_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_few_bytes_pass_at_once_both_ways(proxy: Proxy) -> None:
    os.write(proxy.write, b"hello")
    assert proxy.server.recv(100) == b"hello"
    proxy.server.sendall(b"hello yourself")
    assert os.read(proxy.read, 100) == b"hello yourself"


def test_who_has_said_all_still_gets_the_answer(proxy: Proxy) -> None:
    def ask() -> None:
        write_all(proxy.write, MUCH)
        proxy.close(proxy.write)

    with meanwhile(ask):
        asked = receive_all(proxy.server)
    assert digest(asked) == digest(MUCH)
    assert not proxy.has_ended(0.1)

    def answer() -> None:
        proxy.server.sendall(MUCH)
        proxy.server.close()

    with meanwhile(answer):
        answered = read_all(proxy.read)
    assert digest(answered) == digest(MUCH)
    assert proxy.has_ended()


def test_a_server_that_has_said_all_still_listens(proxy: Proxy) -> None:
    proxy.server.sendall(b"go ahead")
    proxy.server.shutdown(socket.SHUT_WR)
    assert read_all(proxy.read) == b"go ahead"
    assert not proxy.has_ended(0.1)

    def tell() -> None:
        write_all(proxy.write, MUCH)
        proxy.close(proxy.write)

    with meanwhile(tell):
        assert digest(receive_all(proxy.server)) == digest(MUCH)
    assert proxy.has_ended()


def test_a_slow_reader_of_an_echo_gets_it_all(proxy: Proxy) -> None:
    """Both directions are full at once, and neither waits for the other."""

    def echo() -> None:
        while data := proxy.server.recv(65536):
            proxy.server.sendall(data)
        proxy.server.close()

    def tell() -> None:
        write_all(proxy.write, MUCH)
        proxy.close(proxy.write)

    with meanwhile(echo), meanwhile(tell):
        assert digest(read_all(proxy.read, pause=0.0002)) == digest(MUCH)


def test_a_reset_ends_what_goes_out_too(proxy: Proxy) -> None:
    # Closing with a linger time of 0 sends a reset.
    proxy.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    proxy.server.close()
    assert read_all(proxy.read) == b""
    os.write(proxy.write, b"anybody there?")
    assert proxy.has_ended()


def test_a_reader_that_is_gone_is_no_error(proxy: Proxy) -> None:
    proxy.close(proxy.read)
    proxy.server.sendall(b"anybody there?")
    os.write(proxy.write, b"hello")
    assert proxy.server.recv(100) == b"hello"
    proxy.close(proxy.write)
    assert proxy.server.recv(100) == b""
    assert proxy.has_ended()


def test_an_idle_relay_takes_no_time_of_the_processor(proxy: Proxy) -> None:
    os.write(proxy.write, b"hello")
    assert proxy.server.recv(100) == b"hello"
    proxy.server.shutdown(socket.SHUT_WR)
    assert read_all(proxy.read) == b""
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
