"""Questions to nf_tables, and what comes back."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from nfpkd.demo.namespaces import Namespace
from nfpkd.firewall.channel import NLM_F_CREATE, Channel, Message, read_errors
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.netlink import pack_attribute, pack_text


def answer(error: int, kind: int = 2, sequence: int = 1) -> bytes:
    body = struct.pack("=i", -error)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (answer(0), [0]),
        (answer(errno.ENOENT), [errno.ENOENT]),
        (answer(0) + answer(errno.EPERM, sequence=2), [0, errno.EPERM]),
        # Padding behind a message whose length is no multiple of four.
        (struct.pack("=IHHII", 17, 3, 0, 1, 0) + b"x\0\0\0" + answer(0), [0]),
        # Of something that was asked before.
        (answer(errno.EPERM, sequence=0), []),
        (answer(0, sequence=3) + answer(0), [0]),
        (answer(0, kind=3), []),
        # No errno, and nothing that strerror() takes.
        (answer(2**31), [errno.EPROTO]),
        (answer(4096), [errno.EPROTO]),
        (answer(-1), [errno.EPROTO]),
        (answer(4095), [4095]),
    ],
)
def test_acknowledgements_are_read_in_order(text: bytes, errors: list[int]) -> None:
    assert read_errors(text, range(1, 3)) == errors


@pytest.mark.parametrize(
    "text",
    [
        b"\xff" * 15,
        # A length of nothing must not stop the reader.
        struct.pack("=IHHII", 0, 3, 0, 1, 0),
        # Cut off before the error number.
        struct.pack("=IHHII", 16, 2, 0, 1, 0),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error(text: bytes) -> None:
    assert read_errors(text, range(1, 3)) == [errno.EPROTO]


@pytest.fixture
def channel(namespace: Namespace) -> Iterator[Channel]:
    with namespace.entered():
        yield Channel()


def add_table(name: str) -> Message:
    return Message(0, pack_attribute(1, pack_text(name)), NLM_F_CREATE)


BAD = Message(3, pack_attribute(1, pack_text("missing")) + pack_attribute(3, pack_text("x")), NLM_F_CREATE)


@pytest.mark.netns
def test_a_refusal_undoes_all_and_does_not_disturb_the_next(channel: Channel, real_kernel: NftablesKernel) -> None:
    for _ in range(3):
        # The acknowledgements behind the first refusal are left unread.
        with pytest.raises(FileNotFoundError):
            channel.send_batch([add_table("a"), BAD, BAD, add_table("b")])
        assert channel_tables(real_kernel) == set()
    channel.send_batch([add_table("a"), add_table("b")])
    assert channel_tables(real_kernel) == {"a", "b"}


@pytest.mark.netns
def test_what_is_only_checked_is_not_done(channel: Channel, real_kernel: NftablesKernel) -> None:
    channel.send_batch([add_table("a")], commit=False)
    assert channel_tables(real_kernel) == set()


def channel_tables(kernel: NftablesKernel) -> set[str]:
    return {entry["table"]["name"] for entry in kernel._ask({"list": {"tables": None}}) if "table" in entry}
