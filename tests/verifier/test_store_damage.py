"""What becomes of the memory on disk when the disk, or somebody, spoils the file."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from nfpkd.errors import StateError
from nfpkd.verifier.replay import NOTHING_CUT_OFF, Changes, Freshness, ReplayBook
from nfpkd.verifier.store import FILE_NAME, ReplayStore

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
STAMP = 1_800_000_000


def digest(number: int = 0) -> bytes:
    return number.to_bytes(32)


def save(directory: Path, *seen: tuple[bytes, int, bytes], cutoffs: dict[bytes, int] | None = None) -> None:
    store = ReplayStore(directory)
    store.save(Changes(seen, cutoffs or {}))
    store.close()


def begin(directory: Path) -> tuple[ReplayBook, bool]:
    """Return what a start finds, and whether it knows that something is lost."""
    store = ReplayStore(directory)
    try:
        return ReplayBook(store.load()), store.was_lost
    finally:
        store.close()


def admit(book: ReplayBook, key: bytes = KEY, number: int = 0, stamp: int = STAMP) -> Freshness:
    return book.admit(key, digest(number), stamp, stamp - 10)


def write_rows(directory: Path, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
    """Write into a memory what nfpkd never would."""
    ReplayStore(directory).close()
    with sqlite3.connect(directory / FILE_NAME) as connection:
        connection.executemany(statement, rows)
    connection.close()


def test_a_start_knows_what_was_kept(tmp_path: Path) -> None:
    save(tmp_path / "state", (KEY, STAMP, digest(1)), cutoffs={OTHER_KEY: STAMP})
    book, was_lost = begin(tmp_path / "state")
    assert not was_lost
    assert admit(book, number=1) is Freshness.SEEN
    assert admit(book, number=2) is Freshness.FRESH
    assert admit(book, OTHER_KEY) is Freshness.CUT_OFF


def test_what_is_cut_off_is_not_kept_as_well(tmp_path: Path) -> None:
    save(tmp_path, (KEY, STAMP, digest(1)), (KEY, STAMP + 1, digest(2)), (OTHER_KEY, STAMP, digest(3)))
    save(tmp_path, cutoffs={KEY: STAMP})
    store = ReplayStore(tmp_path)
    memories = store.load()
    store.close()
    assert {key: (len(memory), memory.cutoff) for key, memory in memories.items()} == {
        KEY: (1, STAMP),
        OTHER_KEY: (1, NOTHING_CUT_OFF),
    }


def damage_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:16] = b"x" * 16
    path.write_bytes(data)


def damage_everything(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def damage_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:4116] = b"\xff" * 20
    path.write_bytes(data)


def damage_a_name(path: Path) -> None:
    """SQLite says what it cannot understand in the words of the file, which sqlite3 takes for UTF-8."""
    path.write_bytes(path.read_bytes().replace(b"WITHOUT ROWID", b"WITHOUT ROWI\x93"))


def claim_an_impossible_length(path: Path) -> None:
    """SQLite asks for as much memory as a row in its table of tables says that it is long."""
    data = bytearray(1158)
    data[:24] = b"SQLite format 3\0\2\0\0\0\0\x40\x20\x20"
    data[100], data[104], data[108:110] = 0x0D, 2, (390).to_bytes(2)
    data[390:398] = b"\xff\xff\xff\xff\xff\x6f\x00\x66"
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    os.truncate(path, 5000)


@pytest.mark.parametrize(
    "damage",
    [damage_header, damage_everything, damage_a_page, damage_a_name, claim_an_impossible_length, cut_off],
)
def test_a_damaged_file_is_set_aside_and_that_is_known(tmp_path: Path, damage: object) -> None:
    save(tmp_path, *((KEY, STAMP, digest(number)) for number in range(20)))
    assert callable(damage)
    damage(tmp_path / FILE_NAME)
    spoiled = (tmp_path / FILE_NAME).read_bytes()
    book, was_lost = begin(tmp_path)
    assert was_lost
    assert admit(book) is Freshness.FRESH
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*")
    assert aside.read_bytes() == spoiled
    # Once is enough.
    assert not begin(tmp_path)[1]


SEEN = "INSERT INTO seen VALUES (?, ?, ?)"
CUTOFFS = "INSERT INTO cutoffs VALUES (?, ?)"
TIME = STAMP.to_bytes(8)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        (SEEN, (KEY, STAMP, digest())),
        (SEEN, (KEY, "now", digest())),
        (SEEN, (KEY, TIME[:7], digest())),
        (SEEN, (KEY, b"", digest())),
        (SEEN, ("key", TIME, digest())),
        (SEEN, (5, TIME, digest())),
        (SEEN, (KEY, TIME, "digest")),
        (SEEN, (KEY, TIME, 1.5)),
        (CUTOFFS, (KEY, STAMP)),
        (CUTOFFS, (KEY, TIME + b"\0")),
        (CUTOFFS, ("key", TIME)),
    ],
)
def test_what_nfpkd_did_not_write_is_damage_too(tmp_path: Path, statement: str, row: tuple[object, ...]) -> None:
    save(tmp_path, (KEY, STAMP, digest(1)))
    write_rows(tmp_path, statement, [row])
    assert begin(tmp_path)[1]


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE seen (a); CREATE TABLE cutoffs (b)",
        "CREATE VIEW cutoffs AS SELECT * FROM cutoffs",
    ],
)
def test_a_file_of_another_program_is_left_alone(tmp_path: Path, tables: str) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.executescript(tables)
    connection.close()
    with pytest.raises(StateError, match='choose another with "--state-dir"'):
        ReplayStore(tmp_path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_directory, make_link_to_itself, make_fifo])
def test_what_is_no_file_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / FILE_NAME)
    with pytest.raises(StateError, match="cannot be used"):
        ReplayStore(tmp_path)


def test_a_file_that_cannot_be_made_ones_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(StateError, match="Operation not permitted"):
        ReplayStore(tmp_path)


def test_damage_that_shows_later_is_told_with_a_remedy(tmp_path: Path) -> None:
    save(tmp_path, (KEY, STAMP, digest(1)))
    store = ReplayStore(tmp_path)
    store._connection.execute("DROP TABLE seen")
    with pytest.raises(StateError, match="no such table: seen"):
        store.load()
    with pytest.raises(StateError, match="cannot be written"):
        store.save(Changes(((KEY, STAMP, digest(2)),), {}))
    store.close()
