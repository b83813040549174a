"""A rule, as the rest of nfpkd sees it: validated, typed and immutable."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

KEY_LENGTH = 40
TAG_LENGTH = 4

DEFAULT_TAG = "PKD0"
DEFAULT_WINDOW = 60
DEFAULT_SKEW = 10
MAX_WINDOW = 365 * 24 * 3600

# A range of ports becomes one set element for each port and protocol, because
# interval sets leak packets while they change.  This bounds what one rule may
# ask of the kernel.
MAX_PORTS_PER_RULE = 4096

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Protocol(enum.IntEnum):
    """Transport protocols with ports in their first four bytes, by IANA protocol number."""

    TCP = 6
    UDP = 17
    DCCP = 33
    SCTP = 132
    UDPLITE = 136

    @property
    def label(self) -> str:
        """The name that rule files and nft use."""
        return self.name.lower()


# Those whose packets belong to connections, which conntrack knows as established.
CONNECTION_PROTOCOLS = (Protocol.TCP, Protocol.DCCP, Protocol.SCTP)


class Reject(enum.Enum):
    """What a packet without a grant gets."""

    DROP = "drop"
    RESET = "reset"
    ICMP = "icmp"
    ICMP_ADMIN = "icmp-admin"


class Service(NamedTuple):
    """One protected protocol and port: the key of every lookup in the kernel."""

    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol.label}"


class PortRange(NamedTuple):
    """Ports *first* to *last*, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def merge_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Return the same ports in as few ranges as possible, in order."""
    merged: list[PortRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(last, merged[-1].last))
        else:
            merged.append(PortRange(first, last))
    return tuple(merged)


class Rate(NamedTuple):
    """At most *knocks* accepted in *per* seconds, *burst* of them at once; as in nf-pkd by default."""

    knocks: int = 1
    per: int = 5
    burst: int = 1


class Prefixes(NamedTuple):
    """How many bits of a knock's source address a grant is for, by family."""

    ipv4: int = 32
    ipv6: int = 128


class Trigger(NamedTuple):
    """Commands as argument lists, empty for none: *command* runs at a knock, *close_command* as the window ends."""

    command: tuple[str, ...] = ()
    close_command: tuple[str, ...] = ()
    user: str = "nobody"
    timeout: int = 30

    def __bool__(self) -> bool:
        return bool(self.command or self.close_command)


DEFAULT_RATE = Rate()
ONE_ADDRESS = Prefixes()
NO_TRIGGER = Trigger()


class Secret:
    """Bytes that no log, traceback or error may show."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(...)"


def parse_text_or_hex(text: str) -> bytes:
    """Return the bytes that *text* names: UTF-8 text, or hex behind ``0x``.

    An odd number of hex digits is read as the C client of ipt_pkd reads it:
    the last digit is the high half of the last byte, so ``0xabc`` is ab c0.

    Raises ValueError, without the text in it, for digits that are not hex and
    for text that UTF-8 cannot encode (a lone surrogate).
    """
    if text[:2] not in ("0x", "0X"):
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError("has a lone surrogate, which is not text") from None
    digits = text[2:]
    if not digits or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError('starts with "0x" and must go on with hex digits only')
    return bytes.fromhex(digits + "0" * (len(digits) % 2))


def is_odd_hex(text: str) -> bool:
    return text[:2] in ("0x", "0X") and len(text) % 2 == 1


def _parse_padded(text: str, length: int) -> bytes:
    raw = parse_text_or_hex(text)
    if not raw:
        raise ValueError(f"is empty; it takes 1 to {length} bytes")
    if len(raw) > length:
        raise ValueError(f"is {len(raw)} bytes long; at most {length} fit")
    return raw.ljust(length, b"\0")


def parse_key(text: str) -> Secret:
    """Return the shared key *text* names, zero-filled to 40 bytes; raises ValueError without the key in it."""
    return Secret(_parse_padded(text, KEY_LENGTH))


def parse_tag(text: str) -> bytes:
    """Return the tag *text* names, zero-filled to 4 bytes; raises ValueError."""
    return _parse_padded(text, TAG_LENGTH)


def format_tag(tag: bytes) -> str:
    """Return *tag* as a rule file would write it: text where it is plain ASCII, else hex."""
    text = tag.rstrip(b"\0")
    if text and text.isascii() and text.decode().isprintable() and not text.startswith((b"0x", b"0X")):
        return text.decode()
    return "0x" + tag.hex()


class TimedKey(NamedTuple):
    """A shared key, good from *not_before* to *not_after* (Unix seconds, both included); None is without limit."""

    secret: Secret
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may open what: the one thing that an administrator writes.

    *window* and *skew* are seconds; a *skew* of None ignores the clock.  No
    *ports* means that a knock only runs the rule's command; no *knock_ports*,
    *sources* or *interfaces* means any.
    """

    name: str
    keys: tuple[TimedKey, ...]
    tag: bytes
    ports: tuple[PortRange, ...]
    protocols: tuple[Protocol, ...]
    window: int = DEFAULT_WINDOW
    skew: int | None = DEFAULT_SKEW
    reject: Reject = Reject.DROP
    old: bool = False
    description: str = ""
    knock_ports: tuple[PortRange, ...] = ()
    rate: Rate = DEFAULT_RATE
    sources: tuple[Network, ...] = ()
    prefixes: Prefixes = ONE_ADDRESS
    extend: bool = False
    once: bool = False
    interfaces: tuple[str, ...] = ()
    trigger: Trigger = NO_TRIGGER

    def services(self) -> Iterator[Service]:
        """Yield every protected protocol and port; overlapping ranges repeat theirs."""
        for first, last in self.ports:
            for port in range(first, last + 1):
                for protocol in self.protocols:
                    yield Service(protocol, port)

    def covers(self, service: Service) -> bool:
        """Tell whether *service* is one that this rule protects."""
        protocol, port = service
        return protocol in self.protocols and any(first <= port <= last for first, last in self.ports)

    def describe_services(self) -> str:
        """Return the protected ports as a person would write them: ``22/tcp`` or ``8000-8100/udp``."""
        if not self.ports:
            return "no port"
        ports = ",".join(map(str, self.ports))
        if set(self.protocols) == set(Protocol):
            return f"{ports}/any"
        return f"{ports}/{'+'.join(p.label for p in self.protocols)}"
