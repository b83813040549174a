"""Sending a knock."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, NamedTuple

from nfpkd.errors import KnockError
from nfpkd.knock.wire import RANDOM_LENGTH, encode_knock
from nfpkd.rules.model import Secret


class Address(NamedTuple):
    """Where a host is; *parts* is a socket address as getaddrinfo gives it: text, a port, and what IPv6 adds."""

    family: socket.AddressFamily
    parts: tuple[Any, ...]

    def at(self, port: int) -> tuple[Any, ...]:
        """Return the socket address of *port* there."""
        return (self.parts[0], port, *self.parts[2:])

    def __str__(self) -> str:
        return str(self.parts[0])


class SentKnock(NamedTuple):
    """Where a knock went: *address* is numeric, *port* the UDP destination port."""

    address: str
    port: int


def make_knock(key: Secret, tag: bytes, port: int, *, old: bool = False) -> bytes:
    """Return a fresh knock to *port*, stamped now."""
    return encode_knock(key.reveal(), tag, port, int(time.time()), os.urandom(RANDOM_LENGTH), old=old)


def find_addresses(host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Address]:
    """Look *host* up as ssh would, and return its addresses in the order in which they are to be tried.

    Raises KnockError if the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise KnockError(f"cannot find the host {host!r}: {reason}") from None
    return [Address(address_family, parts) for address_family, _, _, _, parts in found]


def send_knock(address: Address, key: Secret, tag: bytes, *, port: int | None = None, old: bool = False) -> SentKnock:
    """Send one knock to *address*, to a random port unless *port* is given.

    Raises KnockError if the network refuses.
    """
    if port is None:
        import secrets

        port = 1 + secrets.randbelow(65535)
    payload = make_knock(key, tag, port, old=old)
    try:
        with socket.socket(address.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as sock:
            sock.sendto(payload, address.at(port))
    except OSError as error:
        raise KnockError(f"cannot send to {address} port {port}: {error.strerror}") from None
    return SentKnock(str(address), port)
