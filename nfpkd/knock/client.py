"""Sending a knock."""

from __future__ import annotations

import secrets
import socket
import time
from typing import NamedTuple

from nfpkd.errors import KnockError
from nfpkd.knock.wire import RANDOM_LENGTH, encode_knock
from nfpkd.rules.model import Secret


class SentKnock(NamedTuple):
    """Where a knock went: *address* is numeric, *port* the UDP destination port."""

    address: str
    port: int


def make_knock(key: Secret, tag: bytes, port: int) -> bytes:
    """Return a fresh knock to *port*, stamped now."""
    return encode_knock(key.reveal(), tag, port, int(time.time()), secrets.token_bytes(RANDOM_LENGTH))


def send_knock(
    host: str,
    key: Secret,
    tag: bytes,
    *,
    port: int | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> SentKnock:
    """Send one knock to *host*, to a random port unless *port* is given.

    A name is looked up as ssh would look it up, and its first address is
    knocked at: the one that a connection would try first.

    Raises KnockError if the name is unknown or the network refuses.
    """
    if port is None:
        port = 1 + secrets.randbelow(65535)
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise KnockError(f"cannot find the host {host!r}: {reason}") from None
    address_family, kind, protocol, _, address = found[0]
    payload = make_knock(key, tag, port)
    try:
        with socket.socket(address_family, kind, protocol) as sock:
            sock.sendto(payload, address)
    except OSError as error:
        raise KnockError(f"cannot send to {address[0]} port {port}: {error.strerror}") from None
    return SentKnock(str(address[0]), port)
