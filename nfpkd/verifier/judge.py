"""The decision: which rules, if any, a datagram opens.

Pure: no I/O, no clock.  Two times come as arguments: *wall* (whole Unix
seconds, as clients stamp knocks with) and *now* (monotonic seconds since the
boot, for intervals).
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nfpkd.errors import WireError
from nfpkd.knock.wire import HEADER_LENGTH, PAYLOAD_LENGTH, Knock, decode_knock_untrusted, make_digest
from nfpkd.rules.model import TAG_LENGTH, Network, Rate, Rule, TimedKey
from nfpkd.verifier.packet import Datagram
from nfpkd.verifier.ratelimit import TokenBucket
from nfpkd.verifier.replay import EVERYTHING_CUT_OFF, Freshness, KeyId, ReplayBook, identify_key

_PORTS = range(1, 65_536)
# A stamp that was accepted before a power failure is at most a second ahead of that moment's
# clock, and the time of the boot is known to the second.
_BOOT_MARGIN_SECONDS = 2


class Outcome(enum.Enum):
    """What became of a knock for one rule; the value is the word for it in logs and counters."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    CUT_OFF = "cut_off"
    MEMORY_FULL = "memory_full"
    KEY_NOT_YET_VALID = "key_not_yet_valid"
    KEY_EXPIRED = "key_expired"
    SOURCE_NOT_ALLOWED = "source_not_allowed"
    CLOCK_OFF = "clock_off"
    RATE_LIMITED = "rate_limited"


class Judgement(NamedTuple):
    """What one rule says to an authenticated knock; *clock_offset* is the client's clock minus ours, in seconds."""

    rule: Rule
    outcome: Outcome
    clock_offset: int


class Translated(NamedTuple):
    """A knock for *rule* that was sent to *port*, and arrived at another: something on the way translates ports."""

    rule: Rule
    port: int


class _Opening(NamedTuple):
    """A rule that a key opens, and when that key is good for it."""

    rule: Rule
    key: TimedKey


class _Candidate(NamedTuple):
    """What one key can open among the rules with one tag; *accepts_old* if any of them takes the old digest."""

    key: bytes
    key_id: KeyId
    openings: tuple[_Opening, ...]
    accepts_old: bool


class Judge:
    """Judges knocks by a set of rules that can be replaced while its memory goes on."""

    def __init__(self, rules: Sequence[Rule] = (), memory: ReplayBook | None = None) -> None:
        self.memory = ReplayBook() if memory is None else memory
        self._buckets: dict[str, tuple[Rate, TokenBucket]] = {}
        self._skews: dict[bytes, float] = {}
        self._rules: tuple[Rule, ...] = ()
        self._candidates: dict[bytes, tuple[_Candidate, ...]] = {}
        self.replace_rules(rules)

    def replace_rules(self, rules: Sequence[Rule]) -> None:
        """Judge by *rules* from now on."""
        by_tag: dict[bytes, dict[bytes, list[_Opening]]] = {}
        skews: dict[bytes, float] = {}
        buckets = {}
        for rule in rules:
            skew = math.inf if rule.skew is None else rule.skew
            for key in rule.keys:
                secret = key.secret.reveal()
                by_tag.setdefault(rule.tag, {}).setdefault(secret, []).append(_Opening(rule, key))
                skews[secret] = max(skew, skews.get(secret, 0.0))
            rate, bucket = self._buckets.get(rule.name, (None, None))
            # A rule's bucket goes on over a reload, or an edit would be a free knock.
            buckets[rule.name] = (rule.rate, bucket if bucket and rate == rule.rate else TokenBucket(*rule.rate))
        self._candidates = {
            tag: tuple(
                _Candidate(key, identify_key(key), tuple(openings), any(opening.rule.old for opening in openings))
                for key, openings in keys.items()
            )
            for tag, keys in by_tag.items()
        }
        self._skews = skews
        self._buckets = buckets
        self._rules = tuple(rules)

    def distrust_before(self, start: int) -> list[Rule]:
        """Refuse knocks that may be replays from before *start* (Unix seconds), with keys that have no memory.

        Where clocks may differ by the skew, that is what was stamped up to *start* and
        the skew.  Where the clock is ignored nothing tells a replay, so everything is
        refused; returned are the rules which that concerns.
        """
        for candidates in self._candidates.values():
            for candidate in candidates:
                skew = self._skews[candidate.key]
                cutoff = EVERYTHING_CUT_OFF if skew == math.inf else int(start + skew)
                self.memory.begin_after(candidate.key_id, cutoff)
        return [rule for rule in self._rules if rule.skew is None]

    def judge(self, datagram: Datagram, wall: int, now: float, interface: str = "") -> list[Judgement]:
        """Return what each rule says whose key made this knock; nothing if it is not a knock.

        *interface* is where it came in; it matters only to rules that name theirs.

        Nothing is said of which part was wrong: a datagram whose tag is known but
        whose digest fits no key is an ordinary datagram, to everybody.
        """
        source, port, payload = datagram
        if len(payload) != PAYLOAD_LENGTH:
            return []
        for candidate in self._candidates.get(payload[:TAG_LENGTH], ()):
            openings = _authenticate(candidate, payload, port)
            if openings and (heard := [one for one in openings if _hears(one.rule, port, interface)]):
                return self._judge_authentic(candidate, heard, decode_knock_untrusted(payload), source, wall, now)
        return []

    def find_translated(self, datagram: Datagram, wall: int) -> Translated | None:
        """Return how a datagram that is no knock would be one at another port, or None.

        Every port is tried, which takes some 50 ms for each key: not for every
        datagram that anybody sends.  Only stamps that are good now are looked at.
        """
        try:
            knock = decode_knock_untrusted(datagram.payload)
        except WireError:
            return None
        for candidate in self._candidates.get(knock.tag, ()):
            if abs(knock.time - wall) > self._skews[candidate.key]:
                continue
            for port in _PORTS:
                # What fits the port it arrived at is taken elsewhere: at other ports, or by another interface.
                if port != datagram.port and hmac.compare_digest(
                    make_digest(knock.header, port, candidate.key), knock.digest
                ):
                    return Translated(candidate.openings[0].rule, port)
        return None

    def _judge_authentic(
        self, candidate: _Candidate, openings: list[_Opening], knock: Knock, source: bytes, wall: int, now: float
    ) -> list[Judgement]:
        # Remembered before anything else is asked: a knock refused for its
        # rate must not be good a minute later.
        skew = self._skews[candidate.key]
        # Of what was accepted right before a power failure the disk may know nothing (see `ReplayBook.admit`), so
        # that stamps from before this boot are refused; what they would not cover is written through first.
        outlives_boot = skew == math.inf or knock.time > wall + 1
        freshness = self.memory.admit(candidate.key_id, knock.digest, knock.time, wall - skew, at_once=outlives_boot)
        if freshness is Freshness.FRESH and skew != math.inf and knock.time <= wall - now + _BOOT_MARGIN_SECONDS:
            freshness = Freshness.CUT_OFF
        offset = knock.time - wall
        judgements = []
        for rule, timed in openings:
            if freshness is Freshness.FRESH:
                outcome = self._outcome(rule, timed, source, wall, offset, now)
            else:
                outcome = _REFUSALS[freshness]
            judgements.append(Judgement(rule, outcome, offset))
        return judgements

    def _outcome(self, rule: Rule, key: TimedKey, source: bytes, wall: int, offset: int, now: float) -> Outcome:
        if key.not_before is not None and wall < key.not_before:
            return Outcome.KEY_NOT_YET_VALID
        if key.not_after is not None and wall > key.not_after:
            return Outcome.KEY_EXPIRED
        if rule.sources and not _is_within(source, rule.sources):
            return Outcome.SOURCE_NOT_ALLOWED
        if rule.skew is not None and abs(offset) > rule.skew:
            return Outcome.CLOCK_OFF
        if not self._buckets[rule.name][1].take(now):
            return Outcome.RATE_LIMITED
        return Outcome.ACCEPTED


_REFUSALS = {
    Freshness.SEEN: Outcome.REPLAYED,
    Freshness.CUT_OFF: Outcome.CUT_OFF,
    Freshness.FULL: Outcome.MEMORY_FULL,
}


def _authenticate(candidate: _Candidate, payload: bytes, port: int) -> Sequence[_Opening]:
    """Return what *payload* opens if it was made with the key of *candidate*, for *port*."""
    header, digest = payload[:HEADER_LENGTH], payload[HEADER_LENGTH:]
    if hmac.compare_digest(make_digest(header, port, candidate.key), digest):
        return candidate.openings
    if candidate.accepts_old and hmac.compare_digest(make_digest(header, port, candidate.key, old=True), digest):
        return [opening for opening in candidate.openings if opening.rule.old]
    return ()


def _hears(rule: Rule, port: int, interface: str) -> bool:
    """Tell whether *rule* takes knocks at *port* and from *interface*; to others they are ordinary datagrams."""
    if rule.interfaces and interface not in rule.interfaces:
        return False
    return not rule.knock_ports or any(first <= port <= last for first, last in rule.knock_ports)


def _is_within(source: bytes, networks: Iterable[Network]) -> bool:
    address = ipaddress.ip_address(source)
    return any(address in network for network in networks)
