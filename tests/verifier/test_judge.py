"""The decision: what is asked in which order, and what is remembered whatever the answer was."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import rule_lists

from nfpkd.knock.wire import encode_knock
from nfpkd.rules.model import KEY_LENGTH, PortRange, Protocol, Rule, Secret
from nfpkd.verifier import judge as judge_module
from nfpkd.verifier.judge import Judge, Outcome
from nfpkd.verifier.packet import Datagram
from nfpkd.verifier.replay import ReplayMemory

ACCEPTED, REPLAYED, CLOCK_OFF = Outcome.ACCEPTED, Outcome.REPLAYED, Outcome.CLOCK_OFF
RATE_LIMITED, MEMORY_FULL = Outcome.RATE_LIMITED, Outcome.MEMORY_FULL

WALL = 1_700_000_000
NOW = 5000.0
PORT = 40000
SOURCE = bytes([192, 0, 2, 1])


def a_rule(
    name: str = "ssh", key: str = "k", tag: bytes = b"PKD0", skew: int | None = 10, *, old: bool = False
) -> Rule:
    secret = Secret(key.encode().ljust(KEY_LENGTH, b"\0"))
    return Rule(name, secret, tag, (PortRange(22, 22),), (Protocol.TCP,), skew=skew, old=old)


def knock(rule: Rule | None = None, time: int = WALL, number: int = 0, *, old: bool = False) -> Datagram:
    made_with = rule or a_rule()
    random = number.to_bytes(12, "big")
    return Datagram(SOURCE, PORT, encode_knock(made_with.key.reveal(), made_with.tag, PORT, time, random, old=old))


def outcomes(judge: Judge, datagram: Datagram, wall: int = WALL, now: float = NOW) -> dict[str, Outcome]:
    judgements = judge.judge(datagram, wall, now)
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
    assert outcomes(judge, knock(), wall=WALL + 1000) == {"ssh": REPLAYED}


def test_a_full_memory_opens_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "ReplayMemory", lambda: ReplayMemory(2))
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
    (memory,) = judge._memories.values()
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
    assert outcomes(judge, knock(), wall=WALL + 100, now=NOW + 200) == {"ssh": REPLAYED}


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


@given(rule_lists, st.integers(0, 65535))
def test_exactly_the_rules_with_key_and_tag_are_opened(rules: list[Rule], port: int) -> None:
    for made_with in rules:
        key, tag = made_with.key.reveal(), made_with.tag
        payload = encode_knock(key, tag, port, WALL, hashlib.sha256(key).digest()[:12])
        opened = outcomes(Judge(rules), Datagram(SOURCE, port, payload))
        assert opened == {rule.name: ACCEPTED for rule in rules if (rule.key.reveal(), rule.tag) == (key, tag)}
