"""The memory on disk: what was committed is there after a crash."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import StateError
from nfpkd.verifier.replay import EVERYTHING_CUT_OFF, Changes, Freshness
from nfpkd.verifier.store import FILE_NAME, ReplayStore

KEY, OTHER = b"k" * 16, b"o" * 16
LOG = f"{FILE_NAME}-wal"
MIB = 1024 * 1024


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def seen(*numbers: int, key: bytes = KEY, second: int = 1000) -> Changes:
    return Changes(tuple((key, second, digest(number)) for number in numbers), {})


def crash(directory: Path, to: Path) -> ReplayStore:
    """Open what would be there had the process that has *directory* open died now."""
    shutil.copytree(directory, to)
    return ReplayStore(to)


stamps = st.integers(0, EVERYTHING_CUT_OFF)


@given(
    st.lists(st.tuples(st.sampled_from([KEY, OTHER]), stamps, st.binary(min_size=32, max_size=32)), max_size=20),
    st.dictionaries(st.sampled_from([KEY, OTHER]), stamps),
)
def test_what_was_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, knocks: list[tuple[bytes, int, bytes]], cutoffs: dict[bytes, int]
) -> None:
    directory = tmp_path_factory.mktemp("state")
    store = ReplayStore(directory)
    store.save(Changes(tuple(knocks), {}))
    store.save(Changes((), cutoffs))
    store.close()
    again = ReplayStore(directory)
    memories = again.load()
    again.close()
    for key, second, found in knocks:
        assert memories[key].admit(found, second, 0) in (Freshness.SEEN, Freshness.CUT_OFF)
    assert {key: memories[key].cutoff for key in cutoffs} == cutoffs


def test_a_crash_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "state")
    store.save(seen(1))
    first = crash(tmp_path / "state", tmp_path / "first")
    first.save(seen(2))
    second = crash(tmp_path / "first", tmp_path / "second")
    memory = second.load()[KEY]
    assert [memory.admit(digest(n), 1000, 0) for n in (1, 2, 3)] == [Freshness.SEEN, Freshness.SEEN, Freshness.FRESH]
    assert not second.was_lost
    for one in (store, first, second):
        one.close()


def test_a_commit_does_not_make_the_log_longer(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    length = (tmp_path / LOG).stat().st_size
    for number in range(100):
        store.save(seen(number))
    assert (tmp_path / LOG).stat().st_size == length >= 4 * MIB
    store.close()
    assert not (tmp_path / LOG).exists()


def test_a_long_log_starts_over(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "state")
    for number in range(1500):
        store.save(seen(number))
    assert (tmp_path / "state" / LOG).stat().st_size < 5 * MIB
    after = crash(tmp_path / "state", tmp_path / "crashed")
    assert len(after.load()[KEY]) == 1500
    for one in (store, after):
        one.close()


def test_what_was_flushed_does_not_stay_in_the_log_for_ever(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "state")
    for number in range(500):
        store.save(seen(number))
        store.flush()
    (tmp_path / "without").mkdir()
    shutil.copy(tmp_path / "state" / FILE_NAME, tmp_path / "without")
    without_log = ReplayStore(tmp_path / "without")
    assert len(without_log.load()[KEY]) == 500
    for one in (store, without_log):
        one.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was written through to the disk; "broken" in it breaks the disk."""
    done: list[str] = []

    def fdatasync(_: int) -> None:
        if "broken" in done:
            raise OSError(errno.EIO, "I/O error")
        done.append("flushed")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return done


def test_only_what_must_not_wait_is_written_through_at_once(tmp_path: Path, disk: list[str]) -> None:
    store = ReplayStore(tmp_path)
    store.flush()
    store.save(seen(1))
    assert disk == []
    store.flush()
    store.flush()
    assert disk == ["flushed"]
    store.save(seen(2)._replace(at_once=True))
    store.flush()
    assert disk == ["flushed"] * 2
    store.close()


def test_a_disk_that_breaks_is_said_and_tried_again(tmp_path: Path, disk: list[str]) -> None:
    store = ReplayStore(tmp_path)
    disk.append("broken")
    for number in (1, 2):
        with pytest.raises(StateError, match=r"cannot be written through: .*I/O error"):
            store.save(seen(number)._replace(at_once=True))
    disk.clear()
    store.flush()
    assert disk == ["flushed"]
    assert len(store.load()[KEY]) == 2
    store.close()


def test_a_small_disk_is_left_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    store = ReplayStore(tmp_path)
    assert (tmp_path / LOG).stat().st_size < MIB
    store.close()


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}
    with pytest.raises(StateError, match="another nfpkd"):
        ReplayStore(tmp_path / "state")
    store.save(seen(1))
    store.close()


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000, bytes(8192)])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    store = ReplayStore(tmp_path)
    # SQLite takes an empty file for a new one.
    assert store.was_lost == bool(damage)
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged-*")] == ([damage] if damage else [])
    store.save(seen(1))
    store.close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be used"):
        ReplayStore(tmp_path / "file" / "state")


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    with sqlite3.connect(":memory:") as closed:
        pass
    closed.close()
    store.close()
    store._connection = closed
    with pytest.raises(StateError, match="cannot be written"):
        store.save(seen(1))
