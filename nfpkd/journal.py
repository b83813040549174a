"""The way to systemd's journal with fields, by its native protocol.

Sources: systemd's "Native Journal Protocol" (JOURNAL_NATIVE_PROTOCOL), and
``JOURNAL_STREAM`` in systemd.exec(5).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")

_LENGTH = struct.Struct("<Q")


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """Return the datagram for one entry; names are A-Z, 0-9 and _, and begin with a letter.

    ::

        NAME=value\\n                                   a value on one line
        NAME\\n  length (u64, little-endian)  value\\n   a value with line feeds in it
    """
    return b"".join(_encode_field(name.encode("ascii"), value) for name, value in fields.items())


def _encode_field(name: bytes, text: str) -> bytes:
    value = text.encode("utf-8", "backslashreplace")
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name, _LENGTH.pack(len(value)), value)
    return b"%b=%b\n" % (name, value)


def leads_to_journal(descriptor: int) -> bool:
    """Tell whether what is written to *descriptor* ends up in the journal: systemd connected it, and nobody since."""
    try:
        info = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


class Journal:
    """Where entries are sent to; never waits."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one entry; return False if the journal does not take it: it is full, gone, or the entry too large."""
        try:
            # By path each time: a journal that was restarted has another socket there.
            self._socket.sendto(encode_entry(fields), self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
