#!/usr/bin/env python3
"""Knock at a server that nfpkd guards, from where nothing can be installed.

One file, and nothing but the standard library of Python 3.6 or newer:

    knock.py --tag SSH1 --key-file ~/.ssh/server.knock server && ssh server
    knock.py --tag SSH1 --key-file ~/.ssh/server.knock --wait 22 server
    ssh -o "ProxyCommand knock.py --tag SSH1 --key-file ~/.ssh/server.knock --proxy %p %h" server
"""

import argparse
import contextlib
import getpass
import hashlib
import os
import pathlib
import secrets
import select
import socket
import stat
import struct
import sys
import time
from typing import Any, List, NoReturn, Optional, Tuple

# ---- Word for word from nfpkd's own modules, so that it is one codec: change it there.  A test compares.

KEY_LENGTH = 40
TAG_LENGTH = 4
RANDOM_LENGTH = 12
HEADER_LENGTH = 24

_HEADER = struct.Struct(f"<{TAG_LENGTH}sQ{RANDOM_LENGTH}s")
_PORTS = struct.Struct(">HH")

PATIENCE_SECONDS = (2.0, 4.0, 6.0, 6.0)
CHUNK = 65536


def parse_text_or_hex(text: str) -> bytes:
    """Return the bytes that *text* names: UTF-8 text, or hex behind ``0x``.

    An odd number of hex digits is read as the C client of ipt_pkd reads it:
    the last digit is the high half of the last byte, so ``0xabc`` is ab c0.

    Raises ValueError, without the text in it, for digits that are not hex and
    for text that UTF-8 cannot encode (a lone surrogate).
    """
    if text[:2] not in ("0x", "0X"):
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError("has a lone surrogate, which is not text") from None
    digits = text[2:]
    if not digits or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError('starts with "0x" and must go on with hex digits only')
    return bytes.fromhex(digits + "0" * (len(digits) % 2))


def _parse_padded(text: str, length: int) -> bytes:
    raw = parse_text_or_hex(text)
    if not raw:
        raise ValueError(f"is empty; it takes 1 to {length} bytes")
    if len(raw) > length:
        raise ValueError(f"is {len(raw)} bytes long; at most {length} fit")
    return raw.ljust(length, b"\0")


def make_digest(header: bytes, port: int, key: bytes, *, old: bool = False) -> bytes:
    """Return the 32 bytes that prove knowledge of *key* (40 bytes, zero-filled) for a knock sent to *port*."""
    if len(header) != HEADER_LENGTH or len(key) != KEY_LENGTH:
        raise ValueError("a header is 24 bytes and a key is 40")
    ports = b"" if old else _PORTS.pack(port, port)
    return hashlib.sha256(ports + header + key).digest()


def encode_knock(key: bytes, tag: bytes, port: int, time: int, random: bytes, *, old: bool = False) -> bytes:
    """Return the 56 bytes of a knock to *port*, stamped *time* (Unix seconds)."""
    if len(tag) != TAG_LENGTH or len(random) != RANDOM_LENGTH:
        raise ValueError("a tag is 4 bytes and the random part is 12")
    header = _HEADER.pack(tag, time, random)
    return header + make_digest(header, port, key, old=old)


class _Flow:
    """One direction: reads no more until what it has read is written, so it never holds more than one chunk."""

    def __init__(self, source: int, sink: int, at_once: int) -> None:
        self.source = source
        self.sink = sink
        self.at_once = at_once
        self.pending = memoryview(b"")
        self.ended = False

    def place(self) -> int:
        return self.sink if self.pending else self.source

    def event(self) -> int:
        return select.POLLOUT if self.pending else select.POLLIN

    def move(self) -> None:
        try:
            if self.pending:
                written = os.write(self.sink, self.pending[: self.at_once])
                self.pending = self.pending[written:]
            else:
                self.pending = memoryview(os.read(self.source, CHUNK))
                self.ended = not self.pending
        except BlockingIOError:
            pass
        except OSError:
            # A reset connection, or a reader that is gone: nothing more can go this way.
            self.ended = True


def relay(sock: socket.socket, source: int, sink: int) -> None:
    """Copy *source* to *sock* and *sock* to *sink* until both have ended.

    The end of one is passed on while the other goes on: who has said all may
    still be listening.  *sink* leads nowhere afterwards.
    """
    sock.setblocking(False)
    outward = _Flow(source, sock.fileno(), CHUNK)
    # No more than a pipe takes without blocking once it is ready (POSIX): the
    # descriptors are shared with others, who may not want them non-blocking.
    inward = _Flow(sock.fileno(), sink, select.PIPE_BUF)
    flows = [outward, inward]
    while flows:
        poller = select.poll()
        wanted: dict[int, int] = {}
        for flow in flows:
            wanted[flow.place()] = wanted.get(flow.place(), 0) | flow.event()
        for place, events in wanted.items():
            poller.register(place, events)
        ready = dict(poller.poll())
        for flow in flows:
            # What is wrong with a descriptor shows in reading or writing it.
            if ready.get(flow.place(), 0) & (flow.event() | select.POLLERR | select.POLLHUP | select.POLLNVAL):
                flow.move()
        if outward in flows and outward.ended:
            flows.remove(outward)
            # If the other side was faster, there is nothing left to shut.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        if inward in flows and inward.ended:
            flows.remove(inward)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sink)
            os.close(nowhere)


# ---- From here on, this file's own.

# As getaddrinfo returns it.
Entry = Tuple[Any, ...]


def main() -> None:
    options = parse_arguments()
    try:
        tag = _parse_padded(options.tag, TAG_LENGTH)
    except ValueError as error:
        fail(2, f"the tag {error}")
    try:
        key = _parse_padded(read_key(options), KEY_LENGTH)
    except ValueError as error:
        fail(2, f"the key {error}")
    try:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}.get(options.family, socket.AF_UNSPEC)
        found = socket.getaddrinfo(options.host, None, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        if options.wait is None and options.proxy is None:
            port = knock(found[0], key, tag, options.port)
            print(f"knock sent to {found[0][4][0]} port {port}/udp")
            return
        with connect(found, key, tag, options) as connection:
            if options.proxy is not None:
                relay(connection, 0, 1)
            else:
                print(f"connected to {connection.getpeername()[0]} port {options.wait}/tcp")
    except OSError as error:
        fail(3, f"{options.host}: {error.strerror or error}")
    except UnicodeError:
        fail(3, f"{options.host}: not a host name")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Send a knock to HOST. Without --key-file the key is asked for.")
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("--tag", default="PKD0", metavar="T", help="up to 4 bytes of text, or hex behind 0x (PKD0)")
    parser.add_argument("--key-file", metavar="F", help="whose first line is the key; - is standard input")
    parser.add_argument("--port", type=port_number, metavar="P", help="the UDP port to knock at, if not a random one")
    parser.add_argument("-4", dest="family", action="store_const", const=4, help="by IPv4 only")
    parser.add_argument("-6", dest="family", action="store_const", const=6, help="by IPv6 only")
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--wait", type=port_number, metavar="PORT", help="then connect to this TCP port, to see it open")
    then.add_argument("--proxy", type=port_number, metavar="PORT", help="then be ssh's way there (ProxyCommand)")
    return parser.parse_args()


def port_number(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(text)
    return port


def read_key(options: argparse.Namespace) -> str:
    """Return the key; with --proxy never from standard input, which goes to the server."""
    if options.key_file == "-" and options.proxy is None:
        return sys.stdin.readline().rstrip("\r\n")
    if options.key_file == "-" or (options.key_file is None and options.proxy is not None):
        fail(2, "with --proxy, give a --key-file")
    if options.key_file is None:
        return getpass.getpass("Key: ")
    try:
        with pathlib.Path(options.key_file).open(encoding="utf-8-sig") as file:
            info = os.fstat(file.fileno())
            if os.name == "posix" and stat.S_ISREG(info.st_mode) and info.st_mode & 0o077:
                fail(2, f'{options.key_file}: others can read this file: run "chmod 600 {options.key_file}"')
            return file.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        fail(2, f"{options.key_file}: cannot be read as text")
    except OSError as error:
        fail(2, f"{options.key_file}: {error.strerror}")


def knock(found: Entry, key: bytes, tag: bytes, port: Optional[int]) -> int:
    """Send a fresh knock to what getaddrinfo found, and return the port it went to."""
    port = port or 1 + secrets.randbelow(65535)
    payload = encode_knock(key, tag, port, int(time.time()), secrets.token_bytes(RANDOM_LENGTH))
    with socket.socket(found[0], socket.SOCK_DGRAM) as sock:
        sock.sendto(payload, (found[4][0], port, *found[4][2:]))
    return port


def connect(found: List[Entry], key: bytes, tag: bytes, options: argparse.Namespace) -> socket.socket:
    """Knock and connect as nfpkd does, whose knock/connect.py has the reasons."""
    port = options.wait or options.proxy
    waits = list(PATIENCE_SECONDS)
    while waits:
        entry = found.pop(0)
        try:
            knock(entry, key, tag, options.port)
        except OSError:
            # Nothing can be sent there; another address may do.
            if not found:
                raise
            continue
        found.append(entry)
        seconds = waits.pop(0)
        until = time.monotonic() + seconds
        sock = socket.socket(entry[0], socket.SOCK_STREAM)
        try:
            sock.settimeout(seconds)
            sock.connect((entry[4][0], port, *entry[4][2:]))
            sock.settimeout(None)
            return sock
        except OSError as error:
            sock.close()
            reason = "no answer" if isinstance(error, socket.timeout) else error.strerror
        if waits:
            print(f"knock.py: {entry[4][0]} port {port}/tcp: {reason}; knocking again", file=sys.stderr)
            time.sleep(max(0.0, until - time.monotonic()))
    raise OSError(f"cannot connect to {entry[4][0]} port {port}/tcp after {len(PATIENCE_SECONDS)} knocks: {reason}")


def fail(code: int, message: str) -> NoReturn:
    print(f"knock.py: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
