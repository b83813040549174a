"""The replay memory on disk, so that a restart forgets nothing: alone imports sqlite3.

::

    seen(key, time, digest)   the knocks that could still be valid
    cutoffs(key, time)        everything stamped up to here counts as seen

A key is named by a hash of it: the file holds no key, and tells no more about
one than a recorded knock does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from nfpkd.errors import StateError, reason_of
from nfpkd.verifier.replay import NOTHING_CUT_OFF, Changes, KeyId, ReplayMemory

FILE_NAME = "replay.db"

# "NORMAL" leaves it to `flush` when a commit is written through to the disk; before that
# it outlives the process, but not a power failure.
_SET_UP = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS seen (key BLOB, time BLOB, digest BLOB, PRIMARY KEY (key, time, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cutoffs (key BLOB PRIMARY KEY, time BLOB NOT NULL) WITHOUT ROWID;
"""
# The log of changes is that long from the start, because a write that makes a file longer is
# followed by another one, of where it ends.  Measured on ext4, for one knock: 94 us instead of
# 217 at the median, 0.4 ms instead of 19 at the 99th percentile.
_LOG_LENGTH = 4 * 1024 * 1024
# After so many commits what is in the log goes where it belongs, and the log begins anew; SQLite would do so
# in a commit, for which somebody waits, once it has 1,000 pages (wal_autocheckpoint), about as many as fit.
_COMMITS_IN_LOG = 250
# Not on a small disk: the room is needed for knocks there.
_LEAST_FREE = 16 * _LOG_LENGTH
# SQLite's integers are signed and stamps are not; as big-endian bytes they compare as they should.
_TIME_LENGTH = 8
# SQLite keeps in a column whatever it is given.
_FIND_STRANGE = f"""
SELECT 1 FROM seen
WHERE (typeof(key), typeof(time), length(time), typeof(digest)) != ('blob', 'blob', {_TIME_LENGTH}, 'blob')
UNION ALL
SELECT 1 FROM cutoffs
WHERE (typeof(key), typeof(time), length(time)) != ('blob', 'blob', {_TIME_LENGTH})
LIMIT 1
"""  # noqa: S608  (a constant)
# sqlite3 also reads the names in a damaged file as text, to say what is wrong with them, and
# lengths in it may be more than there is memory.
_DAMAGE = (sqlite3.Error, UnicodeDecodeError, MemoryError)


class ReplayStore:
    """What is remembered of knocks, in *directory*; one process at a time can have it open."""

    def __init__(self, directory: Path) -> None:
        """Open the store, or make it; raises StateError.

        A file that is damaged is set aside, and `was_lost` is then True: what it knew of replays is gone.
        """
        self.was_lost = False
        self._commits = 0
        self._flushed = True
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, reason_of(error)) from None
        self._path = directory / FILE_NAME
        try:
            self._open_or_begin_anew()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StateError(
                    f"{self._path} is used by another nfpkd", 'give each its own with "--state-dir"'
                ) from None
            raise _unusable(directory, str(error)) from None
        except (*_DAMAGE, OSError) as error:
            raise _unusable(directory, str(error)) from None

    def load(self) -> dict[KeyId, ReplayMemory]:
        """Return what was remembered of each key; raises StateError."""
        try:
            seen: dict[KeyId, dict[int, set[bytes]]] = {}
            for key, second, digest in self._connection.execute("SELECT key, time, digest FROM seen"):
                seen.setdefault(key, {}).setdefault(int.from_bytes(second), set()).add(digest)
            found = self._connection.execute("SELECT key, time FROM cutoffs").fetchall()
        except _DAMAGE as error:
            raise _unusable(self._path.parent, str(error)) from None
        cutoffs = {key: int.from_bytes(second) for key, second in found}
        return {
            key: ReplayMemory(cutoff=cutoffs.get(key, NOTHING_CUT_OFF), seconds=seen.get(key, {}))
            for key in seen.keys() | cutoffs.keys()
        }

    def save(self, changes: Changes) -> None:
        """Write *changes*, all or nothing, and if they say so, through to the disk; raises StateError."""
        try:
            with self._transaction() as connection:
                connection.executemany(
                    "INSERT OR IGNORE INTO seen VALUES (?, ?, ?)",
                    [(key, second.to_bytes(_TIME_LENGTH), digest) for key, second, digest in changes.seen],
                )
                for key, second in changes.cutoffs.items():
                    cutoff = second.to_bytes(_TIME_LENGTH)
                    connection.execute("INSERT OR REPLACE INTO cutoffs VALUES (?, ?)", (key, cutoff))
                    connection.execute("DELETE FROM seen WHERE key = ? AND time <= ?", (key, cutoff))
        except _DAMAGE as error:
            raise StateError(f"{self._path} cannot be written: {error}", "make room on its disk") from None
        self._commits += 1
        self._flushed = False
        if changes.at_once:
            self.flush()

    def flush(self) -> None:
        """Have what was written be on the disk itself; raises StateError."""
        if self._flushed:
            return
        try:
            os.fdatasync(self._log)
            if self._commits >= _COMMITS_IN_LOG:
                self._connection.execute("PRAGMA wal_checkpoint")
                self._commits = 0
        except (*_DAMAGE, OSError) as error:
            raise StateError(f"{self._path} cannot be written through: {error}", "look after its disk") from None
        self._flushed = True

    def close(self) -> None:
        """Close the store; what was written is on the disk then."""
        os.close(self._log)
        self._connection.close()

    def _open_or_begin_anew(self) -> None:
        try:
            self._open()
        except sqlite3.OperationalError:
            # What is in the way is not in the file.
            raise
        except _DAMAGE:
            self._set_aside()
            self.was_lost = True
            self._open()

    def _open(self) -> None:
        # Nobody waits for a lock: whoever has the store keeps it.
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            self._path.chmod(0o600)
            self._connection.executescript(_SET_UP)
            # An exclusive lock is only taken by the first one that writes.
            with self._transaction() as connection:
                connection.execute("DELETE FROM cutoffs WHERE key IS NULL")
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            if self._connection.execute(_FIND_STRANGE).fetchone():
                raise sqlite3.DatabaseError("what is in it was not written by nfpkd")
            self._log = self._open_log()
        except BaseException:
            self._connection.close()
            raise

    def _open_log(self) -> int:
        """Return a descriptor of the log, to flush it by, with zeros behind what SQLite takes for its end."""
        log = os.open(self._path.with_name(f"{FILE_NAME}-wal"), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        free = os.statvfs(self._path.parent)
        if free.f_bavail * free.f_frsize >= _LEAST_FREE:
            # It is only for speed.
            with contextlib.suppress(OSError):
                os.write(log, bytes(max(0, _LOG_LENGTH - os.fstat(log).st_size)))
                os.fsync(log)
        return log

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                damaged = self._path.with_name(FILE_NAME + suffix)
                damaged.rename(damaged.with_name(f"{damaged.name}.damaged-{stamp}"))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # A commit that failed for want of space may have rolled back by itself.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


def _unusable(directory: Path, reason: str) -> StateError:
    remedy = 'choose another with "--state-dir", or "--state-dir none" to do without'
    return StateError(f"the state directory {directory} cannot be used: {reason}", remedy)
