"""The knock's bytes: how a client makes them and how a verifier takes them apart.

::

     0        4               12                  24                            56
     +--------+---------------+-------------------+-----------------------------+
     |  tag   |     time      |      random       |           digest            |
     +--------+---------------+-------------------+-----------------------------+
      4 bytes  seconds since    12 bytes            SHA-256 of the destination
      zero-    1970, unsigned                       port (twice, 2 bytes each,
      padded   little-endian                        big-endian), the 24 bytes
                                                    in front, and the key

The format is that of ipt_pkd 1.x and nf-pkd.  The form before 1.0 leaves the
two ports out of the digest.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from nfpkd.errors import WireError
from nfpkd.rules.model import KEY_LENGTH, TAG_LENGTH

PAYLOAD_LENGTH = 56
# The length field of the UDP header counts the header, too (RFC 768).
UDP_LENGTH = PAYLOAD_LENGTH + 8
RANDOM_LENGTH = 12
HEADER_LENGTH = 24
DIGEST_LENGTH = 32

_HEADER = struct.Struct(f"<{TAG_LENGTH}sQ{RANDOM_LENGTH}s")
_PORTS = struct.Struct(">HH")


class Knock(NamedTuple):
    """A knock taken apart; *header* is the 24 bytes that the digest covers."""

    tag: bytes
    time: int
    header: bytes
    digest: bytes


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


def decode_knock_untrusted(payload: bytes) -> Knock:
    """Take a datagram's payload apart; raises WireError unless it is exactly 56 bytes long.

    Nothing is verified: the digest may be anything.
    """
    if len(payload) != PAYLOAD_LENGTH:
        raise WireError(f"a knock is {PAYLOAD_LENGTH} bytes long, not {len(payload)}")
    tag, time, _ = _HEADER.unpack_from(payload)
    return Knock(tag, time, payload[:HEADER_LENGTH], payload[HEADER_LENGTH:])
