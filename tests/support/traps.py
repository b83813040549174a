"""Files that a JSON parser, or who opens them, falls into; each is refused by name and position."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nfpkd.rules.positions import MAX_DEPTH

_GIB = 1 << 30


class Trap(NamedTuple):
    """*set_up* makes it at a path; *refusal* is what is said of it behind that path."""

    name: str
    set_up: Callable[[Path], None]
    refusal: str


def _text(text: str | bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.touch(mode=0o600)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def _rule(**fields: object) -> Callable[[Path], None]:
    return _text(json.dumps([{"name": "trap", "key": "k", **fields}]))


def _make_huge(path: Path) -> None:
    """As long as 1 GiB, and without a block on the disk."""
    path.touch(mode=0o600)
    os.truncate(path, _GIB)


def _make_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _make_loop(path: Path) -> None:
    between = path.with_name(f".{path.name}")
    between.unlink(missing_ok=True)
    between.symlink_to(path.name)
    path.symlink_to(between.name)


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o700)
    _rule(port=1)(path / "inside.json")


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


_DEEP = f"brackets are nested more than {MAX_DEPTH} deep"

TRAPS = (
    Trap("deep-lists.json", _text("[" * 100_000), f":1:{MAX_DEPTH + 1}: {_DEEP}"),
    Trap("deep-closed.json", _text("[\n" + "[" * 100_000 + "]" * 100_001), f":2:{MAX_DEPTH}: {_DEEP}"),
    Trap("deep-objects.json", _text('{"a":' * 100_000 + "1" + "}" * 100_000), f":1:{5 * MAX_DEPTH + 1}: {_DEEP}"),
    Trap("nan.json", _text('[{"name": "trap",\n  "port": NaN}]'), ":2:11: NaN is not a JSON number"),
    Trap("infinity.json", _text('[{"name": "trap", "port": -Infinity}]'), ":1:27: -Infinity is not a JSON number"),
    Trap("twice.json", _text('[{"name": "trap", "port": 22,\n"port": 80}]'), ':2:1: "port" is given twice'),
    Trap(
        "true.json",
        _rule(port=True),
        ':1:39: "port" must be a port number from 1 to 65535, a range such as "8000-8100", or a list of both, not true',
    ),
    Trap("surrogate.json", _rule(description="\ud800"), ":1:46: has a lone surrogate, which is not text"),
    Trap("surrogate-key.json", _text(r'[{"\udc00\ud800": 1}]'), ":1:3: has a lone surrogate, which is not text"),
    Trap("surrogate-bytes.json", _text(b'[{"name":\n "\xed\xa0\x80"}]'), ":2:3: is not UTF-8 text"),
    Trap("number.json", _text(f'[{{"port": {"9" * 100_000}}}]'), ":1:11: a number has 100000 digits"),
    Trap("huge.json", _make_huge, ": is larger than 64 MiB"),
    Trap("fifo.json", _make_fifo, ": is not a regular file"),
    Trap("zeros.json", _link_to("/dev/zero"), ": is not a regular file"),
    Trap("loop.json", _make_loop, ": too many levels of symbolic links"),
    Trap("folder.json", _make_folder, ": is a directory, but named like a rule file"),
)
