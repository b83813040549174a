"""The knock's bytes, recomputed here from the description of the format and not with the encoder's own words."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import WireError
from nfpkd.knock.wire import (
    DIGEST_LENGTH,
    HEADER_LENGTH,
    PAYLOAD_LENGTH,
    RANDOM_LENGTH,
    UDP_LENGTH,
    Knock,
    decode_knock_untrusted,
    encode_knock,
    make_digest,
)
from nfpkd.rules.model import PortRange, Protocol, Rule, Secret, TimedKey, parse_key, parse_tag
from nfpkd.verifier.judge import Judge, Outcome
from nfpkd.verifier.packet import Datagram
from support.strategies import keys, ports, randoms, tags, times

SOURCE = bytes([192, 0, 2, 1])

# WIRE.md; the first is from nf-pkd's own test.
VECTOR = {
    "key": parse_key("testing test test").reveal(),
    "tag": parse_tag("test"),
    "port": 1234,
    "time": 1539746929,
    "random": bytes(12),
}
VECTOR_HEADER = bytes.fromhex("7465737471acc65b00000000" + "00" * 12)
VECTOR_DIGEST = bytes.fromhex("14e922278a4d3302ebbb893cf3bab52ea0314d6a582f665b05b867c1a5ad3b97")
VECTOR_OLD_DIGEST = bytes.fromhex("95d7ca19f6f757e8fc1303e71dd66cb0d1fafc25ed3db13b6583a9f0956c44a6")


def a_rule(key: bytes, tag: bytes, *, old: bool = False) -> Rule:
    return Rule("ssh", (TimedKey(Secret(key)),), tag, (PortRange(22, 22),), (Protocol.TCP,), skew=None, old=old)


def outcomes(rule: Rule, payload: bytes, port: int) -> list[Outcome]:
    return [judgement.outcome for judgement in Judge([rule]).judge(Datagram(SOURCE, port, payload), 0, 1000.0)]


def test_the_lengths_of_the_format() -> None:
    assert (PAYLOAD_LENGTH, UDP_LENGTH, HEADER_LENGTH, RANDOM_LENGTH, DIGEST_LENGTH) == (56, 64, 24, 12, 32)


def test_the_published_vector() -> None:
    assert encode_knock(**VECTOR) == VECTOR_HEADER + VECTOR_DIGEST  # type: ignore[arg-type]


def test_the_vector_of_the_old_form() -> None:
    assert encode_knock(**VECTOR, old=True) == VECTOR_HEADER + VECTOR_OLD_DIGEST  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("digest", "old", "accepted"),
    [
        (VECTOR_DIGEST, False, True),
        (VECTOR_DIGEST, True, True),
        (VECTOR_OLD_DIGEST, True, True),
        (VECTOR_OLD_DIGEST, False, False),
    ],
)
def test_the_judge_takes_the_vectors(digest: bytes, old: bool, accepted: bool) -> None:
    rule = a_rule(parse_key("testing test test").reveal(), b"test", old=old)
    assert outcomes(rule, VECTOR_HEADER + digest, 1234) == [Outcome.ACCEPTED] * accepted


def recompute(key: bytes, tag: bytes, port: int, time: int, random: bytes, *, old: bool) -> bytes:
    """Make a knock with nothing but hashlib, byte by byte from WIRE.md's table."""
    header = tag + time.to_bytes(8, "little") + random
    port_bytes = b"" if old else port.to_bytes(2, "big") * 2
    digested = port_bytes + header + key
    assert len(digested) == (64 if old else 68)
    return header + hashlib.sha256(digested).digest()


@given(keys, tags, ports, times, randoms, st.booleans())
def test_the_bytes_are_the_formats(key: bytes, tag: bytes, port: int, time: int, random: bytes, old: bool) -> None:
    payload = encode_knock(key, tag, port, time, random, old=old)
    assert payload == recompute(key, tag, port, time, random, old=old)


@given(keys, tags, ports, times, randoms, st.booleans())
def test_the_judge_accepts_every_knock(
    key: bytes, tag: bytes, port: int, time: int, random: bytes, rule_old: bool
) -> None:
    payload = recompute(key, tag, port, time, random, old=False)
    assert outcomes(a_rule(key, tag, old=rule_old), payload, port) == [Outcome.ACCEPTED]


@given(keys, tags, ports, times, randoms, st.booleans())
def test_the_old_form_opens_only_rules_that_say_so(
    key: bytes, tag: bytes, port: int, time: int, random: bytes, rule_old: bool
) -> None:
    payload = recompute(key, tag, port, time, random, old=True)
    assert outcomes(a_rule(key, tag, old=rule_old), payload, port) == [Outcome.ACCEPTED] * rule_old


@given(keys, tags, ports, ports, st.booleans())
def test_only_the_old_form_is_good_for_another_port(key: bytes, tag: bytes, port: int, other: int, old: bool) -> None:
    payload = recompute(key, tag, port, 7, bytes(12), old=old)
    assert bool(outcomes(a_rule(key, tag, old=True), payload, other)) is (old or port == other)


@given(keys, tags, ports, st.integers(0, 55), st.integers(1, 255))
def test_no_byte_can_be_changed(key: bytes, tag: bytes, port: int, at: int, change: int) -> None:
    payload = bytearray(encode_knock(key, tag, port, 1000, bytes(12)))
    payload[at] ^= change
    rule = a_rule(key, tag)
    assert outcomes(rule, bytes(payload), port) == []
    # Nor is it good for a rule with the changed tag, which is in the digest, too.
    assert outcomes(replace(rule, tag=bytes(payload[:4])), bytes(payload), port) == []


@given(keys, tags, ports, times, randoms)
def test_what_is_encoded_can_be_taken_apart(key: bytes, tag: bytes, port: int, time: int, random: bytes) -> None:
    payload = encode_knock(key, tag, port, time, random)
    assert decode_knock_untrusted(payload) == Knock(tag, time, tag + payload[4:12] + random, payload[24:])


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_apart_or_no_knock(payload: bytes) -> None:
    try:
        knock = decode_knock_untrusted(payload)
    except WireError:
        assert len(payload) != 56
    else:
        assert knock.header + knock.digest == payload
        assert payload.startswith(knock.tag + knock.time.to_bytes(8, "little"))


@pytest.mark.parametrize("length", [*range(56), *range(57, 130), 2000])
def test_every_other_length_is_no_knock(length: int) -> None:
    with pytest.raises(WireError, match=f"is 56 bytes long, not {length}$"):
        decode_knock_untrusted(bytes(length))


@pytest.mark.parametrize(
    "wrong", [{"key": b"short"}, {"key": bytes(41)}, {"tag": b"abc"}, {"tag": b"abcde"}, {"random": bytes(11)}]
)
def test_parts_of_other_lengths_are_the_callers_fault(wrong: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        encode_knock(**{**VECTOR, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(("header", "key"), [(bytes(23), bytes(40)), (bytes(25), bytes(40)), (bytes(24), bytes(39))])
def test_a_digest_is_made_of_whole_parts(header: bytes, key: bytes) -> None:
    with pytest.raises(ValueError, match="24 bytes and a key is 40"):
        make_digest(header, 22, key)
