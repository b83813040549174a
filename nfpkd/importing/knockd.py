"""knockd's doors, as knockd(1) describes its configuration and knockd 0.8 reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nfpkd.importing.commands import NO_EFFECT, RUNS_AS_ROOT, Effect, describe_effects, find_effect
from nfpkd.importing.model import (
    OPEN_ENDED_WINDOW,
    Draft,
    Fields,
    Imported,
    MakeKey,
    Remark,
    explain_new_key,
    make_name,
    make_tag,
    order_fields,
    words_of,
)

# knockd's own, when there is a stop command but no cmd_timeout.
_DEFAULT_TIMEOUT = "10"

_ALIASES = {"command": "start_command", "command_6": "start_command_6", "timeout": "seq_timeout"}
_KNOWN = words_of(
    "sequence one_time_sequences seq_timeout tcpflags target start_command start_command_6 cmd_timeout stop_command "
    "stop_command_6"
)
# How knockd logs and runs has nothing to do with its doors.
_OPTIONS = frozenset({"usesyslog", "logfile", "pidfile", "interface"})


@dataclass
class _Door:
    """A section and its directives, each with its line."""

    name: str
    line: int
    directives: dict[str, tuple[int, str]] = field(default_factory=dict)

    def get(self, name: str) -> str:
        return self.directives.get(name, (0, ""))[1]

    def line_of(self, name: str) -> int:
        return self.directives.get(name, (self.line, ""))[0]


def read(text: str, make_key: MakeKey) -> Imported:
    """Return the rules that the doors in *text* amount to, with keys that *make_key* makes."""
    remarks: list[Remark] = []
    drafts: list[Draft] = []
    tags: set[str] = set()
    for door in _find_doors(text, remarks):
        found = list(_import_door(door, remarks))
        if not found:
            continue
        tag = make_tag(door.name, tags)
        tags.add(tag)
        # A door's rules have its key in common: one knock opens them all.
        secret: Fields = {"name": make_name(door.name), "tag": tag, "key": make_key()}
        drafts += [Draft(door.line, order_fields(secret | fields)) for fields in found]
        line = door.line_of("sequence" if "sequence" in door.directives else "one_time_sequences")
        text_of_key = f"a sequence of ports is no key, so {explain_new_key(tag)}"
        remarks.append(Remark(line, text_of_key, left_out=False))
    return Imported(tuple(drafts), tuple(remarks))


def _find_doors(text: str, remarks: list[Remark]) -> Iterator[_Door]:
    door: _Door | None = None
    options = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line[0] == "[" and line[-1] == "]" and len(line) > 2:
            if door is not None:
                yield door
            options = line == "[options]"
            door = None if options else _Door(line[1:-1], number)
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        name = _ALIASES.get(name.lower(), name.lower())
        if options and name == "interface":
            message = 'knocks are heard on every interface; a rule\'s "interfaces" would leave the others unguarded'
            remarks.append(Remark(number, message, left_out=False))
        elif options and name in _OPTIONS:
            continue
        elif door is not None and equals and name in _KNOWN:
            door.directives[name] = (number, value)
        else:
            remarks.append(Remark(number, "not a line that knockd knows here; left out"))
    if door is not None:
        yield door


def _import_door(door: _Door, remarks: list[Remark]) -> Iterator[Fields]:
    """Yield what the door's rules have of their own, none if there is nothing to import."""

    def remark(name: str, text: str, *, left_out: bool = True) -> None:
        remarks.append(Remark(door.line_of(name), text, left_out))

    if not door.get("start_command"):
        remark("", "not imported: the section has no command")
        return
    effect = find_effect(door.get("start_command"), "ext-command")
    if effect.closes:
        remark("start_command", 'not needed: a grant ends by itself, and at once with "nfpkd revoke"', left_out=False)
        return
    for text in effect.lost:
        what = "left out" if effect.openings else "not imported"
        remark("start_command", f"{what}: the command {text}")
    for text in effect.notes:
        remark("start_command", f"the command {text}", left_out=False)
    if not effect.openings and not effect.argv:
        return
    if "target" in door.directives:
        remark("target", "left out: knocks are for addresses of this host")
    _compare_ipv6(door, effect, remarks)
    window, end = _read_end(door, effect, remarks)
    if effect.argv or end.argv:
        remark("start_command", RUNS_AS_ROOT, left_out=False)
    yield from describe_effects(effect, end, window)


def _read_end(door: _Door, effect: Effect, remarks: list[Remark]) -> tuple[Fields, Effect]:
    """Return for how long the door is open, and what its stop command does."""
    if not door.get("stop_command"):
        if not effect.openings:
            return {}, NO_EFFECT
        text = (
            f"stays open until it is closed: here for {OPEN_ENDED_WINDOW} seconds, and open connections go on; "
            'set "window"'
        )
        remarks.append(Remark(door.line_of("start_command"), text, left_out=False))
        return {"window": OPEN_ENDED_WINDOW}, NO_EFFECT
    fields: Fields = {}
    timeout = door.get("cmd_timeout") or _DEFAULT_TIMEOUT
    if re.fullmatch("[0-9]{1,10}", timeout):
        fields["window"] = int(timeout)
    else:
        remarks.append(Remark(door.line_of("cmd_timeout"), 'left out: no number of seconds; set "window"'))
    end = find_effect(door.get("stop_command"), "close-command")
    if end.openings:
        remarks.append(Remark(door.line_of("stop_command"), "left out: the command opens a port as the door closes"))
    remarks += [Remark(door.line_of("stop_command"), f"left out: the command {text}") for text in end.lost]
    return fields, end


def _compare_ipv6(door: _Door, effect: Effect, remarks: list[Remark]) -> None:
    """Remark on commands for IPv6 that do something else than those for IPv4: a rule is for both."""
    if "start_command_6" in door.directives:
        other = find_effect(door.get("start_command_6"), "ext-command")
        if (other.openings, other.argv) != (effect.openings, effect.argv):
            text = "left out: does something else than the command for IPv4, and a rule is for both"
            remarks.append(Remark(door.line_of("start_command_6"), text))
    if "stop_command_6" in door.directives:
        ends = [find_effect(door.get(name), "close-command") for name in ("stop_command", "stop_command_6")]
        if (ends[0].closes, ends[0].argv) != (ends[1].closes, ends[1].argv):
            text = "left out: does something else than the command for IPv4, and a rule is for both"
            remarks.append(Remark(door.line_of("stop_command_6"), text))
