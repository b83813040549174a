"""From a parsed rule file to rules, with everything that a schema cannot say."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from nfpkd.errors import Problem, RulesError
from nfpkd.rules import model, schema
from nfpkd.rules.model import (
    CONNECTION_PROTOCOLS,
    Network,
    PortRange,
    Prefixes,
    Protocol,
    Rate,
    Reject,
    Rule,
    Service,
    TimedKey,
    Trigger,
)
from nfpkd.rules.positions import Document, Path

_T = TypeVar("_T")

ANY_PROTOCOL = tuple(Protocol)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


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
        get = self._fields.get
        skew = get("skew", 0) or model.DEFAULT_SKEW
        rule = Rule(
            name=self._fields["name"],
            keys=self._keys(),
            tag=self._parse(("tag",), get("tag", model.DEFAULT_TAG), model.parse_tag) or b"",
            ports=self._ports("port"),
            protocols=self._protocols(),
            window=get("window", model.DEFAULT_WINDOW),
            skew=None if skew == -1 else skew,
            reject=self._reject(),
            old=get("old", False),
            description=get("description", ""),
            knock_ports=self._ports("knock-port"),
            rate=Rate(**get("rate", {})),
            sources=tuple(self._sources()),
            prefixes=Prefixes(**get("grant", {})),
            extend=get("extend", False),
            once=get("once", False),
            interfaces=tuple(dict.fromkeys(get("interfaces", ()))),
            trigger=self._trigger(),
        )
        self._check_together(rule)
        return rule if len(self._faults) == faults_before else None

    def _check_together(self, rule: Rule) -> None:
        """Find what is wrong between fields that are right by themselves."""
        if "port" not in self._fields and "ext-command" not in self._fields:
            self._fault((), 'has neither a "port" to open nor an "ext-command" to run')
        count = sum(last - first + 1 for first, last in rule.ports)
        if count > model.MAX_PORTS_PER_RULE:
            self._fault(("port",), f"names {count} ports; at most {model.MAX_PORTS_PER_RULE} fit into one rule")
        if rule.extend and rule.trigger.close_command:
            self._fault(("close-command",), 'cannot follow a window that traffic renews; not together with "extend"')
        if rule.once and rule.extend:
            self._fault(("extend",), 'renews what "once" ends at the first connection; give one of the two')
        if rule.once and not set(rule.protocols) <= set(CONNECTION_PROTOCOLS):
            names = ", ".join(sorted(protocol.label for protocol in CONNECTION_PROTOCOLS))
            self._fault(("once",), f'needs a "protocol" with connections: {names}')

    def _fault(self, path: Path, message: str) -> None:
        what = f'"{path[0]}"' if path else "the rule"
        self._faults.append(self._document.problem((self._index, *path), f"{what} {message}"))

    def _parse(self, path: Path, text: str, parse: Callable[[str], _T]) -> _T | None:
        try:
            value = parse(text)
        except ValueError as error:
            self._fault(path, str(error))
            return None
        if model.is_odd_hex(text):
            message = f'"{path[0]}" has an odd number of hex digits; its last byte is read with a 0 behind'
            self._warnings.append(self._document.problem((self._index, *path), message))
        return value

    def _keys(self) -> tuple[TimedKey, ...]:
        if ("key" in self._fields) == ("keys" in self._fields):
            self._fault(("keys",) if "keys" in self._fields else (), 'needs one of "key" and "keys"')
            return ()
        if "key" in self._fields:
            found = [self._timed_key(self._fields, ())]
        else:
            for field in ("not-before", "not-after"):
                if field in self._fields:
                    self._fault((field,), 'goes with "key"; in "keys" each key has its own')
            found = [
                self._timed_key(entry if isinstance(entry, dict) else {"key": entry}, ("keys", index))
                for index, entry in enumerate(self._fields["keys"])
            ]
        secrets = [key and key.secret for key in found]
        for index, secret in enumerate(secrets):
            # Of one knock, a rule would say two things at once.
            if secret is not None and secret in secrets[:index]:
                self._fault(("keys", index), "has the same key a second time")
        return tuple(key for key in found if key is not None)

    def _timed_key(self, fields: dict[str, Any], path: Path) -> TimedKey | None:
        inside = ("key",) if not path or isinstance(self._fields["keys"][path[1]], dict) else ()
        secret = self._parse((*path, *inside), fields["key"], model.parse_key)
        times = [
            self._parse((*path, field), fields[field], _parse_time) if field in fields else None
            for field in ("not-before", "not-after")
        ]
        if None not in times and times[0] > times[1]:  # type: ignore[operator]
            self._fault((*path, "not-after"), 'is before "not-before": the key would never be good')
        return None if secret is None else TimedKey(secret, times[0], times[1])

    def _ports(self, field: str) -> tuple[PortRange, ...]:
        given = self._fields.get(field, [])
        found = []
        for index, entry in enumerate(given if isinstance(given, list) else [given]):
            path = (field, index) if isinstance(given, list) else (field,)
            found.append(self._parse(path, str(entry), _parse_port_range))
        return tuple(ports for ports in found if ports is not None)

    def _protocols(self) -> tuple[Protocol, ...]:
        given = self._fields.get("protocol", "any")
        if given == "any":
            return ANY_PROTOCOL
        names = given if isinstance(given, list) else [given]
        return tuple(dict.fromkeys(Protocol[name.upper()] for name in names))

    def _reject(self) -> Reject:
        if "reject" in self._fields and "reset" in self._fields:
            self._fault(("reset",), 'is an older spelling of "reject"; give one of the two')
        if "reset" in self._fields:
            return Reject.RESET if self._fields["reset"] else Reject.DROP
        return Reject(self._fields.get("reject", "drop"))

    def _sources(self) -> Iterator[Network]:
        for index, text in enumerate(self._fields.get("from", ())):
            network = self._parse(("from", index), text, _parse_network)
            if network is not None:
                yield network

    def _trigger(self) -> Trigger:
        return Trigger(
            command=self._command("ext-command"),
            close_command=self._command("close-command"),
            user=self._fields.get("ext-user", "nobody"),
            timeout=self._fields.get("ext-timeout", 30),
        )

    def _command(self, field: str) -> tuple[str, ...]:
        given = self._fields.get(field, [])
        argv = self._parse((field,), given, _split_words) if isinstance(given, str) else tuple(given)
        if argv and not argv[0].startswith("/"):
            self._fault((field,), "must start with the absolute path of a program: no search path is used")
        if argv and any("\0" in word for word in argv):
            self._fault((field,), "has a zero byte, which no argument can hold")
        return argv or ()


def _parse_port_range(text: str) -> PortRange:
    first, _, last = text.partition("-")
    found = PortRange(int(first), int(last or first))
    if not 1 <= found.first <= found.last <= 65535:
        raise ValueError(f"is not a range of ports from low to high within 1 to 65535: {text}")
    return found


def _parse_network(text: str) -> Network:
    try:
        if "%" in text:
            raise ValueError("an IPv6 scope")
        return ipaddress.ip_network(text)
    except ValueError as error:
        hint = "" if "host bits" not in str(error) else "; bits behind the prefix must be zero"
        raise ValueError(f"must be an address or a network, not {json.dumps(text[:50])}{hint}") from None


def _parse_time(text: str) -> int:
    """Return the Unix seconds of *text*, as RFC 3339 writes moments."""
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        moment = None
    try:
        if moment is not None and moment.tzinfo is not None and _TIME.match(text.upper()):
            # Also in UTC, as it is shown to people, its year must have four digits.
            return int(moment.astimezone(UTC).timestamp())
    except OverflowError:
        pass
    raise ValueError("must be a moment with its offset from UTC, such as 2027-01-31T12:00:00Z")


def _split_words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None
    if not words:
        raise ValueError("is empty")
    return words


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
