"""What was enforced last, on disk: for a start at which the rule files of the day are not good.

Two things stand in one file.  The texts of the rule files, by which knocks go on being
judged: they hold keys.  And the transaction that makes the guard on an empty host, which
only the kernel has to agree to: a newer nfpkd may refuse rules that an older one took, and
no port may be left open by that.  Nobody who was let in is kept.

The first line is the SHA-256 of what follows, which is JSON: rules that a disk has
changed must not be taken for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

from nfpkd.errors import KernelError, RulesError, StateError, reason_of
from nfpkd.firewall.nft import Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, transaction_to
from nfpkd.logs import log_event
from nfpkd.rules.build import build_rules, find_conflicts
from nfpkd.rules.loader import Loaded
from nfpkd.rules.positions import Document

FILE_NAME = "last-good"
_FRESH = f"{FILE_NAME}.new"


class _Kept(NamedTuple):
    directory: str
    texts: tuple[tuple[str, str], ...]
    guard: Transaction


class LastGood:
    """What is kept in *state_dir* of the rules below *actions*."""

    def __init__(self, state_dir: Path, actions: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._actions = str(actions.absolute())

    def save(self, loaded: Loaded, options: Options) -> None:
        """Keep *loaded*, and the guard that it makes, in place of what was kept before; raises StateError.

        What is there at any moment, also after a power failure, is the one or the other.
        """
        guard = transaction_to(compile_ruleset(loaded.rules, options), None)
        text = json.dumps({"directory": self._actions, "texts": loaded.texts, "guard": guard.commands})
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _replace(directory, f"{_digest(text.encode())}\n{text}")
            finally:
                os.close(directory)
        except OSError as error:
            raise StateError(
                f"the last good rules cannot be kept in {self.path}: {reason_of(error)}", 'choose another "--state-dir"'
            ) from None

    def load_guard(self) -> Transaction | None:
        """Return the transaction that makes the guard on an empty host; None if none was kept.

        It may be that of another rule directory: better that one than none.
        Raises StateError for a file that cannot be read, or is none of ours.
        """
        kept = self._load()
        return None if kept is None else kept.guard

    def load_rules(self) -> Loaded | None:
        """Return the rules that were good last, if they are of the same directory; None if none were kept.

        Raises StateError, also for rules that this version of nfpkd does not take.
        """
        kept = self._load()
        if kept is None:
            return None
        if kept.directory != self._actions:
            raise self._unusable(f"they are those of {kept.directory}, not of {self._actions}")
        try:
            placed = [rule for path, text in kept.texts for rule in build_rules(Document(path, text)).rules]
            if conflicts := list(find_conflicts(placed)):
                raise RulesError(conflicts)
        except RulesError as error:
            raise self._unusable(f"this version of nfpkd does not take them: {error.problems[0]}") from None
        return Loaded(tuple(p.rule for p in placed), (), len(kept.texts), kept.texts)

    def _load(self) -> _Kept | None:
        try:
            digest, _, data = self._read().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(reason_of(error)) from None
        if digest.decode(errors="replace") != _digest(data):
            raise self._unusable("the file is damaged")
        try:
            kept = json.loads(data)
            texts = tuple((str(path), str(text)) for path, text in kept["texts"])
            return _Kept(kept["directory"], texts, Transaction(tuple(kept["guard"])))
        except (LookupError, TypeError, ValueError):
            # What some other version of nfpkd has written, or will.
            raise self._unusable("this version of nfpkd does not know its format") from None

    def _read(self) -> bytes:
        # A FIFO would wait for a writer.
        careful = os.O_NOFOLLOW | os.O_NONBLOCK
        with open(self.path, "rb", opener=lambda path, flags: os.open(path, flags | careful)) as file:
            info = os.fstat(file.fileno())
            # Whoever owns the directory could replace the file anyway.
            owners = {0, os.geteuid(), self.path.parent.stat().st_uid}
            if not stat.S_ISREG(info.st_mode):
                raise self._unusable("it is not a regular file")
            if info.st_uid not in owners or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise self._unusable("others can change the file")
            return file.read()

    def _unusable(self, reason: str) -> StateError:
        return StateError(f"the last good rules, in {self.path}, cannot be used: {reason}", "correct the rule files")


def fall_back(kept: LastGood, error: RulesError | KernelError) -> Loaded:
    """Return the rules to go on with after *error*, and log why; raises *error* if there are none."""
    try:
        loaded = kept.load_rules()
    except StateError as unusable:
        log_event(logging.ERROR, "fall_back_failed", str(unusable))
        raise error from None
    if loaded is None:
        log_event(logging.ERROR, "fall_back_failed", f"no last good rules are kept in {kept.path}")
        raise error
    reason = "the rule files have errors" if isinstance(error, RulesError) else str(error)
    if isinstance(error, RulesError):
        log_refused(error)
    text = f"{reason}; going on with the last good rules, kept in {kept.path}"
    log_event(logging.WARNING, "fell_back", text, rules=len(loaded.rules))
    return loaded


def log_refused(error: RulesError) -> None:
    for problem in error.problems:
        log_event(logging.ERROR, "rules_refused", str(problem))


def _replace(directory: int, text: str) -> None:
    """Write *text* where the descriptor *directory* leads to: whole, or not at all; raises OSError."""
    # Two who save at once take turns.  What one left that was killed holds keys, and goes.
    fcntl.flock(directory, fcntl.LOCK_EX)
    _unlink(directory)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(_FRESH, flags, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "w") as file:
            if os.geteuid() == 0:
                # `apply` may be root's where `run` is another user's, whose the directory is.
                owner = os.fstat(directory)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.rename(_FRESH, FILE_NAME, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        _unlink(directory)
    os.fsync(directory)


def _unlink(directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_FRESH, dir_fd=directory)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
