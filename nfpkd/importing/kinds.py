"""The kinds of configuration that can be imported, how they look, and how what is found becomes one rule file."""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfpkd.errors import RulesError
from nfpkd.importing import fwknop, iptables, knockd, nf_pkd
from nfpkd.importing.model import Draft, Fields, Imported, InexpressibleError, MakeKey, Remark
from nfpkd.rules.build import build_rules
from nfpkd.rules.model import Reject, Rule, Service
from nfpkd.rules.positions import Document


class Kind(enum.Enum):
    """Whose configuration it is."""

    NF_PKD = "nf-pkd"
    IPTABLES = "iptables"
    KNOCKD = "knockd"
    FWKNOP = "fwknop"


_NO_LONGER = (
    'remove what guarded the ports until now, or let them through there: "nfpkd doctor" names what else drops them'
)

# What is to be known and done besides, whatever the rules are.
ADVICE = {
    Kind.NF_PKD: (
        'remove your NFQUEUE rules; "window" and "protocol" count here: a knock opens for "window" seconds (60 if not '
        'given), where nf-pkd let in one connection, whenever it came ("once" does that)'
    ),
    Kind.IPTABLES: _NO_LONGER,
    Kind.KNOCKD: _NO_LONGER,
    Kind.FWKNOP: _NO_LONGER,
}

_LOOKS = {
    Kind.NF_PKD: re.compile(r"\A\s*(\[\s*[{\]]|\{)"),
    Kind.IPTABLES: re.compile(
        rf"^[ \t]*({iptables.RULE_LINE.pattern}|\*(filter|nat|mangle|raw|security)[ \t]*$)", re.MULTILINE
    ),
    Kind.KNOCKD: re.compile(r"^[ \t]*(sequence|one_time_sequences)[ \t]*=", re.MULTILINE | re.IGNORECASE),
    Kind.FWKNOP: re.compile(r"^[ \t]*SOURCE:?[ \t]+\S", re.MULTILINE),
}


class Merged(NamedTuple):
    """The rules of one rule file, and what is to be said, by file and line."""

    rules: tuple[Fields, ...]
    remarks: tuple[tuple[str, Remark], ...]


def recognize(text: str) -> Kind | None:
    """Return whose configuration *text* looks like; None if like nobody's, or like several."""
    found = [kind for kind, look in _LOOKS.items() if look.search(text)]
    return found[0] if len(found) == 1 else None


def read(kind: Kind, text: str, make_key: MakeKey) -> Imported:
    """Return what *text* holds; *make_key* makes keys for what has none that could be taken over."""
    if kind is Kind.NF_PKD:
        return nf_pkd.read(text)
    if kind is Kind.IPTABLES:
        return iptables.read(text)
    if kind is Kind.KNOCKD:
        return knockd.read(text, make_key)
    return fwknop.read(text, make_key)


def read_all(kind: Kind, texts: Iterable[tuple[str, str]], make_key: MakeKey) -> Iterator[tuple[str, Imported]]:
    """Yield what each of several files holds, by its name."""
    files = ((name, read(kind, text, make_key)) for name, text in texts)
    yield from nf_pkd.compare(files) if kind is Kind.NF_PKD else files


def merge(files: Iterable[tuple[str, Imported]]) -> Merged:
    """Return one rule file of all that was found in *files*, which the loader accepts, and all that is to be said."""
    merger = _Merger()
    remarks: list[tuple[str, Remark]] = []
    for file, imported in files:
        found = list(imported.remarks)
        for draft in imported.rules:
            try:
                merger.add(draft, file, found)
            except InexpressibleError as error:
                found.append(Remark(draft.line, f"not imported: {error}"))
        remarks += [(file, remark) for remark in sorted(found, key=lambda remark: remark.line)]
    return Merged(tuple(merger.rules), tuple(remarks))


class _Merger:
    """Adds rules to a rule file in such a way that it stays acceptable."""

    def __init__(self) -> None:
        self.rules: list[Fields] = []
        self._names: dict[str, tuple[str, int]] = {}
        self._numbers: Counter[str] = Counter()
        self._rejects: dict[Service, Reject] = {}

    def add(self, draft: Draft, file: str, remarks: list[Remark]) -> None:
        """Add a rule, changed where it clashes with those before; raises InexpressibleError."""
        rule = _build(draft.fields)
        fields = dict(draft.fields)
        known = {self._rejects[service] for service in rule.services() if service in self._rejects}
        if known - {rule.reject}:
            reject = self._agree(known)
            fields.pop("reset", None)
            fields["reject"] = reject.value
            text = (
                f'"reject" is "{reject.value}", as with the other rules for the port: rules that share one must agree'
            )
            remarks.append(Remark(draft.line, text, left_out=False))
            rule = _build(fields)
        for service in rule.services():
            self._rejects[service] = rule.reject
        fields["name"] = self._find_free_name(rule.name, (file, draft.line), remarks)
        self.rules.append(fields)

    def _agree(self, known: set[Reject]) -> Reject:
        if len(known) > 1:
            raise InexpressibleError('its ports are refused in several ways by other rules: make their "reject" agree')
        (reject,) = known
        return reject

    def _find_free_name(self, name: str, place: tuple[str, int], remarks: list[Remark]) -> str:
        free = name
        while free in self._names:
            self._numbers[name] += 1
            suffix = f"-{self._numbers[name] + 1}"
            free = name[: 64 - len(suffix)] + suffix
        # One line may make several rules, and then nobody gave them their names.
        if free != name and self._names[name] != place:
            where = ":".join(map(str, self._names[name]))
            remarks.append(
                Remark(place[1], f'the name "{name}" is already used at {where}: here "{free}"', left_out=False)
            )
        self._names[free] = place
        return free


def _build(fields: Fields) -> Rule:
    try:
        (placed,) = build_rules(Document("", json.dumps([fields]))).rules
    except RulesError as error:
        raise InexpressibleError("; ".join(problem.message for problem in error.problems)) from None
    return placed.rule
