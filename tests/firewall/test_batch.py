from __future__ import annotations

import errno
import struct

import pytest

from nfpkd.firewall.batch import read_errors


def answer(error: int, kind: int = 2) -> bytes:
    body = struct.pack("=i", -error)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (answer(0), [0]),
        (answer(errno.ENOENT), [errno.ENOENT]),
        (answer(0) + answer(errno.EPERM), [0, errno.EPERM]),
        # Padding behind a message whose length is no multiple of four.
        (struct.pack("=IHHII", 17, 3, 0, 1, 0) + b"x\0\0\0" + answer(0), [0]),
    ],
)
def test_acknowledgements_are_read_in_order(text: bytes, errors: list[int]) -> None:
    assert read_errors(text) == errors


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff" * 15,
        answer(0, kind=3),
        # A length of nothing must not stop the reader.
        struct.pack("=IHHII", 0, 3, 0, 1, 0),
        # Cut off before the error number.
        struct.pack("=IHHII", 16, 2, 0, 1, 0),
    ],
)
def test_an_answer_without_an_acknowledgement_is_an_error(text: bytes) -> None:
    assert read_errors(text) == [errno.EPROTO]
