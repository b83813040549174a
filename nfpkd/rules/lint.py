"""What is allowed in rules and still worth a second thought.

Pure: what listens on this host, and the time, come as arguments.  No message
has a key in it.
"""

from __future__ import annotations

import math
import re
import string
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple, cast

from nfpkd.errors import Problem
from nfpkd.rules.build import ANY_PROTOCOL, PlacedRule
from nfpkd.rules.model import (
    PortRange,
    Protocol,
    Rate,
    Rule,
    Secret,
    Service,
    TimedKey,
    format_tag,
    merge_ranges,
    parse_text_or_hex,
)
from nfpkd.rules.positions import Path

# Who recorded one knock can try keys at home; 128 bits are out of anybody's reach.
MIN_ENTROPY = 128
# Every datagram with a tag in use is tried with the keys of all rules that have this tag.
MAX_RULES_PER_TAG = 8
# A provider's NAT pool fits into an IPv4 /16, and the smallest allocation that
# a provider gets in IPv6 is a /32 (RIPE-738, section 5.1): fewer bits let in
# several providers' customers.
MIN_IPV4_PREFIX = 16
MIN_IPV6_PREFIX = 32

# What /proc tells the listeners of.
LISTENABLE = {Protocol.TCP, Protocol.UDP}

# A word that was drawn by dice from 7,776 has 12.9 bits, in 5 to 6 letters.
_BITS_PER_WORD_LETTER = 2
_WORD = re.compile("[A-Za-z][a-z]{3,}")
_CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation + " ")
_BITS_PER_OTHER = 7
_LOWERCASE_TEXT = re.compile(r"[a-z _.,-]*")
_HEX_TEXT = re.compile("(?=.*[0-9])(?:[0-9a-f]*|[0-9A-F]*)")


def find_smells(
    rules: Iterable[PlacedRule], *, now: float, listening: Collection[Service] | None = None
) -> Iterator[Problem]:
    """Yield what *rules*, which are valid, should rather not be, each with what to do about it.

    *now* is Unix seconds.  *listening* is what tcp and udp listen on at this
    host; without it, nothing is said of ports.
    """
    placed = tuple(rules)
    pointless = dict(_find_pointless(placed, now))
    used = {protocol: sorted({s.port for s in listening or () if s.protocol is protocol}) for protocol in LISTENABLE}
    for one in placed:
        yield from _find_by_itself(one, now)
        if listening is not None:
            yield from _find_unused_ports(one, used)
        if one.rule.name in pointless:
            yield _explain_pointless(one, pointless[one.rule.name])
    yield from _find_crowded_tags(placed)
    # A rule that is pointless has nothing that is worth a key of its own.
    yield from _find_shared_keys([one for one in placed if one.rule.name not in pointless], now)


def estimate_entropy(key: str) -> float:
    """Return how many bits about a guesser has to find, of *key* as a rule file writes it.

    It is an upper bound for people's habits, not a measure of randomness: hex
    counts 8 bits a byte, unless it spells text.  Text counts the logarithm of
    the classes of characters that it uses, but 4 bits a character if all are
    hex digits, and 2 bits a letter if it is mostly lowercase words, for which
    any lowercase letters are taken.  What repeats itself, or goes on in steps,
    counts once.
    """
    raw = parse_text_or_hex(key)
    is_hex = key[:2] in ("0x", "0X")
    if is_hex and not all(0x20 <= byte < 0x7F for byte in raw):
        return min(8.0 * _count_varied(raw), 4.0 * len(key[2:]))
    text = raw.decode() if is_hex else key
    each = _bits_per_character(text)
    word_letters = len(text) if _LOWERCASE_TEXT.fullmatch(text) else sum(map(len, _WORD.findall(text)))
    bits = each * len(text)
    if word_letters * 3 >= len(text) * 2 and not _HEX_TEXT.fullmatch(text):
        bits = min(bits, _BITS_PER_WORD_LETTER * word_letters + each * (len(text) - word_letters))
    return min(bits, each * _count_varied([ord(character) for character in text]))


def _bits_per_character(text: str) -> float:
    if _HEX_TEXT.fullmatch(text):
        return 4 if re.search("[A-Fa-f]", text) else math.log2(10)
    if not set(text) <= set("".join(_CLASSES)):
        return _BITS_PER_OTHER
    used = {known for known in _CLASSES if not set(known).isdisjoint(text)}
    # Base64 of 16 random bytes has no digit one time in forty.
    if {string.ascii_lowercase, string.ascii_uppercase} <= used:
        used.add(string.digits)
    return math.log2(sum(map(len, used)))


def _count_varied(values: Collection[int]) -> int:
    """Return how many of *values* are worth counting: all, unless they mostly repeat or go on in steps.

    Random values repeat, too: so half of the neighbouring pairs, and three in
    four steps, may be ones that were there before.
    """
    pairs = list(pairwise(values))
    different = len(set(pairs))
    steps = len({second - first for first, second in pairs})
    if different * 2 < len(pairs):
        return different + 1
    if steps * 4 < len(pairs):
        return steps + 1
    return len(values)


class _PlacedKey(NamedTuple):
    """A rule's key, as it is written, and where in its rule."""

    key: TimedKey
    text: str
    path: Path


def _keys_of(placed: PlacedRule) -> Iterator[_PlacedKey]:
    fields = cast(list[dict[str, Any]], placed.document.value)[placed.position]
    if "key" in fields:
        yield _PlacedKey(placed.rule.keys[0], fields["key"], ("key",))
        return
    for index, (key, entry) in enumerate(zip(placed.rule.keys, fields["keys"], strict=True)):
        is_object = isinstance(entry, dict)
        path = ("keys", index, "key") if is_object else ("keys", index)
        yield _PlacedKey(key, entry["key"] if is_object else entry, path)


def _problem(placed: PlacedRule, path: Path, message: str) -> Problem:
    return placed.document.problem((placed.position, *path), message)


def _is_past(key: TimedKey, now: float) -> bool:
    return key.not_after is not None and key.not_after < now


def _live_keys(rule: Rule, now: float) -> list[TimedKey]:
    return [key for key in rule.keys if not _is_past(key, now)]


def _find_by_itself(placed: PlacedRule, now: float) -> Iterator[Problem]:
    """Yield what a look at one rule alone shows."""
    rule = placed.rule
    all_past = all(_is_past(key, now) for key in rule.keys)
    for key, text, path in _keys_of(placed):
        if _is_past(key, now):
            moment = datetime.fromtimestamp(key.not_after or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            effect = "and nobody can open this rule any more: give it a new key" if all_past else "remove the key"
            place = (*path[:-1], "not-after") if path[-1] == "key" else path
            yield _problem(placed, place, f'"not-after" was {moment}, {effect}')
        elif (bits := estimate_entropy(text)) < MIN_ENTROPY:
            message = (
                f'"{path[0]}" has about {math.floor(bits)} bits of entropy; under {MIN_ENTROPY}, who records a knock '
                'may guess it: make one with "nfpkd keygen"'
            )
            yield _problem(placed, path, message)
    if rule.skew is None:
        message = (
            '"skew" of -1 takes a knock of any age, so nothing but memory tells a replay, and when that is full or '
            "lost the key must be changed: set the clocks, and give the seconds by which they may differ"
        )
        yield _problem(placed, ("skew",), message)
    for family, prefix, least, bits_of_family in (
        ("ipv4", rule.prefixes.ipv4, MIN_IPV4_PREFIX, 32),
        ("ipv6", rule.prefixes.ipv6, MIN_IPV6_PREFIX, 128),
    ):
        if prefix < least:
            message = (
                f'"grant" of /{prefix} lets in 2^{bits_of_family - prefix} addresses at one knock, '
                f"far beyond any one network; give {family} at least {least}"
            )
            yield _problem(placed, ("grant", family), message)


def _find_unused_ports(placed: PlacedRule, used: Mapping[Protocol, Sequence[int]]) -> Iterator[Problem]:
    """Yield the ports that nothing listens on; *used* is what does, in order.

    Nothing is said of ranges, whose services come and go (mosh, passive FTP), of protocols whose
    listeners are not known, and of rules with a command, which may be what starts the service.
    """
    rule = placed.rule
    known = LISTENABLE.intersection(rule.protocols)
    if rule.trigger.command or not (known == set(rule.protocols) or set(rule.protocols) == set(ANY_PROTOCOL)):
        return
    fields = cast(list[dict[str, Any]], placed.document.value)[placed.position]
    is_list = isinstance(fields.get("port"), list)
    for index, ports in enumerate(rule.ports):
        if ports.first == ports.last and not any(
            bisect_left(used[p], ports.first) < bisect_right(used[p], ports.last) for p in known
        ):
            names = "+".join(sorted(protocol.label for protocol in known))
            message = (
                f"nothing listens on {ports}/{names} here: correct the port, or start its service "
                "(a port that is redirected, to a container for example, looks the same)"
            )
            yield _problem(placed, ("port", index) if is_list else ("port",), message)


def _find_crowded_tags(rules: tuple[PlacedRule, ...]) -> Iterator[Problem]:
    counts = Counter(placed.rule.tag for placed in rules)
    seen: Counter[bytes] = Counter()
    for placed in rules:
        tag = placed.rule.tag
        seen[tag] += 1
        if seen[tag] == MAX_RULES_PER_TAG + 1:
            message = (
                f"{counts[tag]} rules have the tag {format_tag(tag)}, and whatever comes with it is tried with all "
                f'their keys: give each a "tag" of its own, or at most {MAX_RULES_PER_TAG} the same'
            )
            yield _problem(placed, ("tag",), message)


def _find_shared_keys(rules: Iterable[PlacedRule], now: float) -> Iterator[Problem]:
    """Yield the rules that have a key of an earlier rule with another tag or other ports, once each."""
    holders: dict[Secret, dict[object, PlacedRule]] = {}
    for placed in rules:
        rule = placed.rule
        what = (rule.tag, merge_ranges(rule.ports), frozenset(rule.protocols if rule.ports else ()))
        told = False
        for key, _, path in _keys_of(placed):
            if _is_past(key, now):
                continue
            same = holders.setdefault(key.secret, {})
            first = next((holder for other, holder in same.items() if other != what), None)
            if first is not None and not told:
                told = True
                yield _problem(placed, path, _explain_shared(placed, path, first))
            same.setdefault(what, placed)


def _explain_shared(placed: PlacedRule, path: Path, first: PlacedRule) -> str:
    names = f'rules "{placed.rule.name}" and "{first.rule.name}" ({first.where()}) have the same "{path[0]}"'
    if placed.rule.tag == first.rule.tag:
        return f'{names} and tag, so one knock opens both: make them one rule, or a key each with "nfpkd keygen"'
    return f'{names}, so who may open one may open the other: make a key each with "nfpkd keygen"'


def _find_pointless(rules: tuple[PlacedRule, ...], now: float) -> Iterator[tuple[str, PlacedRule]]:
    """Yield the name of each rule that adds nothing to another, and that other."""
    by_port: dict[tuple[Secret, bytes, int], list[int]] = {}
    by_range: dict[tuple[Secret, bytes], list[tuple[PortRange, int]]] = {}
    for index, placed in enumerate(rules):
        rule = placed.rule
        for secret in {key.secret for key in rule.keys}:
            # Only rules with a key in common are compared, and of these only ones that may share a port.
            for ports in rule.ports:
                if ports.first == ports.last:
                    by_port.setdefault((secret, rule.tag, ports.first), []).append(index)
                else:
                    by_range.setdefault((secret, rule.tag), []).append((ports, index))
    for index, placed in enumerate(rules):
        rule = placed.rule
        live = _live_keys(rule, now)
        # A rule without ports is there for its command.
        if not live or not rule.ports or rule.trigger:
            continue
        secret, port = live[0].secret, rule.ports[0].first
        near = set(by_port.get((secret, rule.tag, port), ()))
        near |= {other for ports, other in by_range.get((secret, rule.tag), ()) if ports.first <= port <= ports.last}
        for other in sorted(near):
            wide = rules[other].rule
            if other == index or not _includes(wide, rule, live):
                continue
            # Of two that are alike, the first stays.
            if other < index or wide.trigger or not _includes(rule, wide, _live_keys(wide, now)):
                yield rule.name, rules[other]
                break


def _explain_pointless(placed: PlacedRule, other: PlacedRule) -> Problem:
    message = (
        f'rule "{placed.rule.name}" does nothing that rule "{other.rule.name}" ({other.where()}) '
        "does not do with the same key and tag: remove one of them"
    )
    return placed.problem("name", message)


def _includes(wide: Rule, narrow: Rule, keys: Iterable[TimedKey]) -> bool:
    """Tell whether every knock with *keys* that opens something by *narrow* opens it by *wide*, for at least as long.

    Of what *narrow* runs nothing is said.
    """
    return (
        wide.tag == narrow.tag
        and wide.window >= narrow.window
        and all(any(_is_good_while(ours, key) for ours in wide.keys) for key in keys)
        and set(wide.protocols) >= set(narrow.protocols)
        and _hold(wide.ports, narrow.ports)
        and (not wide.knock_ports or (bool(narrow.knock_ports) and _hold(wide.knock_ports, narrow.knock_ports)))
        and (not wide.interfaces or (bool(narrow.interfaces) and set(wide.interfaces) >= set(narrow.interfaces)))
        and _is_heard_from(wide, narrow)
        and (wide.skew is None or (narrow.skew is not None and wide.skew >= narrow.skew))
        and (wide.old or not narrow.old)
        and (wide.extend or not narrow.extend)
        and (narrow.once or not wide.once)
        and wide.prefixes.ipv4 <= narrow.prefixes.ipv4
        and wide.prefixes.ipv6 <= narrow.prefixes.ipv6
        and _is_as_fast(wide.rate, narrow.rate)
    )


def _is_good_while(wide: TimedKey, narrow: TimedKey) -> bool:
    """Tell whether both are one key, and *wide* is good whenever *narrow* is."""
    return (
        wide.secret == narrow.secret
        and (wide.not_before is None or (narrow.not_before is not None and wide.not_before <= narrow.not_before))
        and (wide.not_after is None or (narrow.not_after is not None and wide.not_after >= narrow.not_after))
    )


def _is_heard_from(wide: Rule, narrow: Rule) -> bool:
    if not wide.sources:
        return True
    return bool(narrow.sources) and all(
        any(ours.version == theirs.version and theirs.subnet_of(ours) for ours in wide.sources)  # type: ignore[arg-type]
        for theirs in narrow.sources
    )


def _is_as_fast(wide: Rate, narrow: Rate) -> bool:
    return wide.knocks * narrow.per >= narrow.knocks * wide.per and wide.burst >= narrow.burst


def _hold(wide: Iterable[PortRange], narrow: Iterable[PortRange]) -> bool:
    merged = merge_ranges(wide)
    return all(any(ours.first <= ports.first and ports.last <= ours.last for ours in merged) for ports in narrow)
