"""Properties of going from any rules to any others."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies
from support.fake_kernel import FakeKernel

from nfpkd.demo.namespaces import Namespace
from nfpkd.firewall import layout, nft
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.nft import Transaction
from nfpkd.firewall.ruleset import compile_ruleset
from nfpkd.firewall.state import Grant, State
from nfpkd.rules.model import Reject, Rule

Rules = list[Rule]
queues = st.integers(0, 65535)


@st.composite
def changed_rules(draw: st.DrawFn, before: Rules) -> Rules:
    """Rules that keep some of *before*, change some and add some; all agree on reject."""
    way = draw(st.sampled_from([rule.reject for rule in before] or list(Reject)) | st.sampled_from(Reject))
    kept = draw(st.lists(st.sampled_from(before), unique_by=lambda rule: rule.name)) if before else []
    after = []
    for rule in kept:
        other = draw(strategies.rules())
        parts = draw(st.sets(st.sampled_from(["key", "tag", "ports", "protocols", "window", "description"])))
        after.append(replace(rule, reject=way, **{part: getattr(other, part) for part in parts}))
    names = {rule.name for rule in before}
    added = draw(st.lists(strategies.rules(st.just(way)), max_size=3, unique_by=lambda rule: rule.name))
    return after + [rule for rule in added if rule.name not in names]


@st.composite
def reloads(draw: st.DrawFn) -> tuple[Rules, Rules]:
    """Any two lists of rules, or one and what an admin makes of it."""
    before = draw(strategies.rule_lists)
    return before, draw(changed_rules(before) | strategies.rule_lists)


@st.composite
def grants(draw: st.DrawFn, rules: Rules) -> list[Grant]:
    """Grants that *rules* could have made, of any age."""
    openings = [(rule, service) for rule in rules for service in sorted(set(rule.services()))]
    found = []
    for rule, service in draw(st.lists(st.sampled_from(openings), max_size=8)) if openings else []:
        address = draw(st.ip_addresses())
        source = socket.inet_ntop(socket.AF_INET if address.version == 4 else socket.AF_INET6, address.packed)
        timeout = draw(st.integers(1, rule.window))
        found.append(Grant(source, service, rule.name, timeout, draw(st.integers(1, timeout))))
    return list({(grant.source, grant.service): grant for grant in found}.values())


def make() -> tuple[FakeKernel, Firewall]:
    kernel = FakeKernel()
    return kernel, Firewall(kernel, list)


def settled(firewall: Firewall) -> State:
    """Return the state, without what the packets and the order of changes leave in it."""
    state = firewall.read_state()
    assert state is not None
    return replace(state, grants=(), counters={})


@given(reloads(), queues, queues)
def test_a_reload_ends_where_a_fresh_start_does(pair: tuple[Rules, Rules], one: int, other: int) -> None:
    before, after = pair
    _, reloaded = make()
    reloaded.apply(before, one)
    reloaded.apply(after, other)
    _, fresh = make()
    fresh.apply(after, other)
    assert settled(reloaded) == settled(fresh)


@given(strategies.rule_lists, queues)
def test_unchanged_rules_change_nothing(rules: Rules, queue: int) -> None:
    _, firewall = make()
    firewall.apply(rules, queue)
    assert not firewall.plan(rules, queue)


@given(reloads())
def test_a_reload_never_opens_what_stays_guarded(pair: tuple[Rules, Rules]) -> None:
    before, after = pair
    _, firewall = make()
    firewall.apply(before, 0)
    old, new = compile_ruleset(before, 0).gated, compile_ruleset(after, 0).gated
    same = {service for service, comment in old.items() if new.get(service) == comment}
    for command in firewall.plan(after, 0).commands:
        [(verb, what)] = command.items()
        [(kind, described)] = what.items()
        # The guard, its sets and the table itself stay; only the tags' and the queue's chains are rewritten.
        assert verb == "add" or kind == "element" or (verb, kind) == ("flush", "chain")
        if verb == "flush":
            assert described["name"] in (layout.TAGS, layout.VERIFY)
        if (verb, kind, described.get("name")) == ("delete", "element", layout.GATED):
            deleted = {tuple(key["concat"]) for key in described["elem"]}
            assert not deleted & same


@given(st.data(), reloads(), st.integers(0, 100))
def test_grants_stay_exactly_as_long_as_their_rule_covers_them(
    data: st.DataObject, pair: tuple[Rules, Rules], later: int
) -> None:
    before, after = pair
    held = data.draw(grants(before))
    kernel, firewall = make()
    firewall.apply(before, 0)
    firewall.grant(held)
    kernel.now += later
    firewall.apply(after, 0)
    by_name = {rule.name: rule for rule in after}
    left = (grant._replace(expires=grant.expires - later) for grant in held if grant.expires > later)
    expected = {grant for grant in left if grant.rule in by_name and by_name[grant.rule].covers(grant.service)}
    state = firewall.read_state()
    assert state is not None
    assert set(state.grants) == expected


@given(st.data(), strategies.rule_lists)
def test_grants_survive_a_table_made_anew(data: st.DataObject, rules: Rules) -> None:
    held = data.draw(grants(rules))
    kernel, firewall = make()
    firewall.apply(rules, 0)
    firewall.grant(held)
    kernel.apply(Transaction((nft.flush_chain(layout.TABLE, "gate"),)))
    firewall.apply(rules, 0)
    state = firewall.read_state()
    assert state is not None
    assert state.intact
    assert set(state.grants) == set(held)


@pytest.mark.netns
@settings(max_examples=25)
@given(data=st.data(), pair=reloads(), queue=queues)
def test_a_real_reload_ends_where_a_fresh_start_does(
    namespace: Namespace, shared_kernel: NftablesKernel, data: st.DataObject, pair: tuple[Rules, Rules], queue: int
) -> None:
    before, after = pair
    held = data.draw(grants(before))
    firewall = Firewall(shared_kernel, list)
    with namespace.entered(), contextlib.ExitStack() as cleanup:
        cleanup.callback(firewall.teardown)
        firewall.apply(before, 0)
        firewall.grant([grant._replace(timeout=3600, expires=3600) for grant in held])
        firewall.apply(after, queue)
        reloaded = settled(firewall)
        assert not firewall.plan(after, queue)
        state = firewall.read_state()
        assert state is not None
        firewall.teardown()
        firewall.apply(after, queue)
        assert reloaded == settled(firewall)
    kept = compile_ruleset(after, queue).keeps
    listed = {(grant.source, grant.service, grant.rule) for grant in state.grants}
    assert listed == {(grant.source, grant.service, grant.rule) for grant in held if kept(grant)}
