"""One exception type for each kind of fault, named after whose fault it is.

Their text is for people: what was wrong, where, and what to do about it.
Code never matches on it.  No text ever contains a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


def reason_of(error: OSError) -> str:
    """Return what the system says of *error*, to stand within a sentence."""
    return (error.strerror or str(error)).lower()


class NfpkdError(Exception):
    """Base of every error that nfpkd raises on purpose."""


class Problem(NamedTuple):
    """One finding about a file; *line* and *column* count from 1, 0 means the file as a whole."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{where}: {self.message}"


class ProblemsError(NfpkdError):
    """Base of the errors about files that people write; *problems* lists everything found, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RulesError(ProblemsError):
    """The administrator's rule files are wrong."""


class ProfileError(ProblemsError):
    """The user's client profiles are wrong, or not kept as files with keys should be."""


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
    """The knock could not be made or sent, or no connection came of it."""


class TriggerError(NfpkdError):
    """A rule's command may not, or cannot, be run."""


class WireError(NfpkdError):
    """A datagram's payload is not a knock."""


class PacketError(NfpkdError):
    """Bytes from the network are not a whole UDP datagram."""


class NetlinkError(NfpkdError):
    """What the kernel tells is incomplete: some of it was lost, changed meanwhile, or cannot be read."""
