"""fwknop's access stanzas, as fwknopd(8) describes access.conf and fwknop 2.6 reads it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from nfpkd.importing.commands import ADDRESS, NO_EFFECT, RUNS_AS_ROOT, Effect, describe_effects, find_effect
from nfpkd.importing.model import (
    Draft,
    Fields,
    Imported,
    InexpressibleError,
    MakeKey,
    Opening,
    Remark,
    describe_openings,
    explain_new_key,
    make_tag,
    order_fields,
    parse_port,
    parse_protocol,
    words_of,
)
from nfpkd.rules.model import PortRange

# fwknop's own, when there is no FW_ACCESS_TIMEOUT, or 0.
_DEFAULT_WINDOW = 30

_KEYS = words_of("KEY KEY_BASE64 HMAC_KEY HMAC_KEY_BASE64 GPG_DECRYPT_ID GPG_DECRYPT_PW")
_INCLUDED = 'left out: import that file, too ("nfpkd import FILE")'
_ELSEWHERE = frozenset({"%include", "%include_folder", "%include_keys"})
_FORWARDS = "left out: rules do not forward; make that a firewall rule of its own, the port is guarded in front of it"
_SAYS_NOTHING_ELSE = "left out: a knock says nothing but which rules it is for"
_LEFT_OUT = {
    "DESTINATION": "left out: a rule is for every address of this host",
    "MAX_FW_TIMEOUT": f'{_SAYS_NOTHING_ELSE}; "window" says for how long',
    "ENABLE_CMD_EXEC": f'{_SAYS_NOTHING_ELSE}; make a rule with an "ext-command" for each command',
    "ENABLE_CMD_SUDO_EXEC": f'{_SAYS_NOTHING_ELSE}; make a rule with an "ext-command" for each command',
    "REQUIRE_USERNAME": f"{_SAYS_NOTHING_ELSE}; give each user a rule with a key of their own",
    "REQUIRE_SOURCE_ADDRESS": "left out: a knock names no address; the one it comes from is let in",
    "FORCE_NAT": _FORWARDS,
    "FORCE_SNAT": _FORWARDS,
    "FORCE_MASQUERADE": _FORWARDS,
    "FORWARD_ALL": _FORWARDS,
    "DISABLE_DNAT": _FORWARDS,
}
_LEFT_OUT["REQUIRE_SOURCE"] = _LEFT_OUT["REQUIRE_SOURCE_ADDRESS"]
# "N" is as if these were not there.
_SWITCHES = words_of(
    "ENABLE_CMD_EXEC ENABLE_CMD_SUDO_EXEC REQUIRE_SOURCE_ADDRESS REQUIRE_SOURCE FORCE_MASQUERADE FORWARD_ALL "
    "DISABLE_DNAT"
)
# What is about fwknop's packets, and goes with the keys; and what is read below.
_KNOWN = words_of(
    "SOURCE OPEN_PORTS RESTRICT_PORTS FW_ACCESS_TIMEOUT ACCESS_EXPIRE ACCESS_EXPIRE_EPOCH CMD_CYCLE_OPEN "
    "CMD_CYCLE_CLOSE CMD_CYCLE_TIMER CMD_EXEC_USER CMD_EXEC_GROUP CMD_SUDO_EXEC_USER CMD_SUDO_EXEC_GROUP CMD_REGEX "
    "SUDO_EXE ENCRYPTION_MODE HMAC_DIGEST_TYPE GPG_ALLOW_NO_PW GPG_REQUIRE_SIG GPG_DISABLE_SIG "
    "GPG_IGNORE_SIG_VERIFY_ERROR GPG_REMOTE_ID GPG_FINGERPRINT_ID GPG_HOME_DIR GPG_EXE"
)


@dataclass
class _Stanza:
    """What follows a SOURCE, each setting with its line; of one that is given twice, the last counts."""

    line: int
    settings: dict[str, tuple[int, str]] = field(default_factory=dict)

    def get(self, name: str) -> str:
        return self.settings.get(name, (0, ""))[1]

    def line_of(self, name: str) -> int:
        return self.settings.get(name, (self.line, ""))[0]


def read(text: str, make_key: MakeKey) -> Imported:
    """Return the rules that the stanzas in *text* amount to, with keys that *make_key* makes."""
    remarks: list[Remark] = []
    drafts: list[Draft] = []
    tags: set[str] = set()
    for number, stanza in enumerate(_find_stanzas(text, remarks), 1):
        try:
            found = list(_import_stanza(stanza, remarks))
        except InexpressibleError as error:
            remarks.append(Remark(stanza.line, f"stanza not imported: {error}"))
            continue
        for name, (line, value) in stanza.settings.items():
            if name in _LEFT_OUT and not (name in _SWITCHES and not value.upper().startswith("Y")):
                remarks.append(Remark(line, f"{name} {_LEFT_OUT[name]}"))
        tag = make_tag(f"FW{number}", tags)
        tags.add(tag)
        secret: Fields = {"name": f"fwknop-{number}", "tag": tag, "key": make_key()}
        drafts += [Draft(stanza.line, order_fields(secret | fields)) for fields in found]
        line = next((line for name, (line, _) in stanza.settings.items() if name in _KEYS), stanza.line)
        text_of_key = f"fwknop's keys are for another kind of packet, so {explain_new_key(tag)}"
        remarks.append(Remark(line, text_of_key, left_out=False))
    return Imported(tuple(drafts), tuple(remarks))


def _find_stanzas(text: str, remarks: list[Remark]) -> Iterator[_Stanza]:
    stanza: _Stanza | None = None
    for number, line in enumerate(text.split("\n"), 1):
        name, _, value = line.strip().partition(";")[0].replace("\t", " ").partition(" ")
        name, value = name.removesuffix(":"), value.strip()
        if not name or name.startswith("#"):
            continue
        if name == "SOURCE" and value:
            if stanza is not None:
                yield stanza
            stanza = _Stanza(number)
        if name in _ELSEWHERE:
            remarks.append(Remark(number, f"{name} {_INCLUDED}"))
        elif stanza is not None and value and name in _KNOWN | _KEYS | _LEFT_OUT.keys():
            stanza.settings[name] = (number, value)
        else:
            # Not by its name, which may be a piece of a key.
            remarks.append(Remark(number, "left out: not a setting that fwknop knows here"))
    if stanza is not None:
        yield stanza


def _import_stanza(stanza: _Stanza, remarks: list[Remark]) -> Iterator[Fields]:
    """Yield what the rules of a stanza have of their own; raises InexpressibleError rather than let more people in."""
    common: Fields = {}
    sources = _read_sources(stanza.get("SOURCE"))
    if sources:
        common["from"] = sources
    if "ACCESS_EXPIRE" in stanza.settings or "ACCESS_EXPIRE_EPOCH" in stanza.settings:
        common |= _read_expiry(stanza, remarks)
    openings = list(_read_open_ports(stanza, remarks))
    if "CMD_CYCLE_OPEN" in stanza.settings:
        yield from _read_cycle(stanza, openings, common, remarks)
        return
    if not openings:
        raise InexpressibleError(
            "there are no OPEN_PORTS, so that fwknop opens what a client asks for; a rule names its ports: add them"
        )
    common["window"] = _read_seconds(stanza, "FW_ACCESS_TIMEOUT") or _DEFAULT_WINDOW
    for opened in describe_openings(openings):
        yield opened | common


def _read_sources(text: str) -> list[str]:
    """Return the networks that may knock; none for everybody."""
    sources = []
    for part in text.split(","):
        if part.strip().upper() == "ANY":
            return []
        try:
            sources.append(str(ipaddress.ip_network(part.strip(), strict=False)))
        except ValueError:
            raise InexpressibleError("SOURCE names something that is no address, network or ANY") from None
    return sources


def _read_expiry(stanza: _Stanza, remarks: list[Remark]) -> Fields:
    """Return when the key ends; of the two settings, the one further down counts."""
    name = max(("ACCESS_EXPIRE", "ACCESS_EXPIRE_EPOCH"), key=lambda name: stanza.settings.get(name, (0, ""))[0])
    value = stanza.get(name)
    try:
        if name == "ACCESS_EXPIRE_EPOCH" and int(value) == 0:
            return {}
        if name == "ACCESS_EXPIRE_EPOCH":
            moment = datetime.fromtimestamp(int(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        else:
            month, day, year = (int(part) for part in value.split("/"))
            moment = f"{date(year + 2000 if year < 100 else year, month, day).isoformat()}T00:00:00Z"
            text = f"{name} has no time zone: the key ends at {moment}, in UTC"
            remarks.append(Remark(stanza.line_of(name), text, left_out=False))
    except (ValueError, OverflowError, OSError):
        raise InexpressibleError(f"{name} is no date") from None
    return {"not-after": moment}


def _read_open_ports(stanza: _Stanza, remarks: list[Remark]) -> Iterator[Opening]:
    """Yield OPEN_PORTS without RESTRICT_PORTS."""
    restricted = list(_read_ports(stanza, "RESTRICT_PORTS", remarks))
    for opening in _read_ports(stanza, "OPEN_PORTS", remarks):
        if opening not in restricted:
            yield opening


def _read_ports(stanza: _Stanza, name: str, remarks: list[Remark]) -> Iterator[Opening]:
    for part in stanza.get(name).split(",") if name in stanza.settings else []:
        protocol, _, port = part.strip().partition("/")
        try:
            number = parse_port(port)
            yield Opening((parse_protocol(protocol),), (PortRange(number, number),))
        except InexpressibleError as error:
            remarks.append(Remark(stanza.line_of(name), f"left out of {name}: an entry {error}"))


def _read_seconds(stanza: _Stanza, name: str) -> int:
    """Return a setting's seconds; 0 if it is not there."""
    text = stanza.get(name) or "0"
    if not re.fullmatch("[0-9]{1,10}", text):
        raise InexpressibleError(f"{name} is no number of seconds")
    return int(text)


def _read_cycle(stanza: _Stanza, openings: list[Opening], common: Fields, remarks: list[Remark]) -> Iterator[Fields]:
    """Yield the rules of a stanza that runs commands instead of opening ports by itself."""
    start = _find_cycle_effect(stanza, "CMD_CYCLE_OPEN", "ext-command", openings)
    if not start.openings and not start.argv:
        raise InexpressibleError(f"CMD_CYCLE_OPEN {'; '.join(start.lost) or 'opens nothing'}")
    window = _read_seconds(stanza, "CMD_CYCLE_TIMER")
    if window:
        common["window"] = window
    close = stanza.get("CMD_CYCLE_CLOSE")
    end = NO_EFFECT
    if close not in ("", "NONE"):
        end = _find_cycle_effect(stanza, "CMD_CYCLE_CLOSE", "close-command", openings)
    elif close:
        text = 'CMD_CYCLE_CLOSE is NONE, but a grant ends with its "window"'
        remarks.append(Remark(stanza.line_of("CMD_CYCLE_CLOSE"), text, left_out=False))
    for name, effect in (("CMD_CYCLE_OPEN", start), ("CMD_CYCLE_CLOSE", end)):
        line = stanza.line_of(name)
        remarks += [Remark(line, f"left out of {name}: the command {text}") for text in effect.lost]
        remarks += [Remark(line, f"{name}: the command {text}", left_out=False) for text in effect.notes]
    if start.argv or end.argv:
        remarks.append(Remark(stanza.line_of("CMD_CYCLE_OPEN"), RUNS_AS_ROOT, left_out=False))
    yield from describe_effects(start, end, common)


def _find_cycle_effect(stanza: _Stanza, name: str, field_name: str, openings: list[Opening]) -> Effect:
    """Return what a command does with fwknop's variables in it; with $PORT, for each of the stanza's ports."""
    command = re.sub(r"\$(PKT_SRC|SRC|IP)\b", ADDRESS, stanza.get(name))
    if "$PORT" not in command and "$PROTO" not in command:
        return find_effect(command, field_name)
    effects = [find_effect(_fill_in(command, opening), field_name) for opening in openings]
    if not all(effect.openings or effect.closes for effect in effects):
        return find_effect(command, field_name)
    return Effect(
        openings=tuple(opening for effect in effects for opening in effect.openings),
        prefixes=effects[0].prefixes if effects else (),
        closes=bool(effects) and all(effect.closes for effect in effects),
        notes=effects[0].notes if effects else (),
        lost=effects[0].lost if effects else ("has $PORT, but there are no OPEN_PORTS",),
    )


def _fill_in(command: str, opening: Opening) -> str:
    variables = {"$PORT": str(opening.ports[0].first), "$PROTO": str(int(opening.protocols[0]))}
    return re.sub(r"\$(PORT|PROTO)\b", lambda found: variables[found[0]], command)
