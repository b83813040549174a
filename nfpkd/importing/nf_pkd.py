"""nf-pkd's rule files, which are nearly ours.

nf-pkd's README and its action.go, packet.go and knock.go say how it reads and uses them: it passes over fields that
it does not know, writes names in any case, cuts what is too long, and of rules with the same tag or port heeds the
last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from nfpkd.errors import RulesError
from nfpkd.importing.model import Draft, Fields, Imported, Remark, make_name, order_fields
from nfpkd.importing.secret import read_key, read_tag
from nfpkd.rules.model import DEFAULT_TAG
from nfpkd.rules.positions import Document
from nfpkd.rules.schema import load_schema

# nf-pkd's own spellings of what it planned.
_SPELLINGS = {"extaction": "ext-command", "ext-action": "ext-command", "extuser": "ext-user"}


def read(text: str) -> Imported:
    """Return the rules of a rule file of nf-pkd."""
    try:
        document = Document("", text)
    except RulesError as error:
        return Imported(
            remarks=tuple(Remark(max(p.line, 1), f"file not imported: {p.message}") for p in error.problems)
        )
    if not isinstance(document.value, list):
        return Imported(
            remarks=(Remark(1, "file not imported: a rule file is a list of rules; put [ and ] around it"),)
        )
    drafts: list[Draft] = []
    remarks: list[Remark] = []
    for index, given in enumerate(document.value):
        line = document.problem((index,), "").line
        if isinstance(given, dict):
            drafts.append(Draft(line, order_fields(_read_rule(document, index, given, remarks))))
        else:
            remarks.append(Remark(line, "not imported: not a rule, which is in { and }"))
    return Imported(tuple(drafts), tuple(remarks))


def _read_rule(document: Document, index: int, given: dict[str, Any], remarks: list[Remark]) -> Fields:
    """Return a rule's fields as nf-pkd understands them; what is wrong with them otherwise is for the loader to say."""
    known = load_schema()["$defs"]["rule"]["properties"].keys()
    fields: Fields = {}

    def remark(name: str, text: str, *, left_out: bool = True) -> None:
        remarks.append(Remark(document.problem((index, name), "", at_key=True).line, text, left_out))

    for name, value in given.items():
        field = _SPELLINGS.get(name.lower(), name.lower())
        shown = json.dumps(name[:40])
        if field == "obo":
            if value:
                remark(name, '"obo" left out: a knock lets in the address that it comes from, and no other')
        elif field not in known:
            remark(name, f"{shown} left out: no field of a rule, and nf-pkd passes over it, too")
        elif value is None or (value == "" and field != "name"):
            # To Go, as if it were not there.
            continue
        elif field == "skew" and isinstance(value, int) and value < -1:
            remark(
                name, f"{shown} is negative, which is the default of 10 to nf-pkd; -1 ignores the clock", left_out=False
            )
        elif field in ("window", "port") and value == 0:
            remark(name, f"{shown} is 0, and left out", left_out=field == "port")
        elif field == "ext-command" and isinstance(value, str) and not value.startswith("/"):
            remark(name, f"{shown} left out: give the program's absolute path")
        else:
            fields[field] = _read_value(field, value)
            if field == "ext-command":
                remark(name, f'{shown} is run here, as "ext-user"; nf-pkd never ran it', left_out=False)
    if not isinstance(fields.get("name"), str) or make_name(fields["name"]) != fields["name"]:
        made = make_name(_find_name(fields))
        text = f'"name" is "{made}" here: it is needed, and takes letters, digits, "_", "." and "-"'
        remark("name", text, left_out=False)
        fields["name"] = made
    return fields


def _find_name(fields: Fields) -> str:
    """Return what a rule can be called by; not a list or an object, for there may be a key in it."""
    for prefix, value in (("", fields.get("name")), ("port-", fields.get("port"))):
        if value and isinstance(value, (str, int)):
            return f"{prefix}{value}"
    return "port-none"


def _read_value(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if field == "key":
        return read_key(value)
    if field == "tag":
        return read_tag(value)
    return value.lower() if field in ("protocol", "reject") else value


def compare(files: Iterable[tuple[str, Imported]]) -> Iterator[tuple[str, Imported]]:
    """Yield *files* with remarks on rules that have the tag of another, of which nf-pkd heeds the last alone."""
    first: dict[str, str] = {}
    for file, imported in files:
        remarks = list(imported.remarks)
        for draft in imported.rules:
            place = f"{file}:{draft.line}"
            other = first.setdefault(str(draft.fields.get("tag", DEFAULT_TAG)), place)
            if other != place:
                text = f"has the tag of {other}; nf-pkd heeds the last of them alone, and here knocks open both"
                remarks.append(Remark(draft.line, text, left_out=False))
        yield file, imported._replace(remarks=tuple(remarks))
