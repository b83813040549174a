"""One exception type for each kind of fault, named after whose fault it is.

Their text is for people: what was wrong, where, and what to do about it.
Code never matches on it.  No text ever contains a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class NfpkdError(Exception):
    """Base of every error that nfpkd raises on purpose."""


class Problem(NamedTuple):
    """One finding about a rule file; *line* and *column* count from 1, 0 means the file as a whole."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{where}: {self.message}"


class RulesError(NfpkdError):
    """The administrator's rule files are wrong; *problems* lists everything found, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class KernelError(NfpkdError):
    """The kernel, or a missing privilege, refused what was asked; *remedy* says what would help."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}: {remedy}" if remedy else reason)


class StateError(NfpkdError):
    """What nfpkd keeps on disk cannot be used; *remedy* says what would help."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}: {remedy}")


class KnockError(NfpkdError):
    """The knock could not be made or sent."""


class TriggerError(NfpkdError):
    """A rule's command may not, or cannot, be run."""


class WireError(NfpkdError):
    """A datagram's payload is not a knock."""


class PacketError(NfpkdError):
    """Bytes from the network are not a whole UDP datagram."""


class NetlinkError(NfpkdError):
    """What the kernel tells is incomplete: some of it was lost, changed meanwhile, or cannot be read."""
