"""How often a rule's knocks are accepted."""

from __future__ import annotations


class TokenBucket:
    """Lets through *knocks* in *per* seconds, and at most *burst* at once."""

    def __init__(self, knocks: int, per: float, burst: int) -> None:
        self._rate = knocks / per
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated = 0.0

    def take(self, now: float) -> bool:
        """Use one token if there is one; *now* is monotonic seconds and never decreases."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
