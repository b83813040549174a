"""What is known of live grants, for when the kernel has lost them with its table.

The kernel's elements are the truth; this is only ever read when they are gone,
and to see whether a new grant would cut an older one short.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from nfpkd.firewall.doors import Mode
from nfpkd.firewall.state import Grant

# Only key holders and admins make grants.  One that finds no room is in the kernel
# all the same; it would not come back if another tool removed the table.
MAX_NOTED = 100_000
# Below so many, what has ended is not worth looking for.
_FEW = 1024


class GrantLedger:
    """Grants and their ends; *now* is always monotonic seconds."""

    def __init__(self, capacity: int = MAX_NOTED) -> None:
        self._capacity = capacity
        self._noted: dict[object, tuple[Grant, float]] = {}
        self._prune_at = _FEW
        self._pruned_at = -math.inf

    def __len__(self) -> int:
        return len(self._noted)

    @property
    def has_sliding(self) -> bool:
        """Whether there are grants that traffic renews, unseen."""
        return any(_mode(grant) is Mode.EXTEND for grant, _ in self._noted.values())

    def adopt(self, grants: Iterable[Grant], now: float) -> None:
        """Note *grants*, which are in the kernel, and no others."""
        self._noted.clear()
        self.note(grants, now)

    def note(self, grants: Iterable[Grant], now: float) -> None:
        """Note *grants*, which were made at *now*; what is noted for longer stays."""
        for grant in grants:
            if self.outlasts(grant, now):
                continue
            if grant.place in self._noted or self._has_room(now):
                self._noted[grant.place] = grant, _end(grant, now)

    def forget(self, set_names: Collection[str]) -> None:
        """Forget the grants in these sets: somebody took some of them away."""
        self._noted = {place: noted for place, noted in self._noted.items() if noted[0].set_name not in set_names}

    def outlasts(self, grant: Grant, now: float) -> bool:
        """Tell whether what is noted in the place of *grant* ends later than *grant*, made at *now*, would."""
        noted = self._noted.get(grant.place)
        return noted is not None and noted[1] > _end(grant, now)

    def live(self, now: float) -> list[Grant]:
        """Return the grants that are live, each with the whole seconds that it has left.

        Those for one connection are not among them.  The kernel deletes such a
        grant with its connection and tells nobody, so it may have been used.
        """
        return [
            grant if end == math.inf else grant._replace(expires=int(end - now))
            for grant, end in self._noted.values()
            if end - now >= 1 and _mode(grant) is not Mode.ONCE
        ]

    def _has_room(self, now: float) -> bool:
        """Drop what has ended each time that the number has doubled, and at the limit once a second."""
        full = len(self._noted) >= self._capacity
        if len(self._noted) >= self._prune_at or (full and now - self._pruned_at >= 1):
            self._noted = {place: noted for place, noted in self._noted.items() if noted[1] > now}
            self._prune_at = max(_FEW, 2 * len(self._noted))
            self._pruned_at = now
        return len(self._noted) < self._capacity


def _end(grant: Grant, now: float) -> float:
    # What has no timeout has no end.
    return now + grant.expires if grant.timeout else math.inf


def _mode(grant: Grant) -> Mode:
    return grant.door.mode if grant.door else Mode.PLAIN
