"""What an importer finds: rules as they would be written, and remarks on what became of the rest."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from nfpkd.rules.model import PortRange, Protocol, merge_ranges

Fields = dict[str, Any]
MakeKey = Callable[[], str]

# A knock opens for a while.  This one is for what elsewhere stays open until it is closed.
OPEN_ENDED_WINDOW = 60


@dataclass(frozen=True, slots=True)
class Remark:
    """What became of *line*, counted from 1, and what to do about it; never with a key in it.

    *left_out* tells what the rules lack from what they only do in another way.
    """

    line: int
    text: str
    left_out: bool = True


class Draft(NamedTuple):
    """A rule as a rule file would have it, not yet checked, and the line that it comes from."""

    line: int
    fields: Fields


class Imported(NamedTuple):
    """What one file holds."""

    rules: tuple[Draft, ...] = ()
    remarks: tuple[Remark, ...] = ()


class InexpressibleError(Exception):
    """Something has no counterpart in a rule; the text says what, and what to do."""


class Opening(NamedTuple):
    """Ports that are opened; no *protocols* means any."""

    protocols: tuple[Protocol, ...]
    ports: tuple[PortRange, ...]


def words_of(text: str) -> frozenset[str]:
    """Return the words of *text*."""
    return frozenset(text.split())


def parse_ports(text: str, separator: str) -> PortRange:
    """Return one port, or a range of them with *separator* between its ends, either of which may be missing."""
    first, found, last = text.partition(separator)
    if not found:
        return PortRange(parse_port(first), parse_port(first))
    ports = PortRange(parse_port(first or "1"), parse_port(last or "65535"))
    if ports.first > ports.last:
        raise InexpressibleError("has a range of ports from high to low")
    return ports


def parse_port(text: str) -> int:
    """Return the port with that number."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise InexpressibleError("does not give its port as a number from 1 to 65535: write the number")
    return int(text)


def parse_protocol(text: str) -> Protocol:
    """Return the protocol with that name or number."""
    for protocol in Protocol:
        if text.lower() in (protocol.label, str(int(protocol))):
            return protocol
    raise InexpressibleError("is for a protocol without ports, or for any: name one of tcp, udp, dccp, sctp, udplite")


def describe_openings(openings: Iterable[Opening]) -> Iterator[Fields]:
    """Yield "port" and "protocol" of the fewest rules that open just *openings*."""
    by_ports: dict[PortRange, tuple[Protocol, ...]] = {}
    for protocols, ranges in openings:
        for ports in ranges:
            known = by_ports.get(ports, protocols)
            by_ports[ports] = tuple(sorted({*known, *protocols})) if known and protocols else ()
    by_protocols: dict[tuple[Protocol, ...], list[PortRange]] = {}
    for ports, protocols in by_ports.items():
        by_protocols.setdefault(protocols, []).append(ports)
    for protocols, found in by_protocols.items():
        fields: Fields = {
            "port": _one_or_all([p.first if p.first == p.last else str(p) for p in merge_ranges(found)]),
        }
        if protocols:
            fields["protocol"] = _one_or_all([protocol.label for protocol in protocols])
        yield fields


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def make_name(text: str) -> str:
    """Return *text* as far as it can be a rule's name."""
    inner = re.sub("^[^A-Za-z0-9_.-]+|[^A-Za-z0-9_.-]+$", "", text)
    return re.sub("[^A-Za-z0-9_.-]+", "-", inner)[:64] or "rule"


def make_tag(text: str, taken: AbstractSet[str]) -> str:
    """Return a tag of up to 4 capitals and digits that reminds of *text*, and is not in *taken* if that can be."""
    kept = "".join(c for c in text.upper() if c in string.ascii_uppercase + string.digits)
    # openSSH is about SSH.  And no digit in front: 0X would announce hex.
    kept = kept.removeprefix("OPEN") or kept
    base = (kept if kept[:1].isalpha() else f"K{kept}")[:4]
    numbered = (base[: 4 - len(str(number))] + str(number) for number in range(2, 1000))
    return next((tag for tag in (base, *numbered) if tag not in taken), base)


def explain_new_key(tag: str) -> str:
    """Return what those who knock have to know of a rule with a key that the importer made."""
    return f'a new key was made, and the tag {tag}: clients knock with "nfpkd knock HOST --tag {tag} --key-file FILE"'


def order_fields(fields: Mapping[str, Any]) -> Fields:
    """Return *fields* in the order in which a person reads them."""
    first = ("name", "port", "protocol", "tag", "key")
    return {name: fields[name] for name in (*first, *(name for name in fields if name not in first)) if name in fields}
