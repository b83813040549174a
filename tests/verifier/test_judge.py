"""The decision: what is asked in which order, and what is remembered whatever the answer was."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.knock.wire import encode_knock
from nfpkd.rules.model import KEY_LENGTH, PortRange, Protocol, Rate, Rule, Secret, TimedKey
from nfpkd.verifier import judge as judge_module
from nfpkd.verifier import replay as replay_module
from nfpkd.verifier.judge import Judge, Outcome, Translated
from nfpkd.verifier.packet import Datagram
from nfpkd.verifier.replay import ReplayMemory
from support.strategies import rule_lists

ACCEPTED, REPLAYED, CLOCK_OFF = Outcome.ACCEPTED, Outcome.REPLAYED, Outcome.CLOCK_OFF
RATE_LIMITED, MEMORY_FULL = Outcome.RATE_LIMITED, Outcome.MEMORY_FULL
KEY_NOT_YET_VALID, KEY_EXPIRED = Outcome.KEY_NOT_YET_VALID, Outcome.KEY_EXPIRED
CUT_OFF = Outcome.CUT_OFF
SOURCE_NOT_ALLOWED = Outcome.SOURCE_NOT_ALLOWED

WALL = 1_700_000_000
NOW = 5000.0
PORT = 40000
SOURCE = bytes([192, 0, 2, 1])


def a_key(text: str = "k", not_before: int | None = None, not_after: int | None = None) -> TimedKey:
    return TimedKey(Secret(text.encode().ljust(KEY_LENGTH, b"\0")), not_before, not_after)


def a_rule(
    name: str = "ssh", key: str = "k", tag: bytes = b"PKD0", skew: int | None = 10, *, old: bool = False, **more: Any
) -> Rule:
    fields = {"keys": (a_key(key),), "ports": (PortRange(22, 22),), "protocols": (Protocol.TCP,), **more}
    return Rule(name, tag=tag, skew=skew, old=old, **fields)


def knock(rule: Rule | None = None, time: int = WALL, number: int = 0, *, old: bool = False) -> Datagram:
    """Return a knock made with the first key of *rule*; knocks of different *number* differ."""
    made_with = rule or a_rule()
    key, random = made_with.keys[0].secret.reveal(), number.to_bytes(12, "big")
    return Datagram(SOURCE, PORT, encode_knock(key, made_with.tag, PORT, time, random, old=old))


def outcomes(
    judge: Judge, datagram: Datagram, wall: int = WALL, now: float = NOW, interface: str = ""
) -> dict[str, Outcome]:
    judgements = judge.judge(datagram, wall, now, interface)
    found = {judgement.rule.name: judgement.outcome for judgement in judgements}
    assert len(found) == len(judgements)
    return found


def test_a_genuine_knock_opens_its_rule() -> None:
    rule = a_rule()
    ((found, outcome, offset),) = Judge([rule]).judge(knock(), WALL, NOW)
    assert found is rule
    assert outcome is ACCEPTED
    assert offset == 0


def test_without_rules_nothing_is_a_knock() -> None:
    assert Judge().judge(knock(), WALL, NOW) == []


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(knock()._replace(payload=knock().payload[:-1]), id="too short"),
        pytest.param(knock()._replace(payload=knock().payload + b"\0"), id="too long"),
        pytest.param(knock()._replace(payload=b""), id="empty"),
        pytest.param(knock()._replace(payload=b"PKD0"), id="no more than a tag"),
        pytest.param(knock()._replace(payload=bytes(56)), id="zeros"),
        pytest.param(knock(a_rule(tag=b"PKD1")), id="another tag"),
        pytest.param(knock(a_rule(key="other")), id="another key"),
        pytest.param(knock()._replace(port=PORT + 1), id="another port"),
        pytest.param(knock()._replace(payload=knock().payload[:24] + bytes(32)), id="another digest"),
        pytest.param(knock(old=True), id="the old form"),
    ],
)
def test_what_fits_no_rule_is_no_knock_and_leaves_no_trace(datagram: Datagram) -> None:
    judge = Judge([a_rule()])
    for _ in range(3):
        assert judge.judge(datagram, WALL, NOW) == []
    assert outcomes(judge, knock()) == {"ssh": ACCEPTED}


@pytest.mark.parametrize("payload", [bytes(57), b"NONE" + bytes(52)])
def test_no_digest_is_made_for_a_wrong_length_or_tag(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    def forbidden(*_: object, **__: object) -> bytes:
        raise AssertionError("a digest was made")

    judge = Judge([a_rule()])
    monkeypatch.setattr(judge_module, "make_digest", forbidden)
    assert judge.judge(Datagram(SOURCE, PORT, payload), WALL, NOW) == []


def test_a_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def record(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return first == second

    monkeypatch.setattr(hmac, "compare_digest", record)
    assert outcomes(Judge([a_rule()]), knock()) == {"ssh": ACCEPTED}
    assert compared == [(knock().payload[24:], knock().payload[24:])]


def test_a_knock_is_good_once() -> None:
    judge = Judge([a_rule()])
    assert outcomes(judge, knock()) == {"ssh": ACCEPTED}
    assert outcomes(judge, knock()) == {"ssh": REPLAYED}
    assert outcomes(judge, knock(number=1), now=NOW + 5) == {"ssh": ACCEPTED}


def test_a_knock_is_good_once_from_whatever_source() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    assert outcomes(judge, knock()._replace(source=bytes(16))) == {"ssh": REPLAYED}


def test_an_old_knock_is_good_once_for_whatever_port() -> None:
    judge = Judge([a_rule(old=True)])
    assert outcomes(judge, knock(old=True)) == {"ssh": ACCEPTED}
    assert outcomes(judge, knock(old=True)._replace(port=PORT + 1), now=NOW + 5) == {"ssh": REPLAYED}


@pytest.mark.parametrize(
    ("skew", "offset", "outcome"),
    [
        (10, 10, ACCEPTED),
        (10, -10, ACCEPTED),
        (10, 11, CLOCK_OFF),
        (10, -11, CLOCK_OFF),
        (1, 2, CLOCK_OFF),
        (1, -1, ACCEPTED),
        (3600, -3600, ACCEPTED),
        (None, -WALL, ACCEPTED),
        (None, 2**64 - 1 - WALL, ACCEPTED),
        (31536000, 2**64 - 1 - WALL, CLOCK_OFF),
    ],
)
def test_the_clock(skew: int | None, offset: int, outcome: Outcome) -> None:
    rule = a_rule(skew=skew)
    ((_, found, shown),) = Judge([rule]).judge(knock(rule, WALL + offset), WALL, NOW)
    assert found is outcome
    assert shown == offset


@pytest.mark.parametrize(
    ("stamp", "skew", "outcome"),
    [
        (-4, 60, CUT_OFF),
        (-3, 60, CUT_OFF),
        (-2, 60, ACCEPTED),
        (0, 60, ACCEPTED),
        (60, 60, ACCEPTED),
        (-4, None, ACCEPTED),
    ],
)
def test_what_was_stamped_before_the_boot_is_refused(stamp: int, skew: int | None, outcome: Outcome) -> None:
    rule = a_rule(skew=skew)
    judge = Judge([rule])
    assert outcomes(judge, knock(rule, WALL + stamp), now=5.0) == {"ssh": outcome}
    # Whoever saw it on its way gets nothing for it, either.
    assert outcomes(judge, knock(rule, WALL + stamp), now=500.0) == {"ssh": REPLAYED}


@given(
    crash=st.floats(WALL, WALL + 5),
    ahead=st.integers(-70, 70),
    skew=st.integers(1, 70) | st.none(),
    off=st.floats(0, 10),
    since_boot=st.floats(0, 200),
)
def test_what_a_power_failure_may_take_along_opens_nothing_afterwards(
    crash: float, ahead: int, skew: int | None, off: float, since_boot: float
) -> None:
    rule = a_rule(skew=skew)
    before = Judge([rule])
    outcome = outcomes(before, knock(rule, int(crash) + ahead), int(crash))["ssh"]
    lost = before.memory.changes()
    assert len(lost.seen) == 1
    if outcome is ACCEPTED and not lost.at_once:
        again = outcomes(Judge([rule]), knock(rule, int(crash) + ahead), int(crash + off + since_boot), since_boot)
        assert again["ssh"] in (CUT_OFF, CLOCK_OFF)
    assert lost.at_once == (skew is None or ahead > 1)


def test_the_rate() -> None:
    judge = Judge([a_rule()])
    found = [outcomes(judge, knock(number=n), now=NOW + n)["ssh"] for n in range(6)]
    assert found == [ACCEPTED, RATE_LIMITED, RATE_LIMITED, RATE_LIMITED, RATE_LIMITED, ACCEPTED]


def test_a_knock_refused_for_its_rate_is_remembered() -> None:
    judge = Judge([a_rule(skew=None)])
    outcomes(judge, knock())
    assert outcomes(judge, knock(number=1)) == {"ssh": RATE_LIMITED}
    assert outcomes(judge, knock(number=1), now=NOW + 60) == {"ssh": REPLAYED}


@pytest.mark.parametrize("ahead", [3600, 11])
def test_a_knock_refused_for_its_clock_is_remembered_until_its_time_comes(ahead: int) -> None:
    judge = Judge([a_rule()])
    assert outcomes(judge, knock(time=WALL + ahead)) == {"ssh": CLOCK_OFF}
    assert outcomes(judge, knock(time=WALL + ahead), wall=WALL + ahead, now=NOW + ahead) == {"ssh": REPLAYED}


def test_a_knock_refused_for_its_age_is_remembered_when_the_clock_is_set_back() -> None:
    judge = Judge([a_rule()])
    assert outcomes(judge, knock(time=WALL - 11)) == {"ssh": CLOCK_OFF}
    assert outcomes(judge, knock(time=WALL - 11), wall=WALL - 11) == {"ssh": REPLAYED}


def test_a_knock_with_a_wrong_clock_uses_up_no_rate() -> None:
    judge = Judge([a_rule()])
    assert outcomes(judge, knock(time=WALL - 100)) == {"ssh": CLOCK_OFF}
    assert outcomes(judge, knock()) == {"ssh": ACCEPTED}


def test_a_replay_uses_up_no_rate() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    assert outcomes(judge, knock(), now=NOW + 5) == {"ssh": REPLAYED}
    assert outcomes(judge, knock(number=1), now=NOW + 5) == {"ssh": ACCEPTED}


def test_a_replay_is_called_one_also_when_its_clock_is_off_by_now() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    assert outcomes(judge, knock(), wall=WALL + 10) == {"ssh": REPLAYED}
    # So old that it was forgotten, and with it everything as old.
    assert outcomes(judge, knock(), wall=WALL + 1000) == {"ssh": CUT_OFF}


def test_a_full_memory_opens_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "ReplayMemory", lambda: ReplayMemory(2))
    judge = Judge([a_rule(), a_rule("other", "other key")])
    found = [outcomes(judge, knock(number=n), now=NOW + 10 * n)["ssh"] for n in range(3)]
    assert found == [ACCEPTED, ACCEPTED, MEMORY_FULL]
    # One key's knocks are no burden to another's.
    assert outcomes(judge, knock(a_rule("other", "other key"))) == {"other": ACCEPTED}
    later = WALL + 11
    assert outcomes(judge, knock(time=later), wall=later, now=NOW + 50) == {"ssh": ACCEPTED}


def test_one_key_opens_all_rules_that_have_it() -> None:
    judge = Judge([a_rule("a"), a_rule("b"), a_rule("other", "other key"), a_rule("elsewhere", tag=b"PKD1")])
    assert outcomes(judge, knock()) == {"a": ACCEPTED, "b": ACCEPTED}
    assert outcomes(judge, knock()) == {"a": REPLAYED, "b": REPLAYED}


def test_rules_with_one_key_have_clocks_and_rates_of_their_own() -> None:
    judge = Judge([a_rule("narrow", skew=1), a_rule("wide", skew=100), a_rule("any", skew=None)])
    late = outcomes(judge, knock(time=WALL - 50))
    assert late == {"narrow": CLOCK_OFF, "wide": ACCEPTED, "any": ACCEPTED}
    assert outcomes(judge, knock()) == {"narrow": ACCEPTED, "wide": RATE_LIMITED, "any": RATE_LIMITED}


def test_the_memory_of_a_key_is_as_long_as_its_widest_skew() -> None:
    judge = Judge([a_rule("narrow", skew=1), a_rule("wide", skew=100)])
    outcomes(judge, knock())
    outcomes(judge, knock(number=1), wall=WALL + 99, now=NOW + 99)
    assert outcomes(judge, knock(), wall=WALL + 99, now=NOW + 200)["wide"] is REPLAYED


def test_several_keys_may_share_a_tag() -> None:
    rules = [a_rule(name, f"key of {name}") for name in "abc"]
    judge = Judge(rules)
    for rule in rules:
        assert outcomes(judge, knock(rule)) == {rule.name: ACCEPTED}


def test_a_key_has_one_memory_under_all_its_tags() -> None:
    """The tag is in the digest, so this only says that tags do not multiply what a key may store."""
    judge = Judge([a_rule("a", tag=b"AAAA"), a_rule("b", tag=b"BBBB")])
    assert outcomes(judge, knock(a_rule(tag=b"AAAA"))) == {"a": ACCEPTED}
    assert outcomes(judge, knock(a_rule(tag=b"BBBB"))) == {"b": ACCEPTED}
    (memory,) = judge.memory._memories.values()
    assert len(memory) == 2


def test_the_old_form_opens_only_the_rules_that_say_so() -> None:
    judge = Judge([a_rule("new"), a_rule("old", old=True)])
    assert outcomes(judge, knock(old=True)) == {"old": ACCEPTED}
    assert outcomes(judge, knock(number=1), now=NOW + 5) == {"new": ACCEPTED, "old": ACCEPTED}


def test_replaced_rules_are_the_ones_that_are_judged_by() -> None:
    judge = Judge([a_rule("before")])
    judge.replace_rules([a_rule("after", "another key")])
    assert outcomes(judge, knock()) == {}
    assert outcomes(judge, knock(a_rule(key="another key"))) == {"after": ACCEPTED}


def test_the_memory_stays_when_rules_are_replaced() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    judge.replace_rules([a_rule("renamed", skew=100)])
    assert outcomes(judge, knock()) == {"renamed": REPLAYED}


def test_a_key_that_comes_back_does_not_bring_its_old_knocks() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    judge.replace_rules([])
    assert outcomes(judge, knock()) == {}
    judge.replace_rules([a_rule()])
    assert outcomes(judge, knock(), now=NOW + 60) == {"ssh": REPLAYED}


def test_a_rate_stays_when_rules_are_replaced() -> None:
    judge = Judge([a_rule()])
    outcomes(judge, knock())
    judge.replace_rules([replace(a_rule(), window=5), a_rule("new")])
    assert outcomes(judge, knock(number=1)) == {"ssh": RATE_LIMITED, "new": ACCEPTED}


def test_a_skew_that_grows_with_new_rules_revives_nothing() -> None:
    judge = Judge([a_rule(skew=1)])
    outcomes(judge, knock())
    outcomes(judge, knock(time=WALL + 100), wall=WALL + 100, now=NOW + 100)
    judge.replace_rules([a_rule(skew=None)])
    assert outcomes(judge, knock(), wall=WALL + 100, now=NOW + 200) == {"ssh": CUT_OFF}


@pytest.mark.parametrize(
    ("not_before", "not_after", "outcome"),
    [
        (None, None, ACCEPTED),
        (WALL, WALL, ACCEPTED),
        (WALL - 100, None, ACCEPTED),
        (None, WALL + 100, ACCEPTED),
        (WALL + 1, None, KEY_NOT_YET_VALID),
        (WALL + 1, WALL + 2, KEY_NOT_YET_VALID),
        (None, WALL - 1, KEY_EXPIRED),
        (WALL - 2, WALL - 1, KEY_EXPIRED),
        (None, 0, KEY_EXPIRED),
    ],
)
def test_the_times_of_a_key_count_by_our_clock(not_before: int | None, not_after: int | None, outcome: Outcome) -> None:
    rule = a_rule(keys=(a_key("k", not_before, not_after),))
    # What the client's clock says decides nothing here, or an old key could be used by stamping knocks back.
    for number, offset in enumerate((0, 7, -7)):
        knocked = knock(rule, WALL + offset, number)
        assert outcomes(Judge([rule]), knocked) == {"ssh": outcome}


def test_old_and_new_key_overlap_while_clients_move() -> None:
    old, new = a_key("old key", None, WALL + 10), a_key("new key", WALL)
    judge = Judge([a_rule(keys=(old, new), rate=Rate(1, 1, 1))])

    def knock_with(key: str, wall: int) -> dict[str, Outcome]:
        return outcomes(judge, knock(a_rule(key=key), wall), wall, NOW + wall - WALL)

    assert knock_with("old key", WALL - 2) == {"ssh": ACCEPTED}
    assert knock_with("new key", WALL - 1) == {"ssh": KEY_NOT_YET_VALID}
    assert knock_with("old key", WALL + 1) == {"ssh": ACCEPTED}
    assert knock_with("new key", WALL + 2) == {"ssh": ACCEPTED}
    assert knock_with("old key", WALL + 10) == {"ssh": ACCEPTED}
    assert knock_with("old key", WALL + 11) == {"ssh": KEY_EXPIRED}
    assert knock_with("new key", WALL + 12) == {"ssh": ACCEPTED}


def test_keys_of_one_rule_share_its_rate_and_not_their_memory() -> None:
    judge = Judge([a_rule(keys=(a_key("a"), a_key("b")))])
    assert outcomes(judge, knock(a_rule(key="a"))) == {"ssh": ACCEPTED}
    assert outcomes(judge, knock(a_rule(key="b"))) == {"ssh": RATE_LIMITED}
    assert len(judge.memory._memories) == 2


def test_one_key_may_have_other_times_in_another_rule() -> None:
    judge = Judge([a_rule("short", keys=(a_key("k", None, WALL - 1),)), a_rule("long"), a_rule("other", "other key")])
    assert outcomes(judge, knock()) == {"short": KEY_EXPIRED, "long": ACCEPTED}


@pytest.mark.parametrize(
    ("source", "allowed", "outcome"),
    [
        ("192.0.2.1", ["192.0.2.1"], ACCEPTED),
        ("192.0.2.1", ["192.0.2.0/24"], ACCEPTED),
        ("192.0.2.1", ["198.51.100.0/24", "2001:db8::/32", "192.0.0.0/8"], ACCEPTED),
        ("192.0.2.1", ["0.0.0.0/0"], ACCEPTED),
        ("192.0.2.1", ["192.0.2.2"], SOURCE_NOT_ALLOWED),
        ("192.0.3.0", ["192.0.2.0/24"], SOURCE_NOT_ALLOWED),
        ("192.0.2.1", ["::/0"], SOURCE_NOT_ALLOWED),
        ("2001:db8::1", ["2001:db8::/32"], ACCEPTED),
        ("2001:db9::1", ["2001:db8::/32"], SOURCE_NOT_ALLOWED),
        ("2001:db8::1", ["0.0.0.0/0"], SOURCE_NOT_ALLOWED),
        ("::ffff:192.0.2.1", ["192.0.2.1"], SOURCE_NOT_ALLOWED),
    ],
)
def test_who_may_knock(source: str, allowed: list[str], outcome: Outcome) -> None:
    judge = Judge([a_rule(sources=tuple(map(ipaddress.ip_network, allowed))), a_rule("anybody")])
    knocked = knock()._replace(source=ipaddress.ip_address(source).packed)
    assert outcomes(judge, knocked) == {"ssh": outcome, "anybody": ACCEPTED}


# Each knock has all that is wrong from its line on; what is asked first is what it hears.
@pytest.mark.parametrize(
    ("wrong", "outcome"),
    [
        ({"replay", "key", "source", "clock", "rate"}, REPLAYED),
        ({"key", "source", "clock", "rate"}, KEY_EXPIRED),
        ({"source", "clock", "rate"}, SOURCE_NOT_ALLOWED),
        ({"clock", "rate"}, CLOCK_OFF),
        ({"rate"}, RATE_LIMITED),
        (set(), ACCEPTED),
    ],
)
def test_what_is_asked_first(wrong: set[str], outcome: Outcome) -> None:
    allowed = "198.51.100.1" if "source" in wrong else "192.0.2.1"
    not_after = WALL + 50 if "key" in wrong else None
    rule = a_rule(keys=(a_key("k", None, not_after),), sources=(ipaddress.ip_network(allowed),), skew=200)
    judge = Judge([replace(rule, sources=())])
    if "rate" in wrong:
        assert outcomes(judge, knock(number=1), WALL, NOW + 100) == {"ssh": ACCEPTED}
    stamped = WALL - 200 if "clock" in wrong else WALL
    if "replay" in wrong:
        outcomes(judge, knock(time=stamped), WALL, NOW + 100)
    judge.replace_rules([rule])
    assert outcomes(judge, knock(time=stamped), WALL + 100, NOW + 100) == {"ssh": outcome}


@pytest.mark.parametrize(
    "refusing",
    [
        a_rule(keys=(a_key("k", WALL + 10),)),
        a_rule(keys=(a_key("k", None, WALL - 1),)),
        a_rule(sources=(ipaddress.ip_network("::/0"),)),
    ],
    ids=["not yet valid", "expired", "not from there"],
)
def test_a_knock_refused_for_its_key_or_source_is_remembered_and_uses_up_no_rate(refusing: Rule) -> None:
    judge = Judge([refusing])
    assert ACCEPTED not in outcomes(judge, knock()).values()
    judge.replace_rules([a_rule()])
    assert outcomes(judge, knock()) == {"ssh": REPLAYED}
    assert outcomes(judge, knock(number=1)) == {"ssh": ACCEPTED}


@pytest.mark.parametrize(
    ("ports", "heard"),
    [
        ([], True),
        ([(PORT, PORT)], True),
        ([(1, 2), (PORT - 5, PORT)], True),
        ([(PORT, 65535)], True),
        ([(PORT + 1, 65535), (1, PORT - 1)], False),
    ],
)
def test_a_knock_at_another_port_than_the_rules_is_no_knock(ports: list[tuple[int, int]], heard: bool) -> None:
    rule = a_rule(knock_ports=tuple(PortRange(*found) for found in ports))
    judge = Judge([rule])
    assert outcomes(judge, knock()) == ({"ssh": ACCEPTED} if heard else {})
    if not heard:
        # It left no trace: at the right port the same datagram would be another one, whose digest has that port.
        judge.replace_rules([a_rule()])
        assert outcomes(judge, knock()) == {"ssh": ACCEPTED}


@pytest.mark.parametrize(
    ("interfaces", "came_by", "heard"),
    [
        ((), "", True),
        ((), "eth0", True),
        (("eth0",), "eth0", True),
        (("wg0", "eth0"), "eth0", True),
        (("eth0",), "eth1", False),
        (("eth0",), "eth", False),
        (("eth0",), "", False),
    ],
)
def test_a_knock_by_another_interface_than_the_rules_is_no_knock(
    interfaces: tuple[str, ...], came_by: str, heard: bool
) -> None:
    judge = Judge([a_rule(interfaces=interfaces)])
    assert outcomes(judge, knock(), interface=came_by) == ({"ssh": ACCEPTED} if heard else {})
    if not heard:
        assert outcomes(judge, knock(), interface=interfaces[0]) == {"ssh": ACCEPTED}


def test_only_the_rules_that_hear_a_knock_are_opened() -> None:
    elsewhere = (PortRange(PORT + 1, PORT + 1),)
    judge = Judge(
        [
            a_rule("anywhere"),
            a_rule("at another port", knock_ports=elsewhere),
            a_rule("on eth0", interfaces=("eth0",)),
            a_rule("on eth1", interfaces=("eth1",)),
            a_rule("another key", "other key"),
        ]
    )
    assert outcomes(judge, knock(), interface="eth0") == {"anywhere": ACCEPTED, "on eth0": ACCEPTED}


def test_a_rate_of_its_own() -> None:
    judge = Judge([a_rule(rate=Rate(knocks=2, per=60, burst=3)), a_rule("usual")])
    found = [outcomes(judge, knock(number=n), now=NOW + now) for n, now in enumerate((0, 0, 0, 0, 29, 30, 31))]
    limited = RATE_LIMITED
    assert [f["ssh"] for f in found] == [ACCEPTED, ACCEPTED, ACCEPTED, limited, limited, ACCEPTED, limited]
    assert [f["usual"] for f in found] == [ACCEPTED, limited, limited, limited, ACCEPTED, limited, limited]


@pytest.mark.parametrize(
    ("rate", "outcome"),
    [
        (Rate(1, 60, 1), RATE_LIMITED),
        (Rate(1, 61, 1), ACCEPTED),
        (Rate(2, 60, 1), ACCEPTED),
        (Rate(1, 60, 2), ACCEPTED),
    ],
)
def test_a_bucket_stays_when_rules_are_replaced_unless_its_rate_changed(rate: Rate, outcome: Outcome) -> None:
    judge = Judge([a_rule(rate=Rate(1, 60, 1))])
    assert outcomes(judge, knock()) == {"ssh": ACCEPTED}
    judge.replace_rules([a_rule(rate=rate, window=7, description="edited")])
    assert outcomes(judge, knock(number=1), now=NOW + 1) == {"ssh": outcome}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 20), st.integers(-20, 20), st.sampled_from([1, 5, None])))
)
def test_no_knock_is_ever_accepted_twice(events: list[tuple[int, int, int, int | None]]) -> None:
    """Whatever the wall clock does and however the rules change in between."""
    judge = Judge()
    accepted = set()
    for step, (number, time, wall, skew) in enumerate(events):
        judge.replace_rules([a_rule(skew=skew)])
        datagram = knock(time=WALL + time, number=number)
        if outcomes(judge, datagram, WALL + wall, NOW + 10 * step) == {"ssh": ACCEPTED}:
            assert datagram not in accepted
            accepted.add(datagram)


@given(rule_lists, st.binary(max_size=80), st.integers(0, 65535))
def test_no_payload_is_a_crash_nor_a_knock(rules: list[Rule], payload: bytes, port: int) -> None:
    judge = Judge(rules)
    for tag in {rule.tag for rule in rules} | {b""}:
        assert judge.judge(Datagram(SOURCE, port, tag + payload), WALL, NOW) == []


@given(rule_lists, st.integers(0, 65535), st.sampled_from(["", "eth0", "lo"]))
def test_exactly_the_rules_that_hear_key_and_tag_are_judged(rules: list[Rule], port: int, interface: str) -> None:
    # The loader lets no rule have a key twice.
    rules = [rule for rule in rules if len({key.secret for key in rule.keys}) == len(rule.keys)]
    pairs = {(key.secret.reveal(), rule.tag) for rule in rules for key in rule.keys}
    for key, tag in pairs:
        payload = encode_knock(key, tag, port, WALL, hashlib.sha256(key).digest()[:12])
        judgements = Judge(rules).judge(Datagram(SOURCE, port, payload), WALL, NOW, interface)
        assert {judgement.rule.name for judgement in judgements} == {
            rule.name
            for rule in rules
            if rule.tag == tag
            and key in [known.secret.reveal() for known in rule.keys]
            and (not rule.interfaces or interface in rule.interfaces)
            and (not rule.knock_ports or any(first <= port <= last for first, last in rule.knock_ports))
        }
        for rule, outcome, _ in judgements:
            assert outcome in (ACCEPTED, KEY_NOT_YET_VALID, KEY_EXPIRED, SOURCE_NOT_ALLOWED)
            assert outcome is ACCEPTED or rule.sources or any(known[1:] != (None, None) for known in rule.keys)


@pytest.mark.parametrize("port", [1, 62201, 65535])
def test_a_knock_whose_port_was_translated_is_known_by_the_port_it_was_sent_to(port: int) -> None:
    rule = a_rule()
    sent = encode_knock(rule.keys[0].secret.reveal(), rule.tag, port, WALL, bytes(12))
    judge = Judge([rule])
    arrived = Datagram(SOURCE, 4711, sent)
    assert judge.judge(arrived, WALL, NOW) == []
    assert judge.find_translated(arrived, WALL) == Translated(rule, port)


@pytest.mark.parametrize("offset", [-11, 11])
def test_what_is_too_old_to_be_good_anywhere_is_not_looked_into(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = a_rule()
    sent = encode_knock(rule.keys[0].secret.reveal(), rule.tag, 62201, WALL + offset, bytes(12))
    judge = Judge([rule])
    monkeypatch.setattr(judge_module, "make_digest", None)
    assert judge.find_translated(Datagram(SOURCE, 4711, sent), WALL) is None


def test_a_knock_at_a_port_where_its_rule_takes_none_was_not_translated() -> None:
    rule = a_rule(knock_ports=(PortRange(1, 1),))
    assert Judge([rule]).find_translated(knock(rule), WALL) is None


@pytest.mark.parametrize("payload", [b"PKD0" + WALL.to_bytes(8, "little") + bytes(44), b"PKD0", b""])
def test_garbage_was_sent_to_no_port(payload: bytes) -> None:
    assert Judge([a_rule()]).find_translated(Datagram(SOURCE, 4711, payload), WALL) is None
