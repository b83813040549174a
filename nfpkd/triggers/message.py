"""What the daemon tells its helper: which rule, for whom, and nothing that a packet chose.

::

     0       1        2               18           18 + n
     +-------+--------+---------------+-------------+
     | event | family |    address    |  rule name  |
     +-------+--------+---------------+-------------+
      1 byte  4, 6, 0  16 bytes,       1 to 64 bytes
                       zero-padded
"""

from __future__ import annotations

import enum
import ipaddress
import re
import struct
from typing import NamedTuple

from nfpkd.errors import TriggerError

_HEAD = struct.Struct("=BB16s")
MAX_LENGTH = _HEAD.size + 64
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class Event(enum.IntEnum):
    """OPEN and CLOSE run a rule's command and close-command; RELOAD reads the rule files again before the next."""

    OPEN = 1
    CLOSE = 2
    RELOAD = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class Message(NamedTuple):
    """*source* is a numeric address; empty, as *rule* is, for RELOAD."""

    event: Event
    rule: str = ""
    source: str = ""


def encode_message(message: Message) -> bytes:
    """Return the bytes of *message*."""
    if message.event is Event.RELOAD:
        return _HEAD.pack(message.event, 0, b"")
    address = ipaddress.ip_address(message.source)
    return _HEAD.pack(message.event, address.version, address.packed) + message.rule.encode()


def decode_message_untrusted(data: bytes) -> Message:
    """Return the message in *data*; raises TriggerError for anything that `encode_message` would not make.

    The daemon reads packets from anybody, and its helper may run as root: the
    helper believes it no more than it must.
    """
    if len(data) < _HEAD.size:
        raise TriggerError("a message that is too short")
    number, family, packed = _HEAD.unpack_from(data)
    name = data[_HEAD.size :]
    message = Message(Event.RELOAD)
    if number != Event.RELOAD:
        if number not in (Event.OPEN, Event.CLOSE) or family not in (4, 6) or not _NAME.fullmatch(name):
            raise TriggerError("a message that makes no sense")
        address = ipaddress.ip_address(packed[:4] if family == 4 else packed)
        message = Message(Event(number), name.decode(), str(address))
    # Nothing may stand where nothing belongs.
    if encode_message(message) != data:
        raise TriggerError("a message that makes no sense")
    return message
