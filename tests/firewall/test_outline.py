"""What a table is made of, by raw netlink."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import NetlinkError
from nfpkd.firewall import nft, outline
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.netlink import HEADER, NFGENMSG, iterate_attributes, iterate_messages, pack_attribute, text_of
from nfpkd.firewall.nft import Set, Table, Transaction

HOUSE = Table("inet", "house")
DONE = HEADER.pack(HEADER.size + 4, 3, 0, 0, 0) + struct.pack("=i", 0)


class Socket:
    """Answers every question with the same datagrams."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._left: list[bytes] = []

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, _: float) -> None:
        pass

    def send(self, _: bytes) -> None:
        self._left = list(self._answers)

    def recv(self, _: int) -> bytes:
        return self._left.pop(0)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*answers: bytes) -> None:
        monkeypatch.setattr("socket.socket", lambda *_: Socket(*answers))

    return use


def of_table(name: str, flags: int = 0) -> bytes:
    body = NFGENMSG.pack(1, 0, 0) + pack_attribute(1, name.encode() + b"\0") + pack_attribute(2, b"x\0")
    return HEADER.pack(HEADER.size + len(body), 10 << 8 | 9, flags, 0, 0) + body


def test_what_changed_while_it_was_read_is_not_believed(answer: Callable[..., None]) -> None:
    answer(of_table("house", flags=0x10), DONE)
    with pytest.raises(NetlinkError, match="changed"):
        outline.read_outline(HOUSE)


def test_what_the_kernel_tells_of_other_tables_is_passed_over(answer: Callable[..., None]) -> None:
    answer(of_table("other") + DONE)
    assert outline.read_outline(HOUSE) == []


def test_a_refusal_is_raised(answer: Callable[..., None]) -> None:
    answer(HEADER.pack(HEADER.size + 4, 2, 0, 0, 0) + struct.pack("=i", -1))
    with pytest.raises(PermissionError):
        outline.read_outline(HOUSE)


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
        for _, _, _, body in iterate_messages(data):
            list(iterate_attributes(body))
    except NetlinkError:
        pass


@pytest.mark.parametrize(("data", "text"), [(b"abc\0", "abc"), (b"", ""), (b"a\0b", "a"), (b"\xff\0", "\ufffd")])
def test_text_ends_with_a_zero(data: bytes, text: str) -> None:
    assert text_of(data) == text
