"""The constant part of nfpkd's table: its sets and chains, the same whatever the rules say.

Rules are data: elements of these sets, and a few chains that hold what cannot
be an element.  So a packet's way is as long with 10,000 rules as with one, and
a reload never touches the chains that protect.

::

    prerouting -160  knocks  -> tags -> knock -> verify    a knock: note its source, ask nfpkd
                             -> waiting -> hold -> verify  the first packet behind a knock waits for it
    prerouting -150  guard   -> gate -> trusted, doors; (rejects) refuse-...
                             -> interfaces -> gate         what is guarded on some interfaces only

Both base chains stand behind conntrack (-200), so that state is known, and in
front of DNAT (-100), so that ports which containers publish are guarded, too.
They are two because a queue verdict goes on at the next base chain.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping

from nfpkd.firewall import nft
from nfpkd.firewall.nft import Chain, Counter, Declaration, Expression, Rule, Set, Table
from nfpkd.knock.wire import UDP_LENGTH
from nfpkd.rules.model import CONNECTION_PROTOCOLS, PortRange, Protocol, Reject

TABLE = Table("inet", "nfpkd")

# Sets
GATED = "gated"
GATED_ON = "gated_on"
REJECTS = "rejects"
GRANTS = {4: "grants4", 6: "grants6"}
SESSIONS = {4: "sessions4", 6: "sessions6"}
KNOCKING = {4: "knocking4", 6: "knocking6"}
FLOODING = {4: "flooding4", 6: "flooding6"}

# What packets fill, and no command needs to read.
TRANSIENT = frozenset({*KNOCKING.values(), *FLOODING.values()})

# Chains whose rules are data, made anew where they differ
TAGS = "tags"
VERIFY = "verify"
TRUSTED = "trusted"
INTERFACES = "interfaces"
DOORS = "doors"
DATA_CHAINS = (TAGS, VERIFY, TRUSTED, INTERFACES, DOORS)

# For the next packet of a client that knocks and connects in one go.
KNOCKING_TIMEOUT = 1
# Only key holders make grants.  A full set refuses further ones, loudly; those it holds stay.
MAX_GRANTS = 1_000_000
# Knock-shaped packets may come from forged sources.  A full set costs the hold, so that a first
# packet may come too early, and nothing else.  The kernel collects what has timed out once a second: this is
# room for 100,000 forged sources a second, which take some 80 MiB, as much as connection tracking would give them.
MAX_KNOCKING = 262_144
# The same for the limit: sources that find no room are not limited.
MAX_FLOODING = 65_536
# By then a source has its whole burst again, remembered or not.
FLOODING_TIMEOUT = 2
MAX_SESSIONS = 65_536

# Packets a second that one source, IPv4 /32 or IPv6 /64, may have judged or held: ten
# clients behind one address may knock and connect at once, and a flood gets no further.
DEFAULT_SOURCE_LIMIT = 20

REFUSALS = {
    Reject.RESET: "refuse-reset",
    Reject.ICMP: "refuse-icmp",
    Reject.ICMP_ADMIN: "refuse-icmp-admin",
}

# What is not for this host is not ours: it is forwarded as if nfpkd were not
# there.  Broadcast and multicast reach local sockets, so they are guarded.
_FOR_THIS_HOST = nft.anonymous_set(["local", "broadcast", "anycast", "multicast"])
# What one subscriber of an IPv6 provider has at the least (RFC 6177).
_SUBSCRIBER6 = "ffff:ffff:ffff:ffff::"
_CONNECTIONS = nft.anonymous_set(CONNECTION_PROTOCOLS)

PROTOCOL = nft.meta("l4proto")
PORT = nft.payload("th", "dport")
_SERVICE = nft.concat(PROTOCOL, PORT)
_SERVICE_ON = nft.concat(nft.meta("iifname"), PROTOCOL, PORT)
_FAMILIES = {4: "ip", 6: "ip6"}
ADDRESS_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def source_address(family: int) -> Expression:
    return nft.payload(_FAMILIES[family], "saddr")


def _grant_key(family: int) -> Expression:
    return nft.concat(source_address(family), PROTOCOL, PORT)


def _sets() -> Iterator[Declaration]:
    yield Set(TABLE, GATED, ("inet_proto", "inet_service"))
    yield Set(TABLE, GATED_ON, ("ifname", "inet_proto", "inet_service"))
    yield Set(TABLE, REJECTS, ("inet_proto", "inet_service"), maps_to="verdict")
    for family, address in ADDRESS_TYPES.items():
        yield Set(TABLE, KNOCKING[family], address, ("timeout",), MAX_KNOCKING)
        yield Set(TABLE, FLOODING[family], address, ("timeout",), MAX_FLOODING)
        yield Set(TABLE, GRANTS[family], (address, "inet_proto", "inet_service"), ("timeout",), MAX_GRANTS)
        session = (address, "inet_service", "inet_proto", "inet_service")
        yield Set(TABLE, SESSIONS[family], session, ("timeout",), MAX_SESSIONS)
    yield Counter(TABLE, "knocks", "knock-shaped packets handed to the verifier")
    yield Counter(TABLE, "limited", "packets for the verifier over the limit of their source")
    yield Counter(TABLE, "held", "first packets that waited behind a knock")
    yield Counter(TABLE, "admitted", "packets let in by a grant")
    yield Counter(TABLE, "refused", "packets refused at a gate")


def _chains() -> Iterator[Declaration]:
    yield Chain(TABLE, "knocks", "prerouting", -160)
    yield Chain(TABLE, "guard", "prerouting", -150)
    for name in (*DATA_CHAINS, "knock", "waiting", "hold", "gate", *REFUSALS.values()):
        yield Chain(TABLE, name)


def _rules(source_limit: int) -> Iterator[Rule]:
    def rule(chain: str, comment: str, *statements: nft.Statement) -> Rule:
        return Rule(TABLE, chain, statements, comment)

    local = nft.match(nft.fib_type_of_destination(), _FOR_THIS_HOST)
    not_local = nft.match(nft.fib_type_of_destination(), _FOR_THIS_HOST, "!=")
    gated = nft.match(_SERVICE, f"@{GATED}")
    gated_on = nft.match(_SERVICE_ON, f"@{GATED_ON}")

    # Not "ip6 nexthdr": l4proto is the transport protocol behind any extension headers.
    yield rule(
        "knocks",
        "shaped like a knock",
        nft.match(PROTOCOL, Protocol.UDP),
        nft.match(nft.payload("udp", "length"), UDP_LENGTH),
        local,
        nft.jump(TAGS),
    )
    # Only first packets wait, and most are no such: what this tells costs less than where they come from.
    yield rule("knocks", "no first packet", nft.match(nft.ct("state"), "new", "!="), nft.RETURN)
    for family in _FAMILIES:
        knocking = nft.match(source_address(family), f"@{KNOCKING[family]}")
        yield rule("knocks", "right behind a knock", knocking, nft.jump("waiting"))

    for family in _FAMILIES:
        granted = nft.match(_grant_key(family), f"@{GRANTS[family]}")
        yield rule("waiting", "granted already", granted, nft.RETURN)
    yield rule("waiting", "to a guarded port", gated, nft.goto("hold"))
    yield rule("waiting", "to a guarded port", gated_on, nft.goto("hold"))

    def limited(chain: str) -> Iterator[Rule]:
        for family in _FAMILIES:
            source = source_address(family)
            if family == 6:
                source = nft.masked(source, _SUBSCRIBER6)
            counted = nft.element(source, timeout=FLOODING_TIMEOUT)
            flooding = nft.update(FLOODING[family], counted, nft.over_limit(source_limit, source_limit))
            yield rule(chain, "too many from one source", flooding, nft.count("limited"), nft.RETURN)

    yield from limited("knock")
    yield rule("knock", "ask the verifier", nft.count("knocks"))
    for family in _FAMILIES:
        # A rule of its own: on a full set, update ends the rule it stands in.
        noted = nft.element(source_address(family), timeout=KNOCKING_TIMEOUT)
        yield rule("knock", "note who knocks", nft.update(KNOCKING[family], noted))
    yield rule("knock", "ask the verifier", nft.goto(VERIFY))
    yield rule("hold", "not for this host", not_local, nft.RETURN)
    # Or whoever knocks once could have as many first packets queued as they like.
    yield from limited("hold")
    yield rule("hold", "wait for the verdict on the knock", nft.count("held"), nft.goto(VERIFY))

    yield rule("guard", "guarded ports", gated, nft.goto("gate"))
    yield rule("guard", "guarded on some interfaces", nft.jump(INTERFACES))

    # What belongs to a connection passes first, and costs least.  To accept it is to say nothing: what is not for
    # this host goes on just so.
    yield rule("gate", "answers to this host", nft.match(nft.ct("direction"), "reply"), nft.ACCEPT)
    yield rule(
        "gate",
        "established connections stay",
        nft.match(PROTOCOL, _CONNECTIONS),
        nft.match(nft.ct("state"), "established", "in"),
        nft.ACCEPT,
    )
    for family in _FAMILIES:
        granted = nft.match(_grant_key(family), f"@{GRANTS[family]}")
        yield rule("gate", "granted by a knock", granted, nft.count("admitted"), nft.ACCEPT)
    yield rule("gate", "not for this host", not_local, nft.RETURN)
    yield rule("gate", "from where everything is let in", nft.jump(TRUSTED))
    yield rule("gate", "other kinds of grants", nft.jump(DOORS))
    for family in _FAMILIES:
        session = nft.concat(source_address(family), nft.payload("th", "sport"), PROTOCOL, PORT)
        known = nft.match(session, f"@{SESSIONS[family]}")
        yield rule("gate", "open before the guard was", known, nft.ACCEPT)
    yield rule("gate", "the rest is refused", nft.count("refused"))
    # An answer to a stray packet could reset the live connection it seems to belong to.
    yield rule("gate", "stray packets get no answer", nft.match(nft.ct("state"), "invalid", "in"), nft.DROP)
    yield rule("gate", "refused the way the rule says", nft.vmap(_SERVICE, REJECTS))
    yield rule("gate", "refused by silence", nft.DROP)

    reset = REFUSALS[Reject.RESET]
    yield rule(reset, "tcp reset", nft.match(PROTOCOL, Protocol.TCP), nft.reject("tcp reset"))
    yield rule(reset, "port unreachable", nft.reject("icmpx", "port-unreachable"))
    yield rule(REFUSALS[Reject.ICMP], "port unreachable", nft.reject("icmpx", "port-unreachable"))
    yield rule(REFUSALS[Reject.ICMP_ADMIN], "prohibited", nft.reject("icmpx", "admin-prohibited"))


@functools.lru_cache(maxsize=8)
def declarations(source_limit: int = DEFAULT_SOURCE_LIMIT) -> tuple[Declaration, ...]:
    """Return everything constant in the table, in the order in which it must be added.

    The limit of knock-shaped packets from one source is part of it, because only
    a set that is made together with its rule can hold a limit for each element.

    The last rule does nothing but carry, as its comment, that limit and a
    fingerprint of the rest: a table made by another version is recognised by it.
    """
    constant = (*_sets(), *_chains(), *_rules(source_limit))
    described = [declaration.to_json() for declaration in constant]
    comment = f"layout {_fingerprint(described)} limit {source_limit}"
    return (*constant, Rule(TABLE, "guard", (nft.RETURN,), comment))


def parse_source_limit(comment: str) -> int | None:
    """Return the limit that the comment of a table's last guard rule tells, or None if it is not such a comment."""
    found = re.fullmatch(r"layout [0-9a-f]+ limit ([0-9]{1,9})", comment)
    return int(found[1]) if found else None


@functools.lru_cache(maxsize=8)
def rule_comments(source_limit: int) -> dict[str, tuple[str, ...]]:
    """Return the comments of each constant chain's rules: what an untouched table lists."""
    comments: dict[str, list[str]] = {}
    for declaration in declarations(source_limit):
        if isinstance(declaration, Rule):
            comments.setdefault(declaration.chain, []).append(declaration.comment)
    return {chain: tuple(found) for chain, found in comments.items()}


def data_rule(chain: str, comment: str, *statements: nft.Statement) -> Rule:
    """Return a rule of a data chain; its comment ends with a fingerprint, by which a change is recognised."""
    return Rule(TABLE, chain, statements, f"{comment} #{_fingerprint(statements)}")


def tag_rules(tags_by_ports: Mapping[tuple[PortRange, ...], frozenset[bytes]]) -> Iterator[Rule]:
    """Yield the rules that tell knocks by their first four payload bytes, right behind the UDP header.

    Tags are grouped by the ports that their knocks are taken at, none standing for any.
    The tags are an anonymous set, because nft 1.0.6 cannot declare a named set of raw payload in JSON.
    """
    first_four = nft.raw_payload("th", 64, 32)
    for ports, tags in sorted(tags_by_ports.items()):
        where = [nft.port_range(first, last) for first, last in ports]
        at = [nft.match(nft.payload("udp", "dport"), nft.anonymous_set(where))] if where else []
        members = sorted(int.from_bytes(tag, "big") for tag in tags)
        tagged = nft.match(first_four, nft.anonymous_set(members))
        yield data_rule(TAGS, "tags in use", *at, tagged, nft.goto("knock"))


def queue_rule(number: int) -> Rule:
    """Return the rule that hands packets to the verifier, or lets them go on where none listens.

    It stands alone in its chain, because kernels without nft_queue need it as
    an xtables target, which tolerates no company.
    """
    return Rule(TABLE, VERIFY, (nft.queue_bypass(number),), f"queue {number}")


def trusted_rules(interfaces: Iterable[str]) -> Iterator[Rule]:
    """Yield the rule that lets everything in that comes by one of *interfaces*."""
    names = sorted(set(interfaces))
    if names:
        yield data_rule(TRUSTED, "trusted", nft.match(nft.meta("iifname"), nft.anonymous_set(names)), nft.ACCEPT)


def interface_rules(*, in_use: bool) -> Iterator[Rule]:
    """Yield the rule that looks for what is guarded on some interfaces only, if anything is."""
    if in_use:
        gated_on = nft.match(_SERVICE_ON, f"@{GATED_ON}")
        yield data_rule(INTERFACES, "guarded on this interface", gated_on, nft.goto("gate"))


def _fingerprint(described: object) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
