"""The rule model: parsing keys and tags, and what a rule says about its services."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.rules.model import (
    KEY_LENGTH,
    TAG_LENGTH,
    PortRange,
    Protocol,
    Rule,
    Secret,
    Service,
    TimedKey,
    Trigger,
    format_tag,
    is_odd_hex,
    parse_key,
    parse_tag,
    parse_text_or_hex,
)
from support.strategies import rules, tags


def a_rule(*ports: PortRange, protocols: tuple[Protocol, ...] = tuple(Protocol)) -> Rule:
    return Rule("ssh", (TimedKey(Secret(b"k" * KEY_LENGTH)),), b"PKD0", ports, protocols)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", b"test"),
        ("Schlüssel", "Schlüssel".encode()),
        ("0x1", b"\x10"),
        ("0xabc", b"\xab\xc0"),
        ("0XABC", b"\xab\xc0"),
        ("0xdeadBEEF", b"\xde\xad\xbe\xef"),
        ("0x00", b"\0"),
        ("x0ab", b"x0ab"),
        ("00xab", b"00xab"),
    ],
)
def test_text_or_hex(text: str, expected: bytes) -> None:
    assert parse_text_or_hex(text) == expected


# int() and bytes.fromhex() would take most of these.
@pytest.mark.parametrize("digits", ["", "g0", " 0", "1_0", "12 34", "\uff11\uff12", "-1"])
def test_what_follows_0x_is_hex_digits_only(digits: str) -> None:
    with pytest.raises(ValueError, match="must go on with hex digits only") as caught:
        parse_text_or_hex("0x" + digits)
    assert not digits or digits not in str(caught.value)


def test_a_lone_surrogate_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="lone surrogate") as caught:
        parse_text_or_hex("secret\ud800")
    assert caught.value.__suppress_context__
    assert "secret" not in str(caught.value)


@given(st.binary(min_size=1, max_size=KEY_LENGTH))
def test_hex_names_every_key(raw: bytes) -> None:
    assert parse_key("0x" + raw.hex()).reveal() == raw.ljust(KEY_LENGTH, b"\0")


@given(st.binary(min_size=1, max_size=10), st.sampled_from("0123456789abcdef"))
def test_an_odd_digit_is_the_high_half_of_the_last_byte(raw: bytes, digit: str) -> None:
    text = "0x" + raw.hex() + digit
    assert is_odd_hex(text)
    assert parse_text_or_hex(text) == raw + bytes([int(digit, 16) << 4])


@pytest.mark.parametrize(
    ("text", "odd"), [("0xabc", True), ("0Xa", True), ("0xab", False), ("abc", False), ("", False)]
)
def test_odd_hex(text: str, odd: bool) -> None:
    assert is_odd_hex(text) is odd


@pytest.mark.parametrize("text", ["k" * 40, "é" * 20, "0x" + "ab" * 40, "0x" + "a" * 79])
def test_a_key_of_40_bytes_fits(text: str) -> None:
    assert len(parse_key(text).reveal()) == KEY_LENGTH


@pytest.mark.parametrize("text", ["k" * 41, "é" * 20 + "k", "0x" + "ab" * 41, "0x" + "a" * 81])
def test_a_longer_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="is 41 bytes long; at most 40 fit") as caught:
        parse_key(text)
    assert text[:8] not in str(caught.value)


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty; it takes 1 to 40 bytes"):
        parse_key("")


@pytest.mark.parametrize(
    ("text", "tag"),
    [("PKD0", b"PKD0"), ("ab", b"ab\0\0"), ("0x01", b"\1\0\0\0"), ("0xabc", b"\xab\xc0\0\0"), ("é", b"\xc3\xa9\0\0")],
)
def test_a_tag_is_zero_filled(text: str, tag: bytes) -> None:
    assert parse_tag(text) == tag


@pytest.mark.parametrize("text", ["PKD01", "éé1", "0x0102030405"])
def test_a_tag_of_five_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is 5 bytes long; at most 4 fit"):
        parse_tag(text)


@given(tags | st.binary(min_size=TAG_LENGTH, max_size=TAG_LENGTH))
def test_a_formatted_tag_means_the_same_tag(tag: bytes) -> None:
    text = format_tag(tag)
    assert text.isascii()
    assert text.isprintable()
    assert parse_tag(text) == tag


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (b"PKD0", "PKD0"),
        (b"ab\0\0", "ab"),
        (b"a b\0", "a b"),
        (b"\0\0\0\0", "0x00000000"),
        (b"a\0b\0", "0x61006200"),
        (b"0xab", "0x30786162"),
        (b"0X\0\0", "0x30580000"),
        (b"\xc3\xa9\0\0", "0xc3a90000"),
        (b"a\n\0\0", "0x610a0000"),
    ],
)
def test_a_tag_is_shown_as_text_where_it_is_text(tag: bytes, text: str) -> None:
    assert format_tag(tag) == text


@given(st.binary(min_size=4, max_size=40))
def test_a_secret_does_not_show(value: bytes) -> None:
    secret = Secret(value)
    assert {repr(secret), str(secret), f"{secret}", f"{secret!r}"} == {"Secret(...)"}
    assert secret.reveal() == value


@given(rules())
def test_a_rule_does_not_show_its_key(rule: Rule) -> None:
    assert repr(rule).count("secret=Secret(...)") == len(rule.keys)


def test_secrets_compare_by_value() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    assert len({Secret(b"a"), Secret(b"a"), Secret(b"b")}) == 2


def test_a_rule_is_immutable_and_hashable() -> None:
    rule = a_rule(PortRange(22, 22))
    with pytest.raises(AttributeError):
        rule.name = "other"  # type: ignore[misc]
    assert len({rule, pickle.loads(pickle.dumps(rule))}) == 1  # noqa: S301


@given(rules())
def test_a_rule_covers_exactly_its_services(rule: Rule) -> None:
    services = set(rule.services())
    around = {Service(p, n + d) for p in Protocol for _, n in services for d in (-1, 0, 1)}
    assert {service for service in around if rule.covers(service)} == services


def test_services_are_every_port_by_every_protocol() -> None:
    rule = a_rule(PortRange(80, 81), PortRange(81, 81), protocols=(Protocol.TCP, Protocol.UDP))
    assert [str(service) for service in rule.services()] == ["80/tcp", "80/udp", "81/tcp", "81/udp", "81/tcp", "81/udp"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (a_rule(PortRange(22, 22), protocols=(Protocol.TCP,)), "22/tcp"),
        (a_rule(PortRange(22, 22)), "22/any"),
        (
            a_rule(PortRange(80, 80), PortRange(8000, 8100), protocols=(Protocol.TCP, Protocol.UDP)),
            "80,8000-8100/tcp+udp",
        ),
        (a_rule(PortRange(22, 22), protocols=tuple(reversed(Protocol))), "22/any"),
        (a_rule(), "no port"),
    ],
)
def test_services_are_described_as_people_write_them(rule: Rule, text: str) -> None:
    assert rule.describe_services() == text


@pytest.mark.parametrize(
    ("protocol", "number", "label"),
    [("TCP", 6, "tcp"), ("UDP", 17, "udp"), ("DCCP", 33, "dccp"), ("SCTP", 132, "sctp"), ("UDPLITE", 136, "udplite")],
)
def test_protocols_have_ianas_numbers_and_nfts_names(protocol: str, number: int, label: str) -> None:
    assert Protocol[protocol] == number
    assert Protocol[protocol].label == label


@pytest.mark.parametrize(
    ("trigger", "runs"),
    [
        (Trigger(), False),
        (Trigger(user="root", timeout=1), False),
        (Trigger(("/bin/true",)), True),
        (Trigger((), ("/bin/true",)), True),
    ],
)
def test_a_trigger_is_one_if_it_runs_something(trigger: Trigger, runs: bool) -> None:
    assert bool(trigger) is runs
