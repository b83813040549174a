"""What the daemon tells its helper: every message survives the way, and no bytes are a crash."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import TriggerError
from nfpkd.triggers.message import MAX_LENGTH, Event, Message, decode_message_untrusted, encode_message

names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64)
messages = st.just(Message(Event.RELOAD)) | st.builds(
    Message, st.sampled_from([Event.OPEN, Event.CLOSE]), names, st.ip_addresses().map(str)
)


@given(messages)
def test_what_was_encoded_is_decoded(message: Message) -> None:
    data = encode_message(message)
    assert len(data) <= MAX_LENGTH
    assert decode_message_untrusted(data) == message


def is_like_a_message(message: Message) -> bool:
    if message.event is Event.RELOAD:
        return message == Message(Event.RELOAD)
    return str(ipaddress.ip_address(message.source)) == message.source and 1 <= len(message.rule) <= 64


# Near a message more is decided than in the bytes at large.
nearly = st.builds(
    lambda head, address, name: bytes(head) + address + name,
    st.tuples(st.integers(0, 4), st.sampled_from([0, 4, 5, 6, 255])),
    st.binary(min_size=16, max_size=16),
    names.map(str.encode) | st.binary(max_size=70),
)


@given(st.binary(max_size=MAX_LENGTH + 10) | nearly)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = decode_message_untrusted(data)
    except TriggerError:
        return
    assert is_like_a_message(message)


def test_the_layout() -> None:
    assert encode_message(Message(Event.OPEN, "ssh", "192.0.2.1")) == b"\1\4\xc0\0\2\1" + bytes(12) + b"ssh"
    assert encode_message(Message(Event.CLOSE, "a", "2001:db8::1")) == b"\2\6 \1\r\xb8" + bytes(11) + b"\1a"
    assert encode_message(Message(Event.RELOAD)) == b"\3" + bytes(17)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\3",
        bytes(18),
        b"\4\4" + bytes(16) + b"ssh",
        b"\1\0" + bytes(16) + b"ssh",
        b"\1\5" + bytes(16) + b"ssh",
        b"\1\4" + bytes(16),
        b"\1\4" + bytes(16) + b"a" * 65,
        b"\1\4" + bytes(16) + b"../x",
        b"\1\4" + bytes(16) + b"ssh\n",
        b"\1\4" + bytes(16) + b"ssh\0",
        b"\1\4" + bytes(16) + "ä".encode(),
        # What encodes to something else: where nothing belongs, something could be hidden.
        b"\1\4" + bytes(4) + b"x" * 12 + b"ssh",
        b"\3" + bytes(17) + b"ssh",
        b"\3\4" + bytes(16),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(TriggerError):
        decode_message_untrusted(data)


def test_an_event_is_called_as_the_environment_calls_it() -> None:
    assert [event.label for event in Event] == ["open", "close", "reload"]
