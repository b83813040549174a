"""Knocking and connecting in one go, again if a packet was lost on the way."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

from nfpkd.errors import KnockError, reason_of
from nfpkd.knock.client import Address

# How long a connection is waited for behind each knock, long enough for the
# kernel to repeat a lost SYN (after 1 and 3 seconds).  The second knock comes
# soon: if the first was lost, the server has counted nothing, and one too many
# takes nothing from the next.  If the first came too soon behind somebody
# else's, the third does not: a rule accepts one in 5 seconds unless it says
# otherwise.  The fourth stands in for a third that is lost or crowded out.
PATIENCE_SECONDS = (2.0, 4.0, 6.0, 6.0)

_ADVICE = (
    "look at the key, the tag and both clocks, whether anything listens there, and what `nfpkd run -v` on the server"
    " says to a knock: nothing, if none arrives"
)


def connect_behind_knock(
    addresses: Sequence[Address],
    port: int,
    knock: Callable[[Address], object],
    *,
    say: Callable[[str], object] = lambda _: None,
    patience: Sequence[float] = PATIENCE_SECONDS,
) -> socket.socket:
    """Knock and connect to *port* (TCP), with a fresh knock for each of the waits in *patience*; return the connection.

    The connection follows the knock at once: nfpkd holds it until the knock is
    judged.  *addresses* take turns, because one whose packets vanish looks like
    a lost knock; one that nothing can be sent to is passed over.  *knock* sends
    to an address or raises KnockError, and *say* hears of each failure but the last.

    Raises KnockError if no wait was long enough.
    """
    places = list(addresses)
    waits = list(patience)
    began = time.monotonic()
    while waits:
        address = places.pop(0)
        try:
            knock(address)
        except KnockError:
            if not places:
                raise
            continue
        places.append(address)
        seconds = waits.pop(0)
        until = time.monotonic() + seconds
        try:
            return _connect(address, port, seconds)
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else reason_of(error)
        if waits:
            say(f"{address} port {port}/tcp: {reason}; knocking again")
            time.sleep(max(0.0, until - time.monotonic()))
    tried = f"{len(patience)} knocks in {time.monotonic() - began:.0f} s"
    raise KnockError(f"cannot connect to {address} port {port}/tcp: {reason}, after {tried}\n{_ADVICE}")


def _connect(address: Address, port: int, seconds: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(address.at(port))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock
