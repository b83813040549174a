"""What is allowed in rules and still worth a second thought."""

from __future__ import annotations

import base64
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import Problem
from nfpkd.rules.build import build_rules
from nfpkd.rules.lint import MAX_RULES_PER_TAG, MIN_ENTROPY, estimate_entropy, find_smells
from nfpkd.rules.model import Protocol, Service
from nfpkd.rules.positions import Document

GOOD = "0x0d5e2a0f8be47c91d3368a77f14ec2b96a1f"
OTHER = "0xf3a95b1c60d27e84990b4de8215f7ac3be48"
THIRD = "0x7b12c8e6fd3409a55ec17d9082b34fa61d7e"
SSH = {"name": "ssh", "key": GOOD, "port": 22, "protocol": "tcp"}
TWO = SSH | {"name": "two"}

NOW = 1_800_000_000
PAST = "2027-01-15T07:59:59Z"
PRESENT = "2027-01-15T08:00:00Z"


def smells(*rules: dict[str, object], listening: set[Service] | None = None) -> list[Problem]:
    built = build_rules(Document("rules.json", json.dumps(rules)))
    return list(find_smells(built.rules, now=NOW, listening=listening))


def smell(*rules: dict[str, object], listening: set[Service] | None = None) -> str:
    (found,) = smells(*rules, listening=listening)
    return found.message


def test_a_good_rule_has_none() -> None:
    assert smells(SSH, listening={Service(Protocol.TCP, 22)}) == []


@pytest.mark.parametrize(
    ("key", "bits"),
    [
        ("0x0d5e2a0f8be47c91d3368a77f14ec2b9", 128),
        ("0x0d5e2a0f8be47c91d3368a77f14ec2b", 124),
        ("0x1", 4),
        # Zero-filled, and other patterns.
        ("0x5b1e2c3d" + "00" * 36, 48),
        ("0x" + "deadbeef" * 10, 40),
        ("0x00112233445566778899aabbccddeeff", 16),
        # Text in hex is text.
        ("0x" + b"secret words".hex(), 24),
        ("k", 2),
        ("secret words", 24),
        ("correct horse battery staple words so", 74),
        ("CorrectHorseBatteryStaple2024!", 83),
        ("a" * 40, 9),
        ("1234567890" * 4, 37),
        ("ключ" * 5, 35),
        # openssl rand -hex 16 and -base64 16, without 0x in front.
        ("0d5e2a0f8be47c91d3368a77f14ec2b9", 128),
        ("DV4qD4vkfJHTNop38U7CuQ==", 158),
    ],
)
def test_the_estimate_of_entropy(key: str, bits: int) -> None:
    assert round(estimate_entropy(key)) == bits


@pytest.mark.parametrize("seed", range(20))
def test_random_keys_are_strong_however_they_are_written(seed: int) -> None:
    raw = random.Random(seed).randbytes(32)
    assert estimate_entropy(f"0x{raw.hex()}") == 256
    assert estimate_entropy(raw[:20].hex()) >= MIN_ENTROPY
    assert estimate_entropy(base64.b32encode(raw[:25]).decode()) >= MIN_ENTROPY


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: text[:2].lower() != "0x"))
def test_any_text_has_an_estimate(text: str) -> None:
    assert 0 < estimate_entropy(text) <= 8 * 40


def test_a_weak_key_is_told_with_its_place_and_remedy_and_without_itself() -> None:
    text = '[{"name": "ssh", "port": 22,\n  "key": "secret words"}]'
    (found,) = find_smells(build_rules(Document("x.json", text)).rules, now=NOW)
    assert found[:3] == ("x.json", 2, 10)
    assert found.message.startswith('"key" has about 24 bits of entropy')
    assert '"nfpkd keygen"' in found.message
    assert "secret" not in found.message


@pytest.mark.parametrize(("entry", "column"), [('"secret words"', 37), ('{"key": "secret words"}', 45)])
def test_a_weak_key_among_several_is_told_at_itself(entry: str, column: int) -> None:
    text = f'[{{"name": "ssh", "port": 22, "keys":["{GOOD}",\n{" " * 36}{entry}]}}]'
    (found,) = find_smells(build_rules(Document("x.json", text)).rules, now=NOW)
    assert found[:3] == ("x.json", 2, column)


def test_a_key_that_is_past() -> None:
    (found,) = smells(SSH | {"key": "weak, but that no longer matters", "not-after": PAST})
    assert found.message == (f'"not-after" was {PAST}, and nobody can open this rule any more: give it a new key')
    assert smells(SSH | {"not-after": PRESENT}) == []
    keys = [{"key": GOOD, "not-after": PAST}, OTHER]
    rule = {"name": "ssh", "port": 22, "keys": keys}
    (found,) = smells(rule)
    assert found.message == f'"not-after" was {PAST}, remove the key'
    assert json.dumps([rule])[found.column - 1 :].startswith(f'"{PAST}"')


def test_a_clock_that_is_ignored() -> None:
    assert smell(SSH | {"skew": -1}).startswith('"skew" of -1 takes a knock of any age')


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        ({"ipv4": 15}, '"grant" of /15 lets in 2^17 addresses at one knock'),
        ({"ipv6": 31}, '"grant" of /31 lets in 2^97 addresses at one knock'),
        ({"ipv4": 16, "ipv6": 32}, None),
    ],
)
def test_grants_for_half_the_world(grant: dict[str, int], said: str | None) -> None:
    found = smells(SSH | {"grant": grant})
    assert [problem.message.split(",")[0] for problem in found] == ([said] if said else [])


def listen(*services: str) -> set[Service]:
    pairs = (service.split("/") for service in services)
    return {Service(Protocol[protocol.upper()], int(port)) for port, protocol in pairs}


@pytest.mark.parametrize(
    ("port", "protocol", "listening", "unused"),
    [
        (22, "tcp", listen("22/tcp"), []),
        (22, "tcp", listen("22/udp"), ["22/tcp"]),
        (22, "tcp", set(), ["22/tcp"]),
        (22, "any", listen("22/tcp"), []),
        (22, "any", listen("22/udp"), []),
        (22, "any", set(), ["22/tcp+udp"]),
        (22, ["udp", "tcp"], listen("22/udp"), []),
        # What listens there is not known.
        (22, "sctp", set(), []),
        (22, ["tcp", "sctp"], set(), []),
        ([22, "80-81", 443], "tcp", listen("81/tcp"), ["22/tcp", "443/tcp"]),
        # Services in ranges come and go.
        ("8000-8100", "tcp", listen("8101/tcp", "7999/tcp", "8050/udp"), []),
    ],
)
def test_ports_that_nothing_listens_on(
    port: object, protocol: object, listening: set[Service], unused: list[str]
) -> None:
    found = smells(SSH | {"port": port, "protocol": protocol}, listening=listening)
    assert [re.findall(r"nothing listens on (\S+) here", problem.message)[0] for problem in found] == unused


def test_an_unused_port_of_several_is_told_at_itself() -> None:
    rule = SSH | {"port": [22, 443]}
    (found,) = smells(rule, listening=listen("22/tcp"))
    assert json.dumps([rule])[found.column - 1 :].startswith("443")


def test_a_port_may_wait_for_a_command_that_starts_its_service() -> None:
    assert smells(SSH | {"ext-command": "/bin/start"}, listening=set()) == []


def test_nothing_is_said_of_ports_if_it_is_not_known_what_listens() -> None:
    assert smells(SSH, listening=None) == []


def many(count: int, **fields: object) -> list[dict[str, object]]:
    return [
        SSH | {"name": f"r{number}", "port": 1000 + number, "key": f"{GOOD}{number:04x}", **fields}
        for number in range(count)
    ]


def test_too_many_rules_for_one_tag_are_told_once_at_the_first_that_is_too_many() -> None:
    assert smells(*many(MAX_RULES_PER_TAG)) == []
    rules = many(MAX_RULES_PER_TAG + 3, tag="SSH1")
    (found,) = smells(*rules)
    assert found.message.startswith(f"{len(rules)} rules have the tag SSH1, and whatever comes with it is tried")
    before = json.dumps(rules)[: found.column - 1]
    assert before.count('"name"') == MAX_RULES_PER_TAG + 1
    assert before.endswith('"tag": ')


def test_a_key_of_two_rules() -> None:
    said = smell(SSH, TWO | {"port": 80})
    assert said.startswith('rules "two" and "ssh" (rules.json:1) have the same "key" and tag, so one knock opens both')
    assert GOOD[2:10] not in said
    said = smell(SSH, TWO | {"tag": "TWO2"})
    assert said.startswith('rules "two" and "ssh" (rules.json:1) have the same "key", so who may open one may')
    said = smell(SSH, {"name": "run", "ext-command": "/bin/x", "keys": [OTHER, GOOD]})
    assert said.startswith('rules "run" and "ssh" (rules.json:1) have the same "keys" and tag')


def test_a_shared_key_is_told_once_for_each_rule() -> None:
    keys = {"keys": [GOOD, OTHER]}
    one, two = ({"name": name, "port": port, **keys} for name, port in (("one", 1), ("two", 2)))
    assert len(smells(one, two)) == 1
    assert len(smells(one, two, {"name": "three", "port": 3, **keys})) == 2


def test_keys_that_are_shared_in_order() -> None:
    # In one rule's rotation, and between rules that open the same port on other terms.
    assert smells({"name": "ssh", "port": 22, "keys": [{"key": GOOD, "not-after": PRESENT}, OTHER]}) == []
    assert smells(SSH | {"interfaces": ["eth0"]}, TWO | {"interfaces": ["eth1"], "window": 10}) == []
    # Written in another way.
    assert (
        smells(SSH | {"port": ["20-21", 22], "interfaces": ["a"]}, TWO | {"port": "20-22", "interfaces": ["b"]}) == []
    )
    # A key that is past opens nothing.
    old = [{"key": GOOD, "not-after": PAST}, OTHER]
    assert [found.message.split(",")[1] for found in smells(SSH, {"name": "two", "port": 80, "keys": old})] == [
        " remove the key"
    ]


WIDER: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"window": 61}, {}),
    ({"protocol": "any"}, {}),
    ({"port": "20-30"}, {}),
    ({"port": ["20-22", "23-30"]}, {"port": "21-24"}),
    ({}, {"knock-port": 5}),
    ({"knock-port": "1-9"}, {"knock-port": [1, 5]}),
    ({}, {"interfaces": ["eth0"]}),
    ({"interfaces": ["eth0", "eth1"]}, {"interfaces": ["eth0"]}),
    ({}, {"from": ["10.0.0.0/8"]}),
    ({"from": ["2001:db8::/32", "10.0.0.0/8"]}, {"from": ["10.1.0.0/16"]}),
    ({"skew": 20}, {}),
    ({"old": True}, {}),
    ({"extend": True}, {}),
    ({}, {"once": True}),
    ({"grant": {"ipv4": 24, "ipv6": 64}}, {}),
    ({"rate": {"per": 1}}, {}),
    ({"rate": {"burst": 3}}, {}),
    ({"ext-command": "/bin/x"}, {}),
    ({}, {"not-after": PRESENT}),
    ({"not-before": PAST}, {"not-before": PRESENT}),
]


@pytest.mark.parametrize(("wide", "narrow"), WIDER)
@pytest.mark.parametrize("wide_first", [True, False])
def test_a_rule_that_another_makes_pointless(
    wide: dict[str, object], narrow: dict[str, object], wide_first: bool
) -> None:
    rules = [SSH | wide, TWO | narrow]
    assert smell(*(rules if wide_first else rules[::-1])) == (
        'rule "two" does nothing that rule "ssh" (rules.json:1) does not do with the same key and tag: '
        "remove one of them"
    )


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({"window": 10, "extend": True}, {}),
        ({"knock-port": "1-9"}, {"knock-port": "9-10", "window": 10}),
        ({"knock-port": 1}, {"window": 10}),
        ({"interfaces": ["eth0"]}, {"interfaces": ["eth0", "eth1"], "window": 10}),
        ({"from": ["10.0.0.0/8"]}, {"from": ["2001:db8::/32"], "window": 10}),
        ({"from": ["10.0.0.0/8"]}, {"window": 10}),
        ({}, {"skew": 20, "window": 10}),
        ({}, {"old": True, "window": 10}),
        ({"once": True}, {"window": 10}),
        ({}, {"grant": {"ipv4": 24}, "window": 10}),
        ({}, {"rate": {"per": 1}, "window": 10}),
        ({}, {"ext-command": "/bin/x", "window": 10}),
        ({}, {"close-command": "/bin/x", "window": 10}),
        ({"not-after": PRESENT}, {"window": 10}),
        ({"key": OTHER}, {}),
    ],
)
def test_rules_that_each_do_what_the_other_does_not(wide: dict[str, object], narrow: dict[str, object]) -> None:
    assert smells(SSH | wide, TWO | narrow) == []


def test_of_rules_that_are_alike_the_first_stays() -> None:
    found = smells(SSH, TWO, SSH | {"name": "three"})
    assert [problem.message.split()[1] for problem in found] == ['"two"', '"three"']
    assert all('"ssh" (rules.json:1)' in problem.message for problem in found)


def test_a_pointless_rule_must_have_all_its_keys_in_the_other() -> None:
    def rule(name: str, *keys: object, **fields: object) -> dict[str, object]:
        return {"name": name, "port": 22, "keys": list(keys), **fields}

    assert smells(rule("a", GOOD, OTHER), rule("b", GOOD, THIRD)) == []
    assert "remove one of them" in smell(rule("a", GOOD, OTHER), rule("b", OTHER))
    messages = [
        problem.message for problem in smells(rule("a", GOOD), rule("b", {"key": OTHER, "not-after": PAST}, GOOD))
    ]
    assert len(messages) == 2
    assert 'rule "b" does nothing' in messages[1]


@given(st.permutations(range(6)))
def test_ten_thousand_words_about_one_fault_are_too_many(order: list[int]) -> None:
    """However rules are ordered, each adds at most one warning about its key's other holders."""
    rules = [SSH | {"name": f"r{number}", "port": 1 + number // 2, "window": 1 + number} for number in order]
    found = smells(*rules)
    assert len({problem.column for problem in found}) == len(found) == 5
