"""Properties of going from any rules to any others."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfpkd.demo.namespaces import Namespace
from nfpkd.firewall import layout, nft
from nfpkd.firewall.doors import Door, Mode, door_of, parse_door
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.nft import Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, delete_grants
from nfpkd.firewall.state import Grant, State
from nfpkd.rules.model import MAX_WINDOW, Reject, Rule
from support import strategies
from support.fake_kernel import FakeKernel

Rules = list[Rule]
OPTIONS = Options()

# What an admin changes at once: fields that stand by themselves, and those that must fit together.
PARTS = (
    *(("keys",), ("tag",), ("window",), ("description",), ("knock_ports",), ("sources",), ("rate",)),
    *(("ports",), ("protocols",), ("prefixes",), ("interfaces",), ("extend", "once"), ("trigger",)),
)


@st.composite
def changed_rules(draw: st.DrawFn, before: Rules) -> Rules:
    """Rules that keep some of *before*, change some and add some; all agree on reject."""
    way = draw(st.sampled_from([rule.reject for rule in before] or list(Reject)) | st.sampled_from(Reject))
    kept = draw(st.lists(st.sampled_from(before), unique_by=lambda rule: rule.name)) if before else []
    after = []
    for rule in kept:
        other = draw(strategies.rules())
        parts = itertools.chain.from_iterable(draw(st.sets(st.sampled_from(PARTS), max_size=4)))
        changed = replace(rule, reject=way, **{part: getattr(other, part) for part in parts})
        after.append(strategies.settle(changed))
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
        door = door_of(rule, address.version)
        first = ip_network((address, door.prefix), strict=False).network_address
        source = socket.inet_ntop(socket.AF_INET if address.version == 4 else socket.AF_INET6, first.packed)
        interface = draw(st.sampled_from(rule.interfaces)) if rule.interfaces else ""
        timeout = draw(st.integers(1, rule.window))
        expires = draw(st.integers(1, timeout))
        found.append(Grant(source, service, rule.name, timeout, expires, None if door.is_usual else door, interface))
    return list({key(grant): grant for grant in found}.values())


def key(grant: Grant) -> tuple[object, ...]:
    return grant.set_name, grant.interface, grant.source, grant.service


def still_opens(grant: Grant, rules: Rules) -> bool:
    """Tell whether a rule of that name lets the same people in at the same place, and not for less."""
    for rule in rules:
        if rule.name == grant.rule:
            door = door_of(rule, 6 if ":" in grant.source else 4)
            held = grant.door or door._replace(
                prefix=128 if ":" in grant.source else 32, mode=Mode.PLAIN, window=0, by_interface=False
            )
            return (
                rule.covers(grant.service)
                and (grant.interface in rule.interfaces if grant.interface else not rule.interfaces)
                and held.prefix == door.prefix
                # A sliding window must not outlive the rule's.
                and (held.mode is not Mode.EXTEND or (door.mode is Mode.EXTEND and held.window <= door.window))
            )
    return False


def make() -> tuple[FakeKernel, Firewall]:
    kernel = FakeKernel()
    return kernel, Firewall(kernel, list)


def settled(firewall: Firewall) -> State:
    """Return the state, without what the packets leave in it."""
    return replace(read(firewall), grants=(), counters={})


def read(firewall: Firewall) -> State:
    state = firewall.read_state()
    assert state is not None
    return state


def doors_of(grants: Iterable[Grant]) -> set[Door]:
    return {grant.door for grant in grants if grant.door is not None}


@given(reloads(), strategies.options, strategies.options)
def test_a_reload_ends_where_a_fresh_start_does(pair: tuple[Rules, Rules], one: Options, other: Options) -> None:
    before, after = pair
    _, reloaded = make()
    reloaded.apply(before, one)
    reloaded.apply(after, other)
    _, fresh = make()
    fresh.apply(after, other)
    assert settled(reloaded) == settled(fresh)


@given(st.data(), strategies.rule_lists, strategies.options)
def test_unchanged_rules_change_nothing(data: st.DataObject, rules: Rules, options: Options) -> None:
    _, firewall = make()
    firewall.apply(rules, options)
    firewall.grant(data.draw(grants(rules)))
    assert not firewall.plan(rules, options)
    assert not firewall.plan(rules, replace(options, trusted=options.trusted[::-1]))


@given(reloads())
def test_a_reload_never_opens_what_stays_guarded(pair: tuple[Rules, Rules]) -> None:
    before, after = pair
    _, firewall = make()
    firewall.apply(before, OPTIONS)
    old, new = compile_ruleset(before, OPTIONS), compile_ruleset(after, OPTIONS)
    same: dict[str, set[tuple[object, ...]]] = {
        layout.GATED: {service for service, comment in old.gated.items() if new.gated.get(service) == comment},
        layout.GATED_ON: {
            (place.interface, *place.service)
            for place, comment in old.gated_on.items()
            if new.gated_on.get(place) == comment
        },
    }
    for command in firewall.plan(after, OPTIONS).commands:
        [(verb, what)] = command.items()
        [(kind, described)] = what.items()
        # The guard, its sets and the table itself stay; chains of data are rewritten, and sets of doors go.
        match verb, kind:
            case "flush", "chain":
                assert described["name"] in layout.DATA_CHAINS
            case "delete", "set":
                assert parse_door(described["name"]) in old.doors - new.doors
            case "delete", "element":
                deleted = {tuple(key["concat"]) for key in described["elem"]}
                assert not deleted & same.get(described["name"], set())
            case _:
                assert verb == "add"


@given(st.data(), reloads(), st.integers(0, 100))
def test_grants_stay_exactly_as_long_as_their_rule_opens_as_much(
    data: st.DataObject, pair: tuple[Rules, Rules], later: int
) -> None:
    before, after = pair
    held = data.draw(grants(before))
    kernel, firewall = make()
    firewall.apply(before, OPTIONS)
    firewall.grant(held)
    kernel.now += later
    firewall.apply(after, OPTIONS)
    left = (grant._replace(expires=grant.expires - later) for grant in held if grant.expires > later)
    assert set(read(firewall).grants) == {grant for grant in left if still_opens(grant, after)}


@given(st.data(), reloads())
def test_sets_of_doors_are_there_while_a_rule_or_a_grant_needs_them(
    data: st.DataObject, pair: tuple[Rules, Rules]
) -> None:
    before, after = pair
    kernel, firewall = make()
    firewall.apply(before, OPTIONS)
    firewall.grant(data.draw(grants(before)))
    firewall.apply(after, OPTIONS)
    needed = compile_ruleset(after, OPTIONS).doors
    found = read(firewall)
    assert found.doors == needed | doors_of(found.grants)
    assert found.intact
    # Each of them is looked into, as long as it is there.
    looked_into = {rule.comment for door in found.doors for rule in door.rules()}
    assert set(found.chains[layout.DOORS]) == looked_into
    kernel.now += MAX_WINDOW
    firewall.apply(after, OPTIONS)
    assert read(firewall).doors == needed
    assert not firewall.plan(after, OPTIONS)


@given(st.data(), strategies.rule_lists)
def test_grants_survive_a_table_made_anew(data: st.DataObject, rules: Rules) -> None:
    held = data.draw(grants(rules))
    kernel, firewall = make()
    firewall.apply(rules, OPTIONS)
    firewall.grant(held)
    kernel.apply(Transaction((nft.flush_chain(layout.TABLE, "gate"),)))
    firewall.apply(rules, OPTIONS)
    found = read(firewall)
    assert found.intact
    assert set(found.grants) == set(held)


@given(st.data(), reloads(), st.integers(1, 100), st.integers(1, 100))
def test_another_source_limit_costs_no_grant(
    data: st.DataObject, pair: tuple[Rules, Rules], one: int, other: int
) -> None:
    before, after = pair
    held = data.draw(grants(before))
    _, firewall = make()
    firewall.apply(before, Options(source_limit=one))
    firewall.grant(held)
    firewall.apply(after, Options(source_limit=other))
    found = read(firewall)
    assert (found.intact, found.source_limit) == (True, other)
    assert set(found.grants) == {grant for grant in held if still_opens(grant, after)}
    assert found.doors == compile_ruleset(after, OPTIONS).doors | doors_of(found.grants)


@pytest.mark.netns
@settings(max_examples=25)
@given(data=st.data(), pair=reloads(), one=strategies.options, other=strategies.options)
def test_a_real_reload_ends_where_a_fresh_start_does(
    namespace: Namespace,
    shared_kernel: NftablesKernel,
    data: st.DataObject,
    pair: tuple[Rules, Rules],
    one: Options,
    other: Options,
) -> None:
    before, after = pair
    # Time passes here: none of them may run out meanwhile.
    held = [grant._replace(timeout=MAX_WINDOW, expires=MAX_WINDOW) for grant in data.draw(grants(before))]
    firewall = Firewall(shared_kernel, list)
    with namespace.entered(), contextlib.ExitStack() as cleanup:
        cleanup.callback(firewall.teardown)
        firewall.apply(before, one)
        firewall.grant(held)
        firewall.apply(after, other)
        assert not firewall.plan(after, other)
        reloaded = read(firewall)
        shared_kernel.apply(delete_grants(reloaded.grants))
        # Without their grants, sets of doors go at the next occasion.
        firewall.apply(after, other)
        settled_after = settled(firewall)
        firewall.teardown()
        firewall.apply(after, other)
        assert settled_after == settled(firewall)
    assert {key(grant) for grant in reloaded.grants} == {key(grant) for grant in held if still_opens(grant, after)}
