"""What the command lines of knockd and fwknop do: open ports, close them, or something else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from nfpkd.importing.model import (
    Fields,
    InexpressibleError,
    Opening,
    describe_openings,
    parse_ports,
    parse_protocol,
    words_of,
)
from nfpkd.importing.netfilter import Words, find_opening, parse_words
from nfpkd.rules.model import Protocol

# Where a command has the address of who knocked; knockd's spelling.
ADDRESS = "%IP%"

_IPTABLES = re.compile("ip6?tables(-nft|-legacy)?")
# knockd's own helper, and the name that its Debian package's configuration calls it by.
_HELPERS = frozenset({"knock_add", "knock_helper_ipt.sh"})
_OTHERS = frozenset({"ufw", "nft", "firewall-cmd"})
_SEPARATORS = frozenset({";", "&&"})
_SHELL = re.compile(r"[$`*?\[\]{}~\\<>|&;()!#\n]")
_OPEN_OPTIONS = words_of("-p -s --dport --dports --state --syn --to-destination --to-ports -i -d")

_BY_HAND = 'opens in a way that is not understood here: make the rule by hand ("nfpkd keygen --port N")'
_ON_ALL = "opens on one interface or address; the rule does on all of this host"
_FORWARDS = "forwards, which a rule does not: make that a firewall rule of its own, without -s"
_SCRIPT = 'put it into a script that reads NFPKD_SOURCE from its environment, and add that as "{field}"'


class Effect(NamedTuple):
    """What a command line does: it opens ports, only *closes* some, or runs a program with arguments.

    *notes* say what it did in another way, *lost* what of it has no counterpart; both go on from "the command".
    """

    openings: tuple[Opening, ...] = ()
    prefixes: tuple[tuple[str, int], ...] = ()
    closes: bool = False
    argv: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


NO_EFFECT = Effect()

RUNS_AS_ROOT = 'commands run as root, as they did: give another "ext-user" if that will do'


class _Step(NamedTuple):
    """What one command of a line does; no opening means that it closes."""

    opening: Opening | None
    prefix: tuple[str, int] | None = None
    note: str = ""
    lost: str = ""


def find_effect(command: str, field: str) -> Effect:
    """Return what *command* does; *field* of a rule would run it."""
    try:
        steps = list(_split_steps(command))
    except ValueError:
        return Effect(lost=("has a quotation that does not end",))
    if not any(_is_firewall(words) for words in steps):
        return _find_program(command, field)
    openings, prefixes, notes, lost = [], [], [], []
    closes = False
    for words in steps:
        try:
            step = _read_step(words)
        except InexpressibleError as error:
            lost.append(str(error))
            continue
        closes = closes or step.opening is None
        openings += [step.opening] if step.opening else []
        prefixes += [step.prefix] if step.prefix else []
        notes += [step.note] if step.note else []
        lost += [step.lost] if step.lost else []
    return Effect(
        tuple(dict.fromkeys(openings)),
        tuple(dict.fromkeys(prefixes)),
        closes and not openings,
        notes=tuple(dict.fromkeys(notes)),
        lost=tuple(dict.fromkeys(lost)),
    )


def _split_steps(command: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in lexer:
        if word in _SEPARATORS:
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _program(words: Sequence[str]) -> str:
    return words[0].rpartition("/")[2] if words else ""


def _is_firewall(words: Sequence[str]) -> bool:
    program = _program(words)
    return bool(_IPTABLES.fullmatch(program)) or program in _HELPERS | _OTHERS


def _read_step(words: Sequence[str]) -> _Step:
    program = _program(words)
    if _IPTABLES.fullmatch(program):
        return _read_iptables(parse_words(words[1:]), ipv6=program.startswith("ip6"))
    if program == "ufw":
        return _read_ufw(words[1:])
    if program == "nft":
        return _read_nft(words[1:])
    if program in _HELPERS:
        return _read_helper(words[1:])
    if program in _OTHERS:
        raise InexpressibleError(_BY_HAND)
    raise InexpressibleError("runs something else, too")


def _read_iptables(words: Words, *, ipv6: bool) -> _Step:
    if words.get("-j") not in ("ACCEPT", "DNAT", "REDIRECT"):
        raise InexpressibleError("does something else than to ACCEPT, or to end that")
    if "-D" in words.options:
        return _Step(None)
    if not words.chain:
        raise InexpressibleError(_BY_HAND)
    unknown = words.find_unknown(_OPEN_OPTIONS)
    if unknown:
        raise InexpressibleError(f"opens on conditions that no rule can have: {unknown}")
    opening = find_opening(words)
    note = _ON_ALL if words.options.keys() & {"-i", "-d"} else ""
    lost = "" if words.get("-j") == "ACCEPT" else _FORWARDS
    source, _, prefix = words.get("-s").partition("/")
    if source not in ("", ADDRESS):
        raise InexpressibleError("opens for another address than that of who knocked")
    if not source:
        note = "opens for everybody; the rule does for who knocked"
    if prefix not in ("", "128" if ipv6 else "32"):
        if not re.fullmatch("[0-9]{1,3}", prefix):
            raise InexpressibleError("opens for a network that is no prefix of an address")
        return _Step(opening, ("ipv6" if ipv6 else "ipv4", int(prefix)), note, lost)
    return _Step(opening, None, note, lost)


def _read_ufw(words: Sequence[str]) -> _Step:
    """Read ``allow from ADDRESS to any port PORT proto PROTOCOL``, as ufw(8) has it."""
    if "delete" in words:
        return _Step(None)
    found = re.fullmatch(
        rf"(?:insert [0-9]+ |prepend )?allow (?:in )?(?:on \S+ )?(?:proto (\w+) )?from {ADDRESS} to \S+ "
        r"port ([0-9,:]+)(?: proto (\w+))?(?: comment .*)?",
        " ".join(words),
    )
    if not found:
        raise InexpressibleError(_BY_HAND)
    protocol = found[1] or found[3]
    protocols = (parse_protocol(protocol),) if protocol else (Protocol.TCP, Protocol.UDP)
    ports = tuple(parse_ports(text, ":") for text in found[2].split(","))
    return _Step(Opening(protocols, ports), note=_ON_ALL if "on" in words else "")


def _read_nft(words: Sequence[str]) -> _Step:
    """Read ``add rule FAMILY TABLE CHAIN ip saddr ADDRESS tcp dport PORTS accept``, as nft(8) has it."""
    if words[:2] in (["delete", "rule"], ["delete", "element"]):
        return _Step(None)
    found = re.fullmatch(
        rf"(?:add|insert) rule .*\bip6? saddr {ADDRESS} (\w+) dport (?:{{ ?([0-9, -]+)}}|([0-9-]+)) "
        "(?:counter )?accept",
        " ".join(words),
    )
    if not found:
        raise InexpressibleError(_BY_HAND)
    ports = tuple(parse_ports(text.strip(), "-") for text in (found[2] or found[3]).split(","))
    return _Step(Opening((parse_protocol(found[1]),), ports))


def _read_helper(words: Sequence[str]) -> _Step:
    """Read the options of knockd's helper: -a or -i opens, -x closes, -d is the port, -p the protocol."""
    if {"-x", "--delete"} & set(words):
        return _Step(None)
    options = dict(pairwise(words))
    port = options.get("-d") or options.get("--dstport") or ""
    protocol = options.get("-p") or options.get("--proto") or "tcp"
    return _Step(Opening((parse_protocol(protocol),), (parse_ports(port, ":"),)))


def _find_program(command: str, field: str) -> Effect:
    script = _SCRIPT.format(field=field)
    if ADDRESS in command:
        return Effect(lost=(f"takes the address as an argument, and a rule gives none: {script}",))
    if _SHELL.search(command):
        return Effect(lost=(f"needs a shell, and a rule runs none: {script}",))
    argv = tuple(shlex.split(command))
    if not argv or not argv[0].startswith("/"):
        return Effect(lost=(f'has no absolute path in front: add it as "{field}" with one',))
    return Effect(argv=argv)


def describe_effects(start: Effect, end: Effect, common: Fields) -> Iterator[Fields]:
    """Yield rules that do what *start* does at a knock, and *end* as its window ends, with *common* in all of them."""
    if start.prefixes:
        common = common | {"grant": dict(start.prefixes)}
    once: Fields = {}
    if end.argv:
        once["close-command"] = list(end.argv)
    if start.argv or end.argv:
        once["ext-user"] = "root"
    if start.argv:
        yield {"ext-command": list(start.argv)} | common | once
    for opened in describe_openings(start.openings):
        yield opened | common | once
        # One knock opens all of these rules; what runs as they close runs once.
        once = {}
