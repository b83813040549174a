"""From a parsed rule file to rules, with everything that a schema cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from nfpkd.errors import Problem, RulesError
from nfpkd.rules import model, schema
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Service
from nfpkd.rules.positions import Document

_T = TypeVar("_T")

ANY_PROTOCOL = tuple(Protocol)


class PlacedRule(NamedTuple):
    """A rule and the place it came from, for errors that concern several rules."""

    rule: Rule
    document: Document
    position: int

    def problem(self, field: str, message: str) -> Problem:
        return self.document.problem((self.position, field), message)

    def where(self) -> str:
        path, line, _, _ = self.problem("name", "")
        return f"{path}:{line}"


class BuiltFile(NamedTuple):
    """What one rule file holds; *warnings* stop nothing."""

    rules: tuple[PlacedRule, ...]
    warnings: tuple[Problem, ...]


def build_rules(document: Document) -> BuiltFile:
    """Return the rules of a parsed rule file; raises RulesError with everything that is wrong in it."""
    faults = [
        document.problem(path, message, at_key=at_key) for path, message, at_key in schema.find_faults(document.value)
    ]
    # What the schema refused may have any type; the rest is checked only when it holds.
    if faults:
        raise RulesError(sorted(faults))
    assert isinstance(document.value, list)  # noqa: S101  (the schema says so; this tells mypy)
    warnings: list[Problem] = []
    rules = []
    for index, fields in enumerate(document.value):
        builder = _Builder(document, index, fields, faults, warnings)
        rule = builder.build()
        if rule is not None:
            rules.append(PlacedRule(rule, document, index))
    if faults:
        raise RulesError(sorted(faults))
    return BuiltFile(tuple(rules), tuple(warnings))


class _Builder:
    """Builds one rule and collects its faults, so that all of them are reported at once."""

    def __init__(
        self,
        document: Document,
        index: int,
        fields: dict[str, Any],
        faults: list[Problem],
        warnings: list[Problem],
    ) -> None:
        self._document = document
        self._index = index
        self._fields = fields
        self._faults = faults
        self._warnings = warnings

    def build(self) -> Rule | None:
        """Return the rule, or None if it has faults."""
        faults_before = len(self._faults)
        key = self._parse("key", model.parse_key, "")
        tag = self._parse("tag", model.parse_tag, model.DEFAULT_TAG)
        reject = self._reject()
        if len(self._faults) > faults_before or key is None or tag is None:
            return None
        port = self._fields["port"]
        skew = self._fields.get("skew", 0) or model.DEFAULT_SKEW
        return Rule(
            name=self._fields["name"],
            key=key,
            tag=tag,
            ports=(PortRange(port, port),),
            protocols=self._protocols(),
            window=self._fields.get("window", model.DEFAULT_WINDOW),
            skew=None if skew == -1 else skew,
            reject=reject,
            old=self._fields.get("old", False),
            description=self._fields.get("description", ""),
        )

    def _fault(self, field: str, message: str) -> None:
        self._faults.append(self._document.problem((self._index, field), f'"{field}" {message}'))

    def _parse(self, field: str, parse: Callable[[str], _T], default: str) -> _T | None:
        text = self._fields.get(field, default)
        try:
            value = parse(text)
        except ValueError as error:
            self._fault(field, str(error))
            return None
        if model.is_odd_hex(text):
            message = f'"{field}" has an odd number of hex digits; its last byte is read with a 0 behind'
            self._warnings.append(self._document.problem((self._index, field), message))
        return value

    def _protocols(self) -> tuple[Protocol, ...]:
        name = self._fields.get("protocol", "any")
        return ANY_PROTOCOL if name == "any" else (Protocol[name.upper()],)

    def _reject(self) -> Reject:
        if "reject" in self._fields and "reset" in self._fields:
            self._fault("reset", 'is an older spelling of "reject"; give one of the two')
        if "reset" in self._fields:
            return Reject.RESET if self._fields["reset"] else Reject.DROP
        return Reject(self._fields.get("reject", "drop"))


def find_conflicts(rules: Iterable[PlacedRule]) -> Iterator[Problem]:
    """Yield what is wrong between rules: names used twice, and ways to reject that contradict each other."""
    by_name: dict[str, PlacedRule] = {}
    by_service: dict[Service, PlacedRule] = {}
    for placed in rules:
        rule = placed.rule
        first = by_name.setdefault(rule.name, placed)
        if first is not placed:
            yield placed.problem("name", f'the name "{rule.name}" is already used at {first.where()}')
        for service in rule.services():
            first = by_service.setdefault(service, placed)
            if first.rule.reject is not rule.reject:
                yield placed.problem(
                    "reject",
                    f'rule "{rule.name}" rejects {service} with "{rule.reject.value}", but rule '
                    f'"{first.rule.name}" ({first.where()}) with "{first.rule.reject.value}"; '
                    "rules that share a port must agree",
                )
                break
