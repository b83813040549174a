"""Which commands may be run at all, and with what around them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nfpkd.errors import TriggerError, reason_of

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Account(NamedTuple):
    """Who a command runs as, with all groups of that user."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find_account(name: str) -> Account:
    """Return the account *name*; raises TriggerError if there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise TriggerError(f"there is no user {name!r} to run it as") from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def check_command(path: str) -> None:
    """Raise TriggerError unless *path* is a program that only root, or who owns nfpkd, can have put there.

    Every directory and link on the way counts: who can write one can replace
    what is below it, also between this look and the command's start.
    """
    program = Path(path)
    if not program.is_absolute():
        raise TriggerError(f"{path!r} is not an absolute path")
    try:
        info = program.stat()
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
            raise TriggerError(f"{path} is not an executable file")
        for place in _places_on_the_way(program):
            _check_writers(place)
    except OSError as error:
        raise TriggerError(f"{path}: {reason_of(error)}") from None


def _places_on_the_way(path: Path) -> Iterator[Path]:
    """Yield each directory and link that the kernel goes through, and what *path*, which exists, leads to."""
    rest = list(reversed(path.parts))
    place = Path("/")
    while rest:
        part = rest.pop()
        place = place.parent if part == ".." else place / part
        yield place
        if place.is_symlink():
            rest.extend(reversed(place.readlink().parts))
            place = place.parent


def _check_writers(place: Path) -> None:
    info = place.lstat()
    if info.st_uid not in (0, os.geteuid()):
        raise TriggerError(f"{place} belongs to user {info.st_uid}, who could change it")
    if stat.S_ISLNK(info.st_mode):
        return
    # In a sticky directory, such as /tmp, others can add but not replace.
    loose = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if loose and not (stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX):
        raise TriggerError(f'others can change {place}: run "chmod go-w {place}"')


def make_environment(account: Account, *, event: str, rule: str, source: str, ports: str, tag: str) -> dict[str, str]:
    """Return the whole environment of a command: nothing of nfpkd's own is passed on."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "NFPKD_EVENT": event,
        "NFPKD_RULE": rule,
        "NFPKD_SOURCE": source,
        "NFPKD_PORT": ports,
        "NFPKD_TAG": tag,
    }


def describe_account(account: Account) -> str:
    """Return *account* for a log line, with its group's name."""
    try:
        group = grp.getgrgid(account.gid).gr_name
    except KeyError:
        group = str(account.gid)
    return f"{account.name}:{group}"
