"""What a table is made of, by raw netlink."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import NetlinkError
from nfpkd.firewall import nft, outline
from nfpkd.firewall.channel import Channel
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.netlink import (
    HEADER,
    NFGENMSG,
    iterate_attributes,
    iterate_messages,
    pack_attribute,
    pack_text,
    text_of,
)
from nfpkd.firewall.nft import Set, Table, Transaction

HOUSE = Table("inet", "house")


def done(sequence: int, error: int = 0, kind: int = 3) -> bytes:
    return HEADER.pack(HEADER.size + 4, kind, 0, sequence, 0) + struct.pack("=i", -error)


class Socket:
    """Answers each question with what *answer* makes of its sequence number."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self._answer = answer
        self._asked = 0

    def settimeout(self, _: float) -> None:
        pass

    def send(self, question: bytes) -> None:
        self._asked = HEADER.unpack_from(question)[3]

    def close(self) -> None:
        pass

    def recv(self, _: int) -> bytes:
        return self._answer(self._asked)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bytes]], Channel]:
    def make(answer: Callable[[int], bytes]) -> Channel:
        monkeypatch.setattr("socket.socket", lambda *_: Socket(answer))
        return Channel()

    return make


Answering = Callable[[Callable[[int], bytes]], Channel]


def of_table(name: str, sequence: int, flags: int = 0) -> bytes:
    body = NFGENMSG.pack(1, 0, 0) + pack_attribute(1, pack_text(name)) + pack_attribute(2, b"x\0")
    return HEADER.pack(HEADER.size + len(body), 10 << 8 | 9, flags, sequence, 0) + body


def test_what_changed_while_it_was_read_is_not_believed(answering: Answering) -> None:
    channel = answering(lambda asked: of_table("house", asked, flags=0x10) + done(asked))
    with pytest.raises(NetlinkError, match="changed"):
        outline.read_outline(channel, HOUSE)


def test_what_the_kernel_tells_of_other_tables_is_passed_over(answering: Answering) -> None:
    channel = answering(lambda asked: of_table("other", asked) + done(asked))
    assert outline.read_outline(channel, HOUSE) == []


def test_answers_to_other_questions_are_passed_over(answering: Answering) -> None:
    channel = answering(lambda asked: done(asked - 1, error=1) + of_table("house", asked - 1) + done(asked))
    assert outline.read_outline(channel, HOUSE) == []


def test_a_refusal_is_raised(answering: Answering) -> None:
    with pytest.raises(PermissionError):
        outline.read_outline(answering(lambda asked: done(asked, error=1, kind=2)), HOUSE)


@pytest.mark.parametrize(
    "body",
    [
        pack_attribute(2, b"x") + pack_attribute(3, b"x"),
        pack_attribute(3, bytes(4)),
        pack_attribute(2, bytes(4)) + pack_attribute(3, struct.pack(">I", 1)),
        pack_attribute(2, bytes(4)) + pack_attribute(3, struct.pack(">I", 1)) + pack_attribute(4, b""),
    ],
)
def test_what_lacks_something_is_refused(answering: Answering, body: bytes) -> None:
    def answer(asked: int) -> bytes:
        whole = NFGENMSG.pack(1, 0, 0) + pack_attribute(1, pack_text("house")) + body
        return HEADER.pack(HEADER.size + len(whole), 10 << 8 | 9, 0, asked, 0) + whole + done(asked)

    with pytest.raises(NetlinkError):
        outline.read_outline(answering(answer), HOUSE)


@pytest.mark.netns
def test_full_sets_are_not_read(real_kernel: NftablesKernel) -> None:
    """With their elements this takes libnftables hundreds of packets of netlink."""
    members = [f"10.0.{i >> 8}.{i & 255}" for i in range(20_000)]
    real_kernel.apply(
        Transaction(
            (
                nft.add_table(HOUSE),
                nft.add(Set(HOUSE, "flood", "ipv4_addr")),
                nft.add_elements(HOUSE, "flood", members),
            )
        )
    )
    assert real_kernel.survey(HOUSE, {"flood"}) == [{"set": {"name": "flood"}}]


@given(st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=20))))
def test_attributes_come_back_as_they_were_packed(attributes: list[tuple[int, bytes]]) -> None:
    packed = b"".join(pack_attribute(kind, value) for kind, value in attributes)
    assert list(iterate_attributes(packed)) == attributes


@given(st.binary(max_size=200))
def test_messages_are_read_or_refused(data: bytes) -> None:
    try:
        for message in iterate_messages(data):
            list(iterate_attributes(message.body))
    except NetlinkError:
        pass


@pytest.mark.parametrize(("data", "text"), [(b"abc\0", "abc"), (b"", ""), (b"a\0b", "a"), (b"\xff\0", "\ufffd")])
def test_text_ends_with_a_zero(data: bytes, text: str) -> None:
    assert text_of(data) == text
