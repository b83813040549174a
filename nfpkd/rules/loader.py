"""Reading rule files from a directory, as carefully as ssh reads its keys."""

from __future__ import annotations

import contextlib
import grp
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nfpkd.errors import Problem, RulesError, reason_of
from nfpkd.rules.build import BuiltFile, PlacedRule, build_rules, find_conflicts
from nfpkd.rules.model import Rule
from nfpkd.rules.positions import Document

# 100,000 rules with long descriptions fit; a file that was meant for something else does not.
MAX_FILE_SIZE = 64 * 1024 * 1024
# The group of the service's own user, which nfpkd.sysusers makes.
SERVICE_GROUP = "nfpkd"


class Loaded(NamedTuple):
    """All rules below a directory, in the order of their files, and warnings, which stop nothing.

    *texts* are the files' paths and texts.
    """

    rules: tuple[Rule, ...]
    warnings: tuple[Problem, ...]
    files: int
    texts: tuple[tuple[str, str], ...] = ()


class FileStamp(NamedTuple):
    """What changes when a file is written or replaced; compares without reading it."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class RuleLoader:
    """Reads the rules below a directory, again and again; a text that did not change is parsed and checked once.

    Reading all of 10,000 rules takes some milliseconds, and checking them half a second.
    What it holds on to is the text of all files: what is wrong between two rules is said with
    their places.
    """

    def __init__(self, directory: Path, *, strict_modes: bool = True) -> None:
        """With *strict_modes*, files and directories that others could read or change are refused.

        The files hold keys, and rules decide who gets in.
        """
        self._directory = directory
        self._strict_modes = strict_modes
        self._built: dict[Path, tuple[str, BuiltFile]] = {}

    def load(self, *, places: list[PlacedRule] | None = None) -> Loaded:
        """Return the rules of every ``*.json``; raises RulesError listing all that is wrong.

        The same rules with their places are added to *places*.
        """
        problems: list[Problem] = []
        placed: list[PlacedRule] = []
        warnings: list[Problem] = []
        kept: dict[Path, tuple[str, BuiltFile]] = {}
        paths = find_rule_files(self._directory, problems, strict_modes=self._strict_modes)
        for path in paths:
            try:
                text = _read_text(path, strict_modes=self._strict_modes)
                before, built = self._built.get(path, (None, None))
                if built is None or text != before:
                    built = build_rules(Document(str(path), text))
            except RulesError as error:
                problems.extend(error.problems)
                continue
            kept[path] = text, built
            placed.extend(built.rules)
            warnings.extend(built.warnings)
        self._built = kept
        if not problems:
            problems.extend(find_conflicts(placed))
        if problems:
            raise RulesError(problems)
        if places is not None:
            places.extend(placed)
        texts = tuple((str(path), text) for path, (text, _) in kept.items())
        return Loaded(tuple(p.rule for p in placed), tuple(warnings), len(paths), texts)


def load_rules(directory: Path, *, strict_modes: bool = True, places: list[PlacedRule] | None = None) -> Loaded:
    """Return what `RuleLoader` finds below *directory* the first time."""
    return RuleLoader(directory, strict_modes=strict_modes).load(places=places)


# What is wrong counts, too: a link that leads nowhere has nothing else to tell it by.
Stamps = frozenset[FileStamp | Problem]


def stamp_files(directory: Path) -> Stamps:
    """Return the stamps of the rule files below *directory*, and what keeps others from having one."""
    problems: list[Problem] = []
    paths = find_rule_files(directory, problems, strict_modes=False)
    return frozenset((*map(_stamp, paths), *problems))


def _stamp(path: Path) -> FileStamp | Problem:
    try:
        info = path.stat()
    except OSError as error:
        return _os_problem(path, error)
    return FileStamp(str(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def find_rule_files(
    directory: Path, problems: list[Problem], *, strict_modes: bool, folders: list[Path] | None = None
) -> list[Path]:
    """Return the rule files below *directory*, sorted by path; add what is wrong on the way to *problems*.

    The directories that were read on the way are added to *folders*.

    Links are followed, because configuration management deploys by them; a
    directory that was already visited is not entered again.
    """
    visited: set[tuple[int, int]] = set()

    def visit(folder: Path) -> Iterator[Path]:
        try:
            info = folder.stat()
            if (info.st_dev, info.st_ino) in visited:
                return
            visited.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            problems.append(_os_problem(folder, error, is_folder=True))
            return
        if folders is not None:
            folders.append(folder)
        if strict_modes:
            problems.extend(_find_loose_modes(folder, info))
        for name in names:
            path = folder / name
            if name.startswith("."):
                continue
            try:
                is_folder = path.is_dir()
            # Python before 3.14 hides only some of the reasons why a path cannot be looked at.
            except OSError as error:
                problems.append(_os_problem(path, error))
                continue
            if is_folder:
                if name.endswith(".json"):
                    problems.append(Problem(str(path), 0, 0, "is a directory, but named like a rule file"))
                else:
                    yield from visit(path)
            elif name.endswith(".json"):
                yield path

    return sorted(visit(directory))


def _read_text(path: Path, *, strict_modes: bool) -> str:
    """Return the text of one rule file; raises RulesError."""

    def refuse(message: str) -> RulesError:
        return RulesError([Problem(str(path), 0, 0, message)])

    try:
        # Opening a FIFO would wait for a writer; O_NONBLOCK makes that an ordinary answer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise refuse("is not a regular file")
            loose = list(_find_loose_modes(path, info)) if strict_modes else []
            if loose:
                raise RulesError(loose)
            if info.st_size > MAX_FILE_SIZE:
                raise refuse(f"is larger than {MAX_FILE_SIZE >> 20} MiB")
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise RulesError([_os_problem(path, error)]) from None
    return decode_text(str(path), data)


def decode_text(name: str, data: bytes) -> str:
    """Return the text in *data*, called *name* in errors; raises RulesError."""
    if len(data) > MAX_FILE_SIZE:
        raise RulesError([Problem(name, 0, 0, f"is larger than {MAX_FILE_SIZE >> 20} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # What the decoder looked at, and counts in, starts behind a byte order mark.
        before = error.object[: error.start].decode()
        line = before.count("\n") + 1
        column = len(before) - before.rfind("\n")
        raise RulesError([Problem(name, line, column, "is not UTF-8 text")]) from None


def _os_problem(path: Path, error: OSError, *, is_folder: bool = False) -> Problem:
    reason = reason_of(error)
    remedy = ""
    if isinstance(error, FileNotFoundError):
        remedy = ': create it, or say where the rules are with "--actions"'
    elif isinstance(error, PermissionError) and os.getegid() == _find_service_group():
        name = shlex.quote(str(path))
        commands = (f"chgrp {SERVICE_GROUP} {name}", f"chmod g+rx {name}") if is_folder else list_mode_commands(path)
        remedy = f": let the service read it: {_say_run(commands)}"
    return Problem(str(path), 0, 0, f"{reason}{remedy}")


def list_mode_commands(path: Path) -> tuple[str, ...]:
    """Return the commands after which root reads the rule file *path*, the service if there is one, and nobody else."""
    name = shlex.quote(str(path))
    if _find_service_group() is None:
        return (f"chmod 600 {name}",)
    return (f"chgrp {SERVICE_GROUP} {name}", f"chmod 640 {name}")


def _say_run(commands: Iterable[str]) -> str:
    return "run " + " and ".join(f'"{command}"' for command in commands)


def _find_loose_modes(path: Path, info: os.stat_result) -> Iterator[Problem]:
    """Yield what would let others read a key or change a rule.

    A group may read only if it is one that nfpkd itself runs with, or the service
    does, as in ``root:nfpkd 0640``: root's commands take what is meant for that.
    """
    if info.st_uid not in (0, os.geteuid()):
        message = f'belongs to user {info.st_uid}, who could change it: run "chown root {path}"'
        yield Problem(str(path), 0, 0, message)
    if stat.S_ISDIR(info.st_mode):
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield Problem(str(path), 0, 0, f'others can add rules here: run "chmod go-w {path}"')
        return
    forbidden = stat.S_IRWXO | stat.S_IWGRP
    if info.st_gid not in (0, os.getegid(), *os.getgroups()) and info.st_gid != _find_service_group():
        forbidden |= stat.S_IRGRP
    if info.st_mode & forbidden:
        can = "change" if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else "read"
        # A user's own file is not the service's, and not every user could give it to that.
        commands = list_mode_commands(path) if info.st_uid == 0 else (f"chmod 600 {shlex.quote(str(path))}",)
        yield Problem(str(path), 0, 0, f"others can {can} this file with its keys: {_say_run(commands)}")


def _find_service_group() -> int | None:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(SERVICE_GROUP).gr_gid
    return None
