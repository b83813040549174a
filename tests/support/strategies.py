"""Hypothesis strategies for what nfpkd is made of."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from nfpkd.rules.model import (
    KEY_LENGTH,
    MAX_WINDOW,
    TAG_LENGTH,
    PortRange,
    Protocol,
    Reject,
    Rule,
    Secret,
    Service,
)

names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64)
ports = st.integers(1, 65535)
# Padded bytes, as the model holds them: at least one byte, zero-filled.
keys = st.binary(min_size=1, max_size=KEY_LENGTH).map(lambda raw: raw.ljust(KEY_LENGTH, b"\0"))
tags = st.binary(min_size=1, max_size=TAG_LENGTH).map(lambda raw: raw.ljust(TAG_LENGTH, b"\0"))
protocols = st.sets(st.sampled_from(Protocol), min_size=1).map(lambda found: tuple(sorted(found)))
services = st.builds(Service, st.sampled_from(Protocol), ports)


@st.composite
def port_ranges(draw: st.DrawFn, longest: int = 5) -> PortRange:
    first = draw(ports)
    return PortRange(first, min(65535, first + draw(st.integers(0, longest - 1))))


@st.composite
def rules(draw: st.DrawFn, reject: st.SearchStrategy[Reject] = st.sampled_from(Reject)) -> Rule:  # noqa: B008
    return Rule(
        name=draw(names),
        key=Secret(draw(keys)),
        tag=draw(tags),
        ports=tuple(draw(st.lists(port_ranges(), min_size=1, max_size=3))),
        protocols=draw(protocols),
        window=draw(st.integers(1, MAX_WINDOW)),
        skew=draw(st.none() | st.integers(1, 3600)),
        reject=draw(reject),
        old=draw(st.booleans()),
        description=draw(st.text(max_size=40)),
    )


# A list of rules as the loader lets it through: names are unique, and rules that share a port agree on reject.
rule_lists = st.sampled_from(Reject).flatmap(
    lambda way: st.lists(rules(st.just(way)), max_size=6, unique_by=lambda rule: rule.name)
)
