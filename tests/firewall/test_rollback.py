from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import Kernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json
from nfpkd.firewall.rollback import restore_table
from nfpkd.firewall.ruleset import Options, make_grants
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Reject, Rule, TimedKey, parse_key, parse_tag
from support.fake_kernel import FakeKernel
from support.strategies import options, rule_lists

PLAIN = Rule(
    "plain",
    (TimedKey(parse_key("k")),),
    parse_tag("PKD0"),
    (PortRange(22, 24),),
    (Protocol.TCP,),
    reject=Reject.RESET,
)
RULES = [
    PLAIN,
    replace(PLAIN, name="wide", ports=(PortRange(80, 80),), prefixes=Prefixes(24, 64), knock_ports=(PortRange(5, 9),)),
    replace(PLAIN, name="once", ports=(PortRange(81, 81),), once=True, tag=parse_tag("ONCE")),
    replace(PLAIN, name="slides", ports=(PortRange(82, 82),), extend=True, interfaces=("lo", "eth0")),
]


@pytest.mark.parametrize("queue", [0, 7])
def test_what_was_torn_down_comes_back(kernel: Kernel, queue: int) -> None:
    firewall = Firewall(kernel, list)
    firewall.apply(RULES, Options(queue, ("lo",), 30))
    firewall.grant([grant for rule in RULES for grant in make_grants(rule, "192.0.2.7", 600)])
    before, listing = firewall.read_state(), kernel.list(TABLE)
    assert before is not None
    firewall.teardown()
    kernel.apply(restore_table(listing))
    after = firewall.read_state()
    assert after is not None
    assert after.intact
    # A second may have passed on the real kernel.
    assert {grant._replace(expires=0) for grant in after.grants} == {g._replace(expires=0) for g in before.grants}
    assert replace(after, grants=()) == replace(before, grants=())
    assert not firewall.apply(RULES, Options(queue, ("lo",), 30)).sent


def test_where_there_was_nothing_there_is_nothing_again(kernel: Kernel) -> None:
    firewall = Firewall(kernel, list)
    firewall.apply(RULES, Options())
    kernel.apply(restore_table(None))
    assert kernel.list(TABLE) is None
    kernel.apply(restore_table(None))


def test_a_grant_in_its_last_second_does_not_begin_anew() -> None:
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    firewall.apply(RULES, Options())
    firewall.grant(list(make_grants(PLAIN, "192.0.2.7", 600)))
    kernel.now += 599.5
    listing = kernel.list(TABLE)
    kernel.apply(restore_table(listing))
    state = firewall.read_state()
    assert state is not None
    assert state.grants == ()


@given(before=rule_lists, after=rule_lists, now=options, then=options, last=st.integers(1, 600))
def test_going_back_undoes_any_change(
    before: list[Rule], after: list[Rule], now: Options, then: Options, last: int
) -> None:
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    firewall.apply(before, now)
    firewall.grant([grant for rule in before for grant in make_grants(rule, "2001:db8::7", last + 1)])
    held, listing = firewall.read_state(), kernel.list(TABLE)
    firewall.apply(after, then)
    kernel.apply(restore_table(listing))
    assert firewall.read_state() == held


@pytest.mark.parametrize(
    "described", [{}, {"chain": 5}, {"elem": 5}, {"elem": [5, None, {}, {"elem": 5}, {"elem": {"expires": "x"}}]}]
)
@pytest.mark.parametrize("kind", ["table", "chain", "set", "map", "rule", "counter", "metainfo"])
def test_a_listing_that_is_none_is_for_the_kernel_to_refuse(kind: str, described: Json) -> None:
    """It was read from a file."""
    commands = restore_table([{kind: described}]).commands
    given = [] if kind in ("table", "metainfo") else [{"add": {kind: described}}]
    assert list(commands[3:]) == given
