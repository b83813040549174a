"""Profiles: what a client needs to know of a server, under a short name.

They stand in ``knock.toml``, one table each.  The file of ipt_pkd's Python
client, ``~/.ipt_pkd.ini``, is read as that client reads it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nfpkd.errors import Problem, ProfileError, reason_of
from nfpkd.knock.keys import find_exposure
from nfpkd.rules.model import DEFAULT_TAG, Secret, is_odd_hex, parse_key, parse_tag

if TYPE_CHECKING:
    from configparser import RawConfigParser

# Ten thousand profiles fit.
_MAX_FILE_SIZE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """A server to knock at.

    Of *key*, *key_file* and *key_command* one is set, or none: then the key is
    asked for.  *port* is where to knock, a random one if None; *connect* is
    the TCP port to wait for; *family* is 4, 6 or None for either.
    """

    host: str
    tag: bytes = parse_tag(DEFAULT_TAG)
    key: Secret | None = None
    key_file: Path | None = None
    key_command: tuple[str, ...] = ()
    port: int | None = None
    family: int | None = None
    connect: int | None = None
    old: bool = False


def find_profile(name: str) -> Profile | None:
    """Return the profile *name* of this user, or None; ``knock.toml`` comes before ``~/.ipt_pkd.ini``.

    Raises ProfileError if a file that is looked at is wrong, or if others can
    read the keys in it.
    """
    try:
        knock_toml, ipt_pkd = _find_files()
    except RuntimeError:
        return None
    return _find(name, knock_toml, parse_profiles) or _find(
        name, ipt_pkd, lambda text, path: parse_ipt_pkd(text, path, name)
    )


def list_profile_names() -> Iterator[str]:
    """Yield the names of this user's profiles, for a shell to complete; a file that is wrong yields none.

    Fields are not looked at, so it does not matter here who else could read the keys among them.
    """
    try:
        knock_toml, ipt_pkd = _find_files()
    except RuntimeError:
        return
    for path, parse in ((knock_toml, _list_tables), (ipt_pkd, _list_sections)):
        with contextlib.suppress(ProfileError, OSError):
            # Opening anything else, a FIFO for one, might wait.
            if path.is_file():
                with path.open("rb") as file:
                    yield from parse(_read_text(file, path), path)


def parse_profiles(text: str, path: Path) -> dict[str, Profile]:
    """Return the profiles of a ``knock.toml`` by name; raises ProfileError listing all that is wrong."""
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for name, table in _parse_toml(text, path).items():
        if not isinstance(table, dict):
            problems.append(Problem(str(path), 0, 0, f'"{name}" belongs to no profile: put it below a line [NAME]'))
            continue
        try:
            profiles[name] = _build(name, table, path)
        except ProfileError as error:
            problems.extend(error.problems)
    if problems:
        raise ProfileError(problems)
    return profiles


def parse_ipt_pkd(text: str, path: Path, name: str) -> dict[str, Profile]:
    """Return the section *name* of an ``.ipt_pkd.ini``, if there is one; raises ProfileError if it is wrong.

    Its fields are ``host``, ``key``, ``tag``, ``port`` and ``old``, and
    others are ignored, as knock.py of ipt_pkd 1.13 ignores them.  Like the
    parser of Python 2, which that client runs on, it takes the last of two
    equal lines, and what follows a blank and a semicolon for a comment.
    """
    parser = _parse_ini(text, path)
    if not parser.has_section(name):
        return {}
    section = dict(parser.items(name))
    table: dict[str, Any] = {field: section[field] for field in ("host", "key", "tag") if field in section}
    if "port" in section:
        # What is no number is left for _build to refuse.
        port = section["port"]
        table["port"] = int(port) if re.fullmatch("[0-9]{1,5}", port) else port
    # Whatever it says, but for the one word that knock_original.py makes an exception of.
    table["old"] = section.get("old", "new") != "new"
    missing = [f'profile "{name}": "{field}" is missing' for field in ("host", "key") if field not in table]
    if missing:
        raise ProfileError(Problem(str(path), 0, 0, message) for message in missing)
    return {name: _build(name, table, path)}


def _find_files() -> tuple[Path, Path]:
    """Return where this user's knock.toml and .ipt_pkd.ini would be; raises RuntimeError if they have no home."""
    home = Path.home()
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # A relative one is to be ignored, says the XDG Base Directory Specification.
    folder = Path(configured) if configured.startswith("/") else home / ".config"
    return folder / "nfpkd" / "knock.toml", home / ".ipt_pkd.ini"


def _find(name: str, path: Path, parse: Callable[[str, Path], Mapping[str, Profile]]) -> Profile | None:
    def refuse(message: str) -> ProfileError:
        return ProfileError([Problem(str(path), 0, 0, message)])

    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            text = _read_text(file, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refuse(reason_of(error)) from None
    profiles = parse(text, path)
    fault = find_exposure(path, info, holds_keys=any(profile.key is not None for profile in profiles.values()))
    if profiles and fault:
        raise refuse(fault)
    return profiles.get(name)


def _read_text(file: BinaryIO, path: Path) -> str:
    data = file.read(_MAX_FILE_SIZE + 1)
    if len(data) > _MAX_FILE_SIZE:
        raise ProfileError([Problem(str(path), 0, 0, f"is larger than {_MAX_FILE_SIZE >> 20} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ProfileError([Problem(str(path), line, 1, "is not UTF-8 text")]) from None


def _parse_toml(text: str, path: Path) -> dict[str, Any]:
    # Who has no such file need not wait for its parser; the same holds below.
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError([_locate(path, str(error))]) from None
    except (ValueError, RecursionError):
        # Numbers of thousands of digits, and brackets a thousand deep.
        raise ProfileError([Problem(str(path), 0, 0, "is not TOML")]) from None


def _parse_ini(text: str, path: Path) -> RawConfigParser:
    import configparser

    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",), empty_lines_in_values=False)
    try:
        parser.read_string(text)
    except configparser.MissingSectionHeaderError as error:
        raise ProfileError([Problem(str(path), error.lineno, 1, "stands before the first line [NAME]")]) from None
    except configparser.ParsingError as error:
        # The error's own text repeats the lines.
        problems = [Problem(str(path), line, 1, 'is neither [NAME] nor "field = value"') for line, _ in error.errors]
        raise ProfileError(problems) from None
    return parser


def _list_tables(text: str, path: Path) -> list[str]:
    return [name for name, table in _parse_toml(text, path).items() if isinstance(table, dict)]


def _list_sections(text: str, path: Path) -> list[str]:
    return _parse_ini(text, path).sections()


def _locate(path: Path, message: str) -> Problem:
    """Return what tomllib says in words with its place in numbers; there is no other way to them before Python 3.14."""
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    text, line, column = (found[1], int(found[2]), int(found[3])) if found else (message, 0, 0)
    return Problem(str(path), line, column, f"is not TOML: {text[:1].lower()}{text[1:]}")


def _build(name: str, table: Mapping[str, object], path: Path) -> Profile:
    faults: list[str] = []
    values: dict[str, Any] = {"host": name}
    for field, value in table.items():
        if field not in _FIELDS:
            faults.append(_explain_unknown_field(name, field, value))
            continue
        try:
            values[field.replace("-", "_")] = _FIELDS[field](value, path)
        except ValueError as error:
            faults.append(f'profile "{name}": "{field}" {error}')
    sources = [f'"{field}"' for field in ("key", "key-file", "key-command") if field in table]
    if len(sources) > 1:
        faults.append(f'profile "{name}": {" and ".join(sources)} contradict each other: keep one of them')
    if faults:
        raise ProfileError(Problem(str(path), 0, 0, fault) for fault in faults)
    return Profile(**values)


def _explain_unknown_field(name: str, field: str, value: object) -> str:
    if isinstance(value, dict):
        return f'profile "{name}": "{field}" is a table of its own: a name with dots needs quotes, ["{name}.{field}"]'
    return f'profile "{name}": there is no field "{field}"; the fields are {", ".join(_FIELDS)}'


def _parse_text(value: object, _: Path) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    if not value:
        raise ValueError("is empty")
    return value


def _parse_tag(value: object, path: Path) -> bytes:
    return parse_tag(_parse_text(value, path))


def _parse_key(value: object, path: Path) -> Secret:
    text = _parse_text(value, path)
    if is_odd_hex(text):
        # knock.py refuses it, too.
        raise ValueError("has an odd number of hex digits")
    return parse_key(text)


def _parse_file(value: object, path: Path) -> Path:
    text = _parse_text(value, path)
    try:
        return path.parent / Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and the name of nobody here") from None


def _parse_command(value: object, _: Path) -> tuple[str, ...]:
    words = value
    if isinstance(value, str):
        import shlex

        try:
            words = shlex.split(value)
        except ValueError:
            raise ValueError("has a quote that does not end") from None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError("must be a command: text, or a list of words in quotes")
    return tuple(words)


def _parse_port(value: object, _: Path) -> int:
    # In Python, true is a number, too.
    if type(value) is not int or not 1 <= value <= 65535:
        raise ValueError("must be a number from 1 to 65535")
    return value


def _parse_family(value: object, _: Path) -> int:
    if type(value) is not int or value not in (4, 6):
        raise ValueError("must be 4 or 6")
    return value


def _parse_flag(value: object, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


_FIELDS: dict[str, Callable[[object, Path], object]] = {
    "host": _parse_text,
    "tag": _parse_tag,
    "key": _parse_key,
    "key-file": _parse_file,
    "key-command": _parse_command,
    "port": _parse_port,
    "family": _parse_family,
    "connect": _parse_port,
    "old": _parse_flag,
}
