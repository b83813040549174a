"""The last guard that was good, on disk: for a boot at which the rules of the day are not.

What is kept is the transaction that makes the table on an empty host, not the
rules: it holds no key, and nobody who was let in.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from nfpkd.errors import StateError
from nfpkd.firewall.nft import Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, transaction_to
from nfpkd.rules.model import Rule

FILE_NAME = "guard.json"


class LastGood:
    """The guard that is kept in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME

    def save(self, rules: Iterable[Rule], options: Options) -> None:
        """Keep the guard that *rules* make, in place of the one before; raises StateError.

        What is there at any moment, also after a power failure, is the one or the other.
        """
        text = transaction_to(compile_ruleset(rules, options), None).to_json()
        # Two who save at once must not write into one file.
        fresh = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                # Tags and names of rules are nobody else's business.
                descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(descriptor)
                fresh.rename(self.path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    fresh.unlink()
            _sync_directory(self.path.parent)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StateError(
                f"the last good guard cannot be kept in {self.path}: {reason}", 'choose another "--state-dir"'
            ) from None

    def load(self) -> Transaction | None:
        """Return the transaction that makes the guard on an empty host; None if none was kept.

        Raises StateError for a file that cannot be read, or is none of ours.
        """
        try:
            kept = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable((error.strerror or str(error)).lower()) from None
        except ValueError:
            raise self._unusable("it is damaged") from None
        commands = kept.get("nftables") if isinstance(kept, dict) else None
        if not isinstance(commands, list) or not all(isinstance(command, dict) for command in commands):
            raise self._unusable("it is damaged")
        return Transaction(tuple(commands))

    def _unusable(self, reason: str) -> StateError:
        return StateError(f"the last good guard, {self.path}, cannot be used: {reason}", "correct the rules")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
