"""The memory that makes every knock good for one time only."""

from __future__ import annotations

import enum

# For one key.  Only holders of that key can fill it, and only with knocks
# that are still valid: at the default skew, 3,000 knocks a second.
DEFAULT_CAPACITY = 65_536


class Freshness(enum.Enum):
    """FULL is a refusal, too: forgetting a live digest would let its knock be replayed."""

    FRESH = enum.auto()
    SEEN = enum.auto()
    FULL = enum.auto()


class ReplayMemory:
    """The digests that were seen with one key, by the second their knocks were stamped with.

    A second is forgotten once it is too old to be accepted; from then on
    everything stamped up to it counts as seen.  That cut-off never goes back, so
    neither a clock set back nor a longer skew revives a knock.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._seconds: dict[int, set[bytes]] = {}
        self._size = 0
        self._cutoff = -1

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
        if time <= self._cutoff or digest in self._seconds.get(time, ()):
            return Freshness.SEEN
        if self._size >= self._capacity:
            return Freshness.FULL
        self._seconds.setdefault(time, set()).add(digest)
        self._size += 1
        return Freshness.FRESH

    def _forget(self, oldest_valid: float) -> None:
        for second in [s for s in self._seconds if s < oldest_valid]:
            self._size -= len(self._seconds.pop(second))
            self._cutoff = max(self._cutoff, second)
