"""Where grants are kept: one hash set for each kind of grant, and the rules that look there.

Nearly all grants are for one address, and are looked up in the gate itself.
Wider ones, sliding ones, those for one connection and those for one interface
have sets of their own, which exist only while a rule or a grant needs them;
only packets that would be refused otherwise are looked up there.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from nfpkd.firewall import nft
from nfpkd.firewall.layout import (
    ADDRESS_TYPES,
    DOORS,
    GRANTS,
    MAX_GRANTS,
    PORT,
    PROTOCOL,
    SESSIONS,
    TABLE,
    data_rule,
    source_address,
)
from nfpkd.firewall.nft import Set
from nfpkd.rules.model import Rule

# For the first packet of a connection that comes again, because its answer was
# lost: TCP tries for about two minutes (tcp_syn_retries).
RETRY_SECONDS = 130

# How many bits an address has.
_FULL = {4: 32, 6: 128}
_NAME = re.compile(r"(grants|extend|once)([46])(?:_net([0-9]{1,3}))?(?:_([0-9]{1,9})s)?(_if)?")


class Mode(enum.Enum):
    """What a packet does to the grant that lets it in: nothing, renew it, or use it up."""

    PLAIN = "grants"
    EXTEND = "extend"
    ONCE = "once"


class Door(NamedTuple):
    """A kind of grant; *prefix* is how many bits of the address count, *window* (seconds) is what EXTEND renews to."""

    family: int
    prefix: int
    mode: Mode = Mode.PLAIN
    window: int = 0
    by_interface: bool = False

    @property
    def name(self) -> str:
        """The set's name, which says all that there is to know of it."""
        net = f"_net{self.prefix}" if self.is_wide else ""
        window = f"_{self.window}s" if self.mode is Mode.EXTEND else ""
        return f"{self.mode.value}{self.family}{net}{window}{'_if' if self.by_interface else ''}"

    @property
    def is_wide(self) -> bool:
        """Whether it lets in more than one address."""
        return self.prefix < _FULL[self.family]

    @property
    def is_usual(self) -> bool:
        """Whether this is one of the two that are always there."""
        return self.name == GRANTS[self.family]

    def to_set(self) -> Set:
        interface = ("ifname",) if self.by_interface else ()
        key = (*interface, ADDRESS_TYPES[self.family], "inet_proto", "inet_service")
        return Set(TABLE, self.name, key, ("timeout",), MAX_GRANTS)

    def rules(self) -> Iterator[nft.Rule]:
        """Yield the rules that let in what has a grant in this set."""
        source = source_address(self.family)
        if self.is_wide:
            source = nft.masked(source, _mask(self.family, self.prefix))
        interface = (nft.meta("iifname"),) if self.by_interface else ()
        key = nft.concat(*interface, source, PROTOCOL, PORT)
        granted = nft.match(key, f"@{self.name}")
        # Each update is a rule of its own: on a full set it ends the rule it stands in.
        if self.mode is Mode.EXTEND:
            renewed = nft.element(key, timeout=self.window)
            yield data_rule(DOORS, f"renewed by traffic: {self.name}", granted, nft.update(self.name, renewed))
        if self.mode is Mode.ONCE:
            sessions = SESSIONS[self.family]
            session = nft.concat(source_address(self.family), nft.payload("th", "sport"), PROTOCOL, PORT)
            remembered = nft.element(session, timeout=RETRY_SECONDS)
            yield data_rule(DOORS, f"may come again: {self.name}", granted, nft.update(sessions, remembered))
            used = nft.remove(self.name, key)
            yield data_rule(DOORS, f"used up: {self.name}", granted, used, nft.count("admitted"), nft.ACCEPT)
        else:
            yield data_rule(DOORS, f"granted: {self.name}", granted, nft.count("admitted"), nft.ACCEPT)


def usual_door(family: int) -> Door:
    """Return the kind of grant that is for one address, and nothing else."""
    return Door(family, _FULL[family])


def door_of(rule: Rule, family: int) -> Door:
    """Return the kind of grant that a knock for *rule* makes."""
    mode = Mode.EXTEND if rule.extend else Mode.ONCE if rule.once else Mode.PLAIN
    prefix = rule.prefixes.ipv4 if family == 4 else rule.prefixes.ipv6
    return Door(family, prefix, mode, rule.window if rule.extend else 0, bool(rule.interfaces))


def parse_door(name: str) -> Door | None:
    """Return the kind of grant that the set *name* holds, or None if it holds none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    mode, family, prefix, window, interface = found.groups()
    door = Door(int(family), int(prefix or _FULL[int(family)]), Mode(mode), int(window or 0), interface is not None)
    return door if door.name == name else None


def _mask(family: int, prefix: int) -> str:
    zero = "0.0.0.0" if family == 4 else "::"  # noqa: S104  (an address to take a mask of, not to bind)
    return str(ipaddress.ip_network(f"{zero}/{prefix}").netmask)
