"""What tests need of the machine, and what becomes of them without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

# Where a skipped test would be taken for a passed one.
_NOTHING_IS_SKIPPED = bool(os.environ.get("NFPKD_REQUIRE_NETNS")) or os.environ.get("CI") == "true"

# What is root's is not on everybody's path; in CI, contrib/test unpacks Fail2Ban without installing it.
_PLACES = ("/usr/sbin", "/sbin", str(Path(__file__).parents[2] / ".tox" / "fail2ban" / "usr" / "bin"))


def give_up(reason: str) -> NoReturn:
    """Skip this test, or let it fail where none may be skipped."""
    if _NOTHING_IS_SKIPPED:
        pytest.fail(f"{reason}, and here this test may not be skipped", pytrace=False)
    pytest.skip(reason)


def find_program(name: str) -> str:
    """Return where the program *name* is; without it the test is skipped, or fails."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES)))
    if found is None:
        give_up(f"there is no {name} here")
    return found
