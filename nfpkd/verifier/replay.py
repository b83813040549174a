"""The memory that makes every knock good for one time only."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

# For one key.  Only holders of that key can fill it, and only with knocks
# that are still valid: at the default skew, 3,000 knocks a second.
DEFAULT_CAPACITY = 65_536


# Below every stamp, and above every stamp.
NOTHING_CUT_OFF = -1
EVERYTHING_CUT_OFF = 2**64 - 1

KeyId = bytes


class Freshness(enum.Enum):
    """CUT_OFF and FULL are refusals, too: what cannot be told from a replay is taken for one."""

    FRESH = enum.auto()
    SEEN = enum.auto()
    CUT_OFF = enum.auto()
    FULL = enum.auto()


class ReplayMemory:
    """The digests that were seen with one key, by the second their knocks were stamped with.

    A second is forgotten once it is too old to be accepted; from then on
    everything stamped up to it counts as seen.  That cut-off never goes back, so
    neither a clock set back nor a longer skew revives a knock.
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        *,
        cutoff: int = NOTHING_CUT_OFF,
        seconds: Mapping[int, set[bytes]] | None = None,
    ) -> None:
        """Remember up to *capacity* digests, beginning with *seconds*; everything stamped up to *cutoff* is refused."""
        self._capacity = capacity
        self._seconds = dict(sorted((seconds or {}).items()))
        self._size = sum(map(len, self._seconds.values()))
        self.cutoff = cutoff

    def __len__(self) -> int:
        return self._size

    def admit(self, digest: bytes, time: int, oldest_valid: float) -> Freshness:
        """Remember *digest*, stamped *time* (Unix seconds), and say whether it was new.

        Call this only after the digest has been verified, so that only key
        holders can fill the memory.  Stamps under *oldest_valid* can no longer
        be accepted by anyone and may be forgotten.
        """
        # The second inserted first is nearly always the oldest; where clients'
        # clocks made it a later one, a full memory is the second occasion.
        if self._seconds and (next(iter(self._seconds)) < oldest_valid or self._size >= self._capacity):
            self._forget(oldest_valid)
        if digest in self._seconds.get(time, ()):
            return Freshness.SEEN
        if time <= self.cutoff:
            return Freshness.CUT_OFF
        if self._size >= self._capacity:
            return Freshness.FULL
        self._seconds.setdefault(time, set()).add(digest)
        self._size += 1
        return Freshness.FRESH

    def _forget(self, oldest_valid: float) -> None:
        for second in [s for s in self._seconds if s < oldest_valid]:
            self._size -= len(self._seconds.pop(second))
            self.cutoff = max(self.cutoff, second)


class Changes(NamedTuple):
    """What was learned since the last time, to be kept: digests with their seconds, and where cut-offs are now.

    *at_once* says that it must be on the disk itself before anything is opened.
    """

    seen: tuple[tuple[KeyId, int, bytes], ...]
    cutoffs: Mapping[KeyId, int]
    at_once: bool = False


class ReplayBook:
    """The replay memories of all keys, and what of them is not yet on disk.

    Memories belong to keys and are never dropped: a key that is taken away and
    comes back must not bring its old knocks along.
    """

    def __init__(self, memories: Mapping[KeyId, ReplayMemory] | None = None) -> None:
        self._memories = dict(memories or {})
        self._seen: list[tuple[KeyId, int, bytes]] = []
        self._cutoffs: dict[KeyId, int] = {}
        self._at_once = False

    def begin_after(self, key: KeyId, cutoff: int) -> None:
        """Refuse what was stamped up to *cutoff* with *key*, if the key has no memory."""
        if key not in self._memories:
            self._memories[key] = ReplayMemory(cutoff=cutoff)
            self._cutoffs[key] = cutoff

    def admit(self, key: KeyId, digest: bytes, time: int, oldest_valid: float, *, at_once: bool = False) -> Freshness:
        """As `ReplayMemory.admit`, for one of the keys.

        *at_once* is for knocks that would still be good after a reboot.  The others may be on their
        way to the disk while they open something: the end of a process loses nothing that is
        written, and after the end of a machine stamps from before its next boot are refused.
        """
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = ReplayMemory()
        cutoff = memory.cutoff
        freshness = memory.admit(digest, time, oldest_valid)
        if freshness is Freshness.FRESH:
            self._seen.append((key, time, digest))
            self._at_once = self._at_once or at_once
        if memory.cutoff != cutoff:
            self._cutoffs[key] = memory.cutoff
        return freshness

    def __bool__(self) -> bool:
        """Whether there is something that is not yet on disk."""
        return bool(self._seen or self._cutoffs)

    def changes(self) -> Changes:
        """Return what is not yet on disk."""
        return Changes(tuple(self._seen), dict(self._cutoffs), self._at_once)

    def saved(self) -> None:
        """Note that everything is kept."""
        self._seen.clear()
        self._cutoffs.clear()
        self._at_once = False


def identify_key(key: bytes) -> KeyId:
    """Return a name for *key* that can be written down."""
    return hashlib.sha256(b"nfpkd replay memory\0" + key).digest()[:16]
