"""Readers of texts that people wrote: a client's profiles, and the configuration of other port knockers.

Each takes a file's bytes, which may be anything.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.fuzz.promise import promise
from nfpkd.errors import Problem, ProfileError, RulesError
from nfpkd.importing import kinds
from nfpkd.importing.kinds import Kind
from nfpkd.knock.profiles import _read_text, parse_ipt_pkd, parse_profiles
from nfpkd.logs import escape
from nfpkd.rules.build import build_rules, find_conflicts
from nfpkd.rules.loader import decode_text
from nfpkd.rules.positions import Document

# Marks the keys in the corpus: what has it in a key, and nowhere else, may say it nowhere.
MARKER = "M4RK3R"
_JSON_KEYS = re.compile(rb'"keys?"\s*:\s*(?:"[^"\\]*"|\[[^\[\]{}\\]*\])')
_TOML_KEYS = re.compile(rb'^\s*key\s*=\s*"[^"\\\n]*"\s*$', re.MULTILINE)
_INI_KEYS = re.compile(rb"^key\s*[=:][^;\n]*$", re.MULTILINE)
_FWKNOP_KEYS = re.compile(rb"^(?:HMAC_)?KEY(?:_BASE64)?[ \t]+[^;\n]*$", re.MULTILINE)
_IPTABLES_KEYS = re.compile(rb" --key [^\s'\"]+(?= |$)", re.MULTILINE)


def hides_marker(data: bytes, keys: re.Pattern[bytes] = _JSON_KEYS) -> bool:
    """Tell whether *data* has the marker where *keys* finds keys, and nowhere else."""
    marker = MARKER.encode()
    return marker in data and marker not in keys.sub(b"", data)


def check_problems(problems: Iterable[Problem], path: str, data: bytes, *, hides: bool) -> None:
    """Check that each of *problems* has a place in *data*, the file *path*, and that none repeats a key it hides."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for problem in problems:
        named, line, column, message = problem
        promise(named == path, "a problem names the file")
        promise((line == 0) == (column == 0), "a problem has a line and a column, or neither")
        promise(0 <= line <= len(lines), "the line is in the file")
        if line:
            promise(0 < column <= len(lines[line - 1].decode(errors="replace")) + 1, "the column is in the line")
        promise(bool(message) and escape(str(problem)).isprintable(), "there is a line to be read")
        promise(not hides or MARKER not in message, "no key is repeated")


def read_profiles(body: bytes) -> None:
    """The client's knock.toml."""
    path = Path("knock.toml")
    try:
        profiles = parse_profiles(_read_text(io.BytesIO(body), path), path)
    except ProfileError as error:
        check_problems(error.problems, str(path), body, hides=hides_marker(body, _TOML_KEYS))
    else:
        promise(not hides_marker(body, _TOML_KEYS) or MARKER not in repr(profiles), "no key is shown")


def read_ini(body: bytes) -> None:
    """The .ipt_pkd.ini of another client."""
    path = Path(".ipt_pkd.ini")
    try:
        profiles = parse_ipt_pkd(_read_text(io.BytesIO(body), path), path, "home")
    except ProfileError as error:
        check_problems(error.problems, str(path), body, hides=hides_marker(body, _INI_KEYS))
    else:
        promise(not hides_marker(body, _INI_KEYS) or MARKER not in repr(profiles), "no key is shown")


def make_importer(kind: Kind, keys: re.Pattern[bytes]) -> Callable[[bytes], None]:
    """Return what reads configuration of *kind*, in which *keys* finds keys."""

    def read(body: bytes) -> None:
        try:
            text = decode_text("x", body)
        except RulesError as error:
            check_problems(error.problems, "x", body, hides=hides_marker(body, keys))
            return
        kinds.recognize(text)
        numbers = itertools.count(1)
        merged = kinds.merge(kinds.read_all(kind, [("x", text)], lambda: f"0x{next(numbers):064x}"))
        for name, (line, said, _) in ((name, (r.line, r.text, r.left_out)) for name, r in merged.remarks):
            promise(name == "x" and 1 <= line <= text.count("\n") + 1, "a remark is about a line of the file")
            promise(escape(said).isprintable() and bool(said), "there is something to be read")
            promise(not hides_marker(body, keys) or MARKER not in said, "no key is repeated")
        # What is printed is a rule file.
        built = build_rules(Document("made", json.dumps(merged.rules)))
        promise(not list(find_conflicts(built.rules)), "what is imported can be loaded")

    return read


IMPORTERS = {
    "nf-pkd": make_importer(Kind.NF_PKD, _JSON_KEYS),
    "iptables": make_importer(Kind.IPTABLES, _IPTABLES_KEYS),
    "knockd": make_importer(Kind.KNOCKD, _JSON_KEYS),
    "fwknop": make_importer(Kind.FWKNOP, _FWKNOP_KEYS),
}
