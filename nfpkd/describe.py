"""A rule in one line, for people; many in columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from nfpkd.rules.model import DEFAULT_RATE, ONE_ADDRESS, Rule, TimedKey, format_tag
from nfpkd.text import Paint, Role, align, plain


def describe_rule(rule: Rule) -> str:
    """Return what *rule* does, without its keys."""
    return " ".join(filter(None, _describe(rule)))


def describe_rules(rules: Iterable[Rule], paint: Paint = plain) -> Iterator[str]:
    """Yield what each of *rules* does, in columns."""
    rules = list(rules)
    for rule, line in zip(rules, align(map(_describe, rules), indent=""), strict=True):
        yield paint(Role.HEADING, rule.name) + line.removeprefix(rule.name)


def _describe(rule: Rule) -> tuple[str, str, str]:
    where = f" on {', '.join(rule.interfaces)}" if rule.interfaces else ""
    services = f"{rule.describe_services()}{where}" if rule.ports else ""
    return f"{rule.name}:", services, "; ".join((_describe_effect(rule), *_describe_conditions(rule)))


def _describe_effect(rule: Rule) -> str:
    if not rule.ports:
        return f"runs {rule.trigger.command[0]} at a knock with tag {format_tag(rule.tag)}"
    once = " for one connection" if rule.once else ""
    return f"opens for {rule.window} s{once} to tag {format_tag(rule.tag)}, others get {rule.reject.value}"


def _describe_conditions(rule: Rule) -> Iterator[str]:
    yield "clock ignored" if rule.skew is None else f"clock within {rule.skew} s"
    if rule.extend:
        yield "renewed by traffic"
    if rule.knock_ports:
        yield f"knocks at {','.join(map(str, rule.knock_ports))}/udp"
    if rule.sources:
        yield f"knocks from {', '.join(map(str, rule.sources))}"
    if rule.prefixes != ONE_ADDRESS:
        yield f"grants for /{rule.prefixes.ipv4} and /{rule.prefixes.ipv6}"
    if rule.rate != DEFAULT_RATE:
        yield f"{rule.rate.knocks} knocks in {rule.rate.per} s, {rule.rate.burst} at once"
    if len(rule.keys) > 1:
        yield f"{len(rule.keys)} keys"
    for key in rule.keys:
        yield from _describe_times(key)
    if rule.trigger and rule.ports and rule.trigger.command:
        yield f"runs {rule.trigger.command[0]}"
    if rule.trigger.close_command:
        yield f"runs {rule.trigger.close_command[0]} as the window ends"
    if rule.trigger:
        yield f"commands as {rule.trigger.user}"
    if rule.old:
        yield "old digest too"


def _describe_times(key: TimedKey) -> Iterator[str]:
    if key.not_before is not None:
        yield f"key good from {_format_time(key.not_before)}"
    if key.not_after is not None:
        yield f"key good until {_format_time(key.not_after)}"


def _format_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
