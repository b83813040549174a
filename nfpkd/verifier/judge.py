"""The decision: which rules, if any, a datagram opens.

Pure: no I/O, no clock.  Two times come as arguments: *wall* (whole Unix
seconds, as clients stamp knocks with) and *now* (monotonic seconds, for
intervals).
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Iterable
from typing import NamedTuple

from nfpkd.errors import WireError
from nfpkd.knock.wire import decode_knock_untrusted, make_digest
from nfpkd.rules.model import Rule
from nfpkd.verifier.packet import Datagram
from nfpkd.verifier.ratelimit import TokenBucket
from nfpkd.verifier.replay import Freshness, ReplayMemory


class Outcome(enum.Enum):
    """What became of a knock for one rule; the value is the word for it in logs and counters."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    MEMORY_FULL = "memory_full"
    CLOCK_OFF = "clock_off"
    RATE_LIMITED = "rate_limited"


class Judgement(NamedTuple):
    """What one rule says to an authenticated knock; *clock_offset* is the client's clock minus ours, in seconds."""

    rule: Rule
    outcome: Outcome
    clock_offset: int


class _Candidate(NamedTuple):
    """The rules that one tag and key can open, split by the digests that they accept."""

    key: bytes
    rules: tuple[Rule, ...]
    accepting_old: tuple[Rule, ...]


class Judge:
    """Judges knocks by a set of rules that can be replaced while its memory goes on."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._memories: dict[bytes, ReplayMemory] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._skews: dict[bytes, float] = {}
        self._candidates: dict[bytes, tuple[_Candidate, ...]] = {}
        self.replace_rules(rules)

    def replace_rules(self, rules: Iterable[Rule]) -> None:
        """Judge by *rules* from now on.

        Replay memories belong to keys and are never dropped: a key that is taken
        away and comes back must not bring its old knocks along.
        """
        by_tag: dict[bytes, dict[bytes, list[Rule]]] = {}
        skews: dict[bytes, float] = {}
        buckets: dict[str, TokenBucket] = {}
        for rule in rules:
            key = rule.key.reveal()
            by_tag.setdefault(rule.tag, {}).setdefault(key, []).append(rule)
            skew = float("inf") if rule.skew is None else rule.skew
            skews[key] = max(skew, skews.get(key, 0.0))
            buckets[rule.name] = self._buckets.get(rule.name) or TokenBucket()
        self._candidates = {
            tag: tuple(
                _Candidate(key, tuple(group), tuple(rule for rule in group if rule.old)) for key, group in keys.items()
            )
            for tag, keys in by_tag.items()
        }
        self._skews = skews
        self._buckets = buckets

    def judge(self, datagram: Datagram, wall: int, now: float) -> list[Judgement]:
        """Return what each rule says whose key made this knock; nothing if it is not a knock.

        Nothing is said of which part was wrong: a datagram whose tag is known but
        whose digest fits no key is an ordinary datagram, to everybody.
        """
        try:
            knock = decode_knock_untrusted(datagram.payload)
        except WireError:
            return []
        for candidate in self._candidates.get(knock.tag, ()):
            rules = self._authenticate(candidate, knock.header, knock.digest, datagram.port)
            if rules:
                return self._judge_authentic(candidate.key, rules, knock.digest, knock.time, wall, now)
        return []

    @staticmethod
    def _authenticate(candidate: _Candidate, header: bytes, digest: bytes, port: int) -> tuple[Rule, ...]:
        if hmac.compare_digest(make_digest(header, port, candidate.key), digest):
            return candidate.rules
        if candidate.accepting_old and hmac.compare_digest(make_digest(header, port, candidate.key, old=True), digest):
            return candidate.accepting_old
        return ()

    def _judge_authentic(
        self, key: bytes, rules: tuple[Rule, ...], digest: bytes, time: int, wall: int, now: float
    ) -> list[Judgement]:
        # Remembered before anything else is asked: a knock refused for its
        # rate must not be good a minute later.
        memory = self._memories.setdefault(key, ReplayMemory())
        freshness = memory.admit(digest, time, wall - self._skews[key])
        offset = time - wall
        return [Judgement(rule, self._outcome(rule, freshness, offset, now), offset) for rule in rules]

    def _outcome(self, rule: Rule, freshness: Freshness, offset: int, now: float) -> Outcome:
        if freshness is Freshness.SEEN:
            return Outcome.REPLAYED
        if freshness is Freshness.FULL:
            return Outcome.MEMORY_FULL
        if rule.skew is not None and abs(offset) > rule.skew:
            return Outcome.CLOCK_OFF
        if not self._buckets[rule.name].take(now):
            return Outcome.RATE_LIMITED
        return Outcome.ACCEPTED
