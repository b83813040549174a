"""JSON with positions: where in a file a value stands, and strictness that Python's parser lacks.

The standard parser is fast but forgets positions.  So files are parsed with
it, and only a file that has something to complain about is walked a second
time, token by token, to find out where.
"""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from nfpkd.errors import Problem, RulesError

Path = tuple[str | int, ...]

# Rule files need a depth of 4.
MAX_DEPTH = 32
# Python refuses to read integers of over 4,300 digits; no field takes so many.
MAX_NUMBER_LENGTH = 64

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(r'[ \t\n\r]*(?:("[^"\\]*(?:\\.[^"\\]*)*")|([\[\]{},:])|([^\s\[\]{}:,"]+))', re.DOTALL)
_COMMA_TOO_MANY = re.compile(r",\s*([]}])")
_CONSTANT = re.compile("NaN|-?Infinity")


class Token(NamedTuple):
    """A value's first token, or an object's key, at *offset*; *path* leads to the value."""

    offset: int
    path: Path
    text: str
    is_key: bool


class _UnacceptableError(Exception):
    """Python's parser met something that it would let through and we do not; the walk says where."""


def _walk(text: str) -> Iterator[Token]:
    """Yield the first token of each value, and each key, of *text*, which Python's parser has accepted.

    Brackets deeper than MAX_DEPTH end the walk, after their own token.
    """
    path: list[str | int] = []
    in_object: list[bool] = []
    expect_key = False
    for match in _TOKEN.finditer(text):
        token = match.group(match.lastindex or 0)
        offset = match.start(match.lastindex or 0)
        if token in "]}":
            in_object.pop()
            path.pop()
            expect_key = False
        elif token == ",":
            if in_object[-1]:
                expect_key = True
            else:
                last = path[-1]
                path[-1] = last + 1 if isinstance(last, int) else 0
        elif token == ":":
            expect_key = False
        elif expect_key:
            path[-1] = json.loads(token, strict=False)
            yield Token(offset, tuple(path), token, is_key=True)
        else:
            yield Token(offset, tuple(path), token, is_key=False)
            if token in "[{":
                in_object.append(token == "{")
                path.append("" if token == "{" else 0)
                expect_key = token == "{"
                if len(path) > MAX_DEPTH:
                    return


class Document:
    """A parsed JSON text that can say where each of its parts stands."""

    def __init__(self, name: str, text: str) -> None:
        """Parse *text*, called *name* in errors; raises RulesError."""
        self._name = name
        self._text = text
        self.value: object = self._parse()

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> Problem:
        """Return a Problem at the value *path* leads to, or at its key, or at the nearest parent that is there."""
        while (path, at_key) not in self._offsets and path:
            path, at_key = path[:-1], False
        return self._problem_at(self._offsets.get((path, at_key), 0), message)

    @functools.cached_property
    def _offsets(self) -> dict[tuple[Path, bool], int]:
        return {(token.path, token.is_key): token.offset for token in _walk(self._text)}

    def _problem_at(self, offset: int, message: str) -> Problem:
        line = bisect.bisect_right(self._line_starts, offset)
        return Problem(self._name, line, offset - self._line_starts[line - 1] + 1, message)

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self._text))]

    def _parse(self) -> object:
        try:
            value: object = json.loads(
                self._text, object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
            )
        except json.JSONDecodeError as error:
            offset, message = _explain(error)
            raise RulesError([self._problem_at(offset, f"not valid JSON: {message}")]) from None
        except (_UnacceptableError, RecursionError, ValueError):
            raise RulesError([self._find_unacceptable()]) from None
        if _is_too_deep(value):
            raise RulesError([self._find_unacceptable()])
        # A surrogate pair is a character; a lone one is not, and cannot be encoded.
        if _SURROGATE.search(self._text):
            for token in _walk(self._text):
                if token.text[0] == '"' and re.search("[\ud800-\udfff]", json.loads(token.text)):
                    raise RulesError([self._problem_at(token.offset, "has a lone surrogate, which is not text")])
        return value

    def _find_unacceptable(self) -> Problem:
        keys: set[Path] = set()
        for offset, path, token, is_key in _walk(self._text):
            if is_key and path in keys:
                return self._problem_at(offset, f"{token} is given twice")
            if is_key:
                keys.add(path)
            elif constant := _CONSTANT.match(token):
                # The parser stopped right behind it: what follows may be anything, and is not walked.
                return self._problem_at(offset, f"{constant[0]} is not a JSON number")
            elif len(path) >= MAX_DEPTH and token in "[{":
                return self._problem_at(offset, f"brackets are nested more than {MAX_DEPTH} deep")
            elif token[0] in "-0123456789" and len(token) > MAX_NUMBER_LENGTH:
                return self._problem_at(offset, f"a number has {len(token)} digits")
        return Problem(self._name, 0, 0, "cannot be read as JSON")


def _is_too_deep(value: object) -> bool:
    """Tell whether brackets nest beyond MAX_DEPTH: what recurses over *value* later has no limit of its own."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [item for found in containers for item in (found.values() if isinstance(found, dict) else found)]
    return True


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _UnacceptableError
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise _UnacceptableError


def _explain(error: json.JSONDecodeError) -> tuple[int, str]:
    """Return the parser's place and message, with what people most often did wrong."""
    following = error.doc[error.pos : error.pos + 1]
    if not error.doc.strip():
        return error.pos, "the file is empty; write [] for no rules"
    if following == "'":
        return error.pos, 'strings and names take double quotes (")'
    if following in ("/", "#"):
        return error.pos, 'comments are not allowed; use "description"'
    # Up to Python 3.12 the parser stops at the bracket, and since then at the comma.
    place = len(error.doc[: error.pos].rstrip()) - 1 if following in ("]", "}") else error.pos
    if comma := _COMMA_TOO_MANY.match(error.doc, max(place, 0)):
        return comma.start(), f"a comma before {comma[1]} is one too many"
    return error.pos, error.msg[:1].lower() + error.msg[1:]
