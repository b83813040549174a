"""Fail2Ban itself, with the filter and the jail from contrib/fail2ban."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.required import find_program

_SHIPPED = Path(__file__).parents[2] / "contrib" / "fail2ban"


def find_fail2ban(program: str) -> list[str]:
    """Return how to start one of Fail2Ban's programs, wherever it is installed, or unpacked."""
    path = Path(find_program(program))
    return ["env", f"PYTHONPATH={path.parents[1] / 'lib' / 'python3' / 'dist-packages'}", str(path)]


def configure(folder: Path, settings: str = "") -> Path:
    """Make a configuration in *folder*: Fail2Ban's own, with nfpkd's jail alone, and *settings* over it."""
    program = Path(find_program("fail2ban-server"))
    own = next(etc for root in program.parents if (etc := root / "etc" / "fail2ban").is_dir())
    shutil.copytree(own, folder)
    shutil.rmtree(folder / "jail.d")
    (folder / "jail.d").mkdir()
    shutil.copy(_SHIPPED / "nfpkd.conf", folder / "filter.d")
    shutil.copy(_SHIPPED / "nfpkd-jail.conf", folder / "jail.d" / "nfpkd.conf")
    # What an administrator has added is not looked at.
    (folder / "jail.local").write_text(settings)
    (folder / "fail2ban.local").write_text("[DEFAULT]\ndbfile = None\n")
    return folder
