"""Hypothesis strategies for what nfpkd is made of."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import NamedTuple

from hypothesis import strategies as st

from nfpkd.firewall.ruleset import Options
from nfpkd.knock.wire import RANDOM_LENGTH
from nfpkd.rules.model import (
    CONNECTION_PROTOCOLS,
    KEY_LENGTH,
    MAX_WINDOW,
    TAG_LENGTH,
    Network,
    PortRange,
    Prefixes,
    Protocol,
    Rate,
    Reject,
    Rule,
    Secret,
    Service,
    TimedKey,
    Trigger,
)

names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64)
ports = st.integers(1, 65535)
# Padded bytes, as the model holds them: at least one byte, zero-filled.
keys = st.binary(min_size=1, max_size=KEY_LENGTH).map(lambda raw: raw.ljust(KEY_LENGTH, b"\0"))
tags = st.binary(min_size=1, max_size=TAG_LENGTH).map(lambda raw: raw.ljust(TAG_LENGTH, b"\0"))
protocols = st.sets(st.sampled_from(Protocol), min_size=1).map(lambda found: tuple(sorted(found)))
seconds = st.integers(0, 2**32)
services = st.builds(Service, st.sampled_from(Protocol), ports)


@st.composite
def port_ranges(draw: st.DrawFn, longest: int = 5) -> PortRange:
    first = draw(ports)
    return PortRange(first, min(65535, first + draw(st.integers(0, longest - 1))))


@st.composite
def timed_keys(draw: st.DrawFn) -> TimedKey:
    not_before, not_after = draw(st.none() | seconds), draw(st.none() | seconds)
    if not_before is not None and not_after is not None:
        not_before, not_after = sorted((not_before, not_after))
    return TimedKey(Secret(draw(keys)), not_before, not_after)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(st.ip_addresses())
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


# The usual way is as likely as all others together: most rules use little of the language.
prefixes = st.just(Prefixes()) | st.builds(
    Prefixes, st.sampled_from([32, 31, 24, 20, 8]), st.sampled_from([128, 127, 64, 48, 16])
)
interfaces = st.just(()) | st.lists(
    st.sampled_from(["eth0", "lo", "wg0", "br-0123456789ab"]), min_size=1, max_size=3, unique=True
).map(tuple)
rates = st.builds(Rate, *[st.integers(1, 86400)] * 3)
commands = st.just(()) | st.just(("/bin/true", "one argument"))
triggers = st.builds(Trigger, commands, commands, st.just("nobody"), st.integers(1, 3600))


def settle(rule: Rule) -> Rule:
    """Return *rule* in a combination that the loader allows: see `nfpkd.rules.build`."""
    once = rule.once and not rule.extend
    with_connections = tuple(p for p in rule.protocols if p in CONNECTION_PROTOCOLS)
    trigger = rule.trigger._replace(close_command=()) if rule.extend else rule.trigger
    return replace(
        rule,
        once=once,
        protocols=(with_connections or (Protocol.TCP,)) if once else rule.protocols,
        trigger=trigger if rule.ports or trigger.command else trigger._replace(command=("/bin/true",)),
    )


@st.composite
def rules(draw: st.DrawFn, reject: st.SearchStrategy[Reject] = st.sampled_from(Reject)) -> Rule:  # noqa: B008
    return settle(
        Rule(
            name=draw(names),
            keys=tuple(draw(st.lists(timed_keys(), min_size=1, max_size=3))),
            tag=draw(tags),
            ports=tuple(draw(st.lists(port_ranges(), max_size=3))),
            protocols=draw(protocols),
            window=draw(st.integers(1, MAX_WINDOW)),
            skew=draw(st.none() | st.integers(1, 3600)),
            reject=draw(reject),
            old=draw(st.booleans()),
            description=draw(st.text(max_size=40)),
            knock_ports=tuple(draw(st.lists(port_ranges(), max_size=3))),
            rate=draw(rates),
            sources=tuple(draw(st.lists(networks(), max_size=2))),
            prefixes=draw(prefixes),
            extend=draw(st.booleans()),
            once=draw(st.booleans()),
            interfaces=draw(interfaces),
            trigger=draw(triggers),
        )
    )


options = st.builds(Options, st.integers(0, 65535), interfaces, st.integers(1, 1_000_000))

# A list of rules as the loader lets it through: names are unique, and rules that share a port agree on reject.
rule_lists = st.sampled_from(Reject).flatmap(
    lambda way: st.lists(rules(st.just(way)), max_size=6, unique_by=lambda rule: rule.name)
)

# What a knock is made of, besides key, tag and port.
randoms = st.binary(min_size=RANDOM_LENGTH, max_size=RANDOM_LENGTH)
times = st.integers(0, 2**64 - 1)


# NaN and the infinities are no JSON.
json_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class WrittenJson(NamedTuple):
    """A JSON text, and at which offset each of its values and keys starts."""

    text: str
    value: object
    values: dict[tuple[str | int, ...], int]
    keys: dict[tuple[str | int, ...], int]


@st.composite
def written_json(draw: st.DrawFn, contents: st.SearchStrategy[object] = json_values) -> WrittenJson:
    """Write a value with whitespace wherever JSON allows some, noting what starts where."""
    whitespace = st.text(" \t\r\n", max_size=3)
    ascii_only = draw(st.booleans())
    written: list[str] = []
    found = WrittenJson("", draw(contents), {}, {})

    def write(text: str) -> int:
        offset = sum(map(len, written))
        written.append(text)
        return offset

    def write_items(brackets: str, parts: Sequence[tuple[tuple[str | int, ...], str | None, object]]) -> None:
        for number, (path, key, item) in enumerate(parts):
            write("," if number else "")
            if key is not None:
                write(draw(whitespace))
                found.keys[path] = write(json.dumps(key, ensure_ascii=ascii_only))
                write(draw(whitespace) + ":")
            write_value(path, item)
        write((draw(whitespace) if not parts else "") + brackets[1])

    def write_value(path: tuple[str | int, ...], value: object) -> None:
        write(draw(whitespace))
        if isinstance(value, list):
            found.values[path] = write("[")
            write_items("[]", [((*path, index), None, item) for index, item in enumerate(value)])
        elif isinstance(value, dict):
            found.values[path] = write("{")
            write_items("{}", [((*path, key), key, item) for key, item in value.items()])
        else:
            found.values[path] = write(json.dumps(value, ensure_ascii=ascii_only))
        write(draw(whitespace))

    write_value((), found.value)
    return found._replace(text="".join(written))
