"""The constant part of nfpkd's table: its sets and chains, the same whatever the rules say.

Rules are data: elements of these sets, and the tags in chain ``tags``.  So a
packet's way is as long with 10,000 rules as with one, and a reload never touches
the chains that protect.

::

    prerouting -160  knocks   -> tags -> knock -> verify   a knock: note its source, ask nfpkd
                              -> hold -> verify            the first packet behind a knock waits for it
    prerouting -150  guard    -> gate -> (rejects) refuse-...

Both base chains stand behind conntrack (-200), so that state is known, and in
front of DNAT (-100), so that ports which containers publish are guarded, too.
They are two because a queue verdict goes on at the next base chain.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator

from nfpkd.firewall import nft
from nfpkd.firewall.nft import Chain, Counter, Declaration, Expression, Rule, Set, Table
from nfpkd.knock.wire import UDP_LENGTH
from nfpkd.rules.model import Protocol, Reject

TABLE = Table("inet", "nfpkd")

GATED = "gated"
REJECTS = "rejects"
TAGS = "tags"
VERIFY = "verify"
GRANTS = {4: "grants4", 6: "grants6"}
SESSIONS = {4: "sessions4", 6: "sessions6"}
KNOCKING = {4: "knocking4", 6: "knocking6"}

# For the next packet of a client that knocks and connects in one go.
KNOCKING_TIMEOUT = 1
# Only key holders make grants.  A full set refuses further ones, loudly; those it holds stay.
MAX_GRANTS = 1_000_000
# Knock-shaped packets may come from forged sources.  A full set costs the
# hold, so that a first packet may come too early, and nothing else.
MAX_KNOCKING = 65_536
MAX_SESSIONS = 65_536

REFUSALS = {
    Reject.RESET: "refuse-reset",
    Reject.ICMP: "refuse-icmp",
    Reject.ICMP_ADMIN: "refuse-icmp-admin",
}

# What is not for this host is not ours: it is forwarded as if nfpkd were not
# there.  Broadcast and multicast reach local sockets, so they are guarded.
_FOR_THIS_HOST = nft.anonymous_set(["local", "broadcast", "anycast", "multicast"])
_CONNECTIONS = nft.anonymous_set([Protocol.TCP, Protocol.DCCP, Protocol.SCTP])

_PROTOCOL = nft.meta("l4proto")
_PORT = nft.payload("th", "dport")
_SERVICE = nft.concat(_PROTOCOL, _PORT)
_FAMILIES = {4: "ip", 6: "ip6"}
_ADDRESS_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def _source(family: int) -> Expression:
    return nft.payload(_FAMILIES[family], "saddr")


def _grant_key(family: int) -> Expression:
    return nft.concat(_source(family), _PROTOCOL, _PORT)


def _sets() -> Iterator[Declaration]:
    yield Set(TABLE, GATED, ("inet_proto", "inet_service"))
    yield Set(TABLE, REJECTS, ("inet_proto", "inet_service"), maps_to="verdict")
    for family, address in _ADDRESS_TYPES.items():
        yield Set(TABLE, KNOCKING[family], address, ("timeout",), MAX_KNOCKING)
        yield Set(TABLE, GRANTS[family], (address, "inet_proto", "inet_service"), ("timeout",), MAX_GRANTS)
        session = (address, "inet_service", "inet_proto", "inet_service")
        yield Set(TABLE, SESSIONS[family], session, ("timeout",), MAX_SESSIONS)
    yield Counter(TABLE, "knocks", "knock-shaped packets handed to the verifier")
    yield Counter(TABLE, "held", "first packets that waited behind a knock")
    yield Counter(TABLE, "admitted", "packets let in by a grant")
    yield Counter(TABLE, "refused", "packets refused at a gate")


def _chains() -> Iterator[Declaration]:
    yield Chain(TABLE, "knocks", "prerouting", -160)
    yield Chain(TABLE, "guard", "prerouting", -150)
    for name in (TAGS, "knock", "hold", VERIFY, "gate", *REFUSALS.values()):
        yield Chain(TABLE, name)


def _rules() -> Iterator[Rule]:
    def rule(chain: str, comment: str, *statements: nft.Statement) -> Rule:
        return Rule(TABLE, chain, statements, comment)

    local = nft.match(nft.fib_type_of_destination(), _FOR_THIS_HOST)
    not_local = nft.match(nft.fib_type_of_destination(), _FOR_THIS_HOST, "!=")
    new = nft.match(nft.ct("state"), "new", "in")
    gated = nft.match(_SERVICE, f"@{GATED}")

    # Not "ip6 nexthdr": l4proto is the transport protocol behind any extension headers.
    yield rule(
        "knocks",
        "shaped like a knock",
        nft.match(_PROTOCOL, Protocol.UDP),
        nft.match(nft.payload("udp", "length"), UDP_LENGTH),
        local,
        nft.jump(TAGS),
    )
    for family in _FAMILIES:
        yield rule(
            "knocks",
            "first packet right behind a knock",
            new,
            nft.match(_source(family), f"@{KNOCKING[family]}"),
            gated,
            nft.match(_grant_key(family), f"@{GRANTS[family]}", "!="),
            nft.goto("hold"),
        )
    yield rule("knock", "ask the verifier", nft.count("knocks"))
    for family in _FAMILIES:
        # A rule of its own: on a full set, update ends the rule it stands in.
        noted = nft.element(_source(family), timeout=KNOCKING_TIMEOUT)
        yield rule("knock", "note who knocks", nft.update(KNOCKING[family], noted))
    yield rule("knock", "ask the verifier", nft.goto(VERIFY))
    yield rule("hold", "not for this host", not_local, nft.RETURN)
    yield rule("hold", "wait for the verdict on the knock", nft.count("held"), nft.goto(VERIFY))

    yield rule("guard", "guarded ports", gated, nft.goto("gate"))

    yield rule("gate", "not for this host", not_local, nft.RETURN)
    yield rule("gate", "answers to this host", nft.match(nft.ct("direction"), "reply"), nft.ACCEPT)
    yield rule(
        "gate",
        "established connections stay",
        nft.match(_PROTOCOL, _CONNECTIONS),
        nft.match(nft.ct("state"), "established", "in"),
        nft.ACCEPT,
    )
    for family in _FAMILIES:
        granted = nft.match(_grant_key(family), f"@{GRANTS[family]}")
        yield rule("gate", "granted by a knock", granted, nft.count("admitted"), nft.ACCEPT)
    for family in _FAMILIES:
        session = nft.concat(_source(family), nft.payload("th", "sport"), _PROTOCOL, _PORT)
        known = nft.match(session, f"@{SESSIONS[family]}")
        yield rule("gate", "open before the guard was", known, nft.ACCEPT)
    yield rule("gate", "the rest is refused", nft.count("refused"))
    # An answer to a stray packet could reset the live connection it seems to belong to.
    yield rule("gate", "stray packets get no answer", nft.match(nft.ct("state"), "invalid", "in"), nft.DROP)
    yield rule("gate", "refused the way the rule says", nft.vmap(_SERVICE, REJECTS))
    yield rule("gate", "refused by silence", nft.DROP)

    reset = REFUSALS[Reject.RESET]
    yield rule(reset, "tcp reset", nft.match(_PROTOCOL, Protocol.TCP), nft.reject("tcp reset"))
    yield rule(reset, "port unreachable", nft.reject("icmpx", "port-unreachable"))
    yield rule(REFUSALS[Reject.ICMP], "port unreachable", nft.reject("icmpx", "port-unreachable"))
    yield rule(REFUSALS[Reject.ICMP_ADMIN], "prohibited", nft.reject("icmpx", "admin-prohibited"))


@functools.cache
def declarations() -> tuple[Declaration, ...]:
    """Return everything constant in the table, in the order in which it must be added.

    The last rule does nothing but carry, as its comment, a fingerprint of
    the others: a table made by another version is recognised by it.
    """
    constant = (*_sets(), *_chains(), *_rules())
    text = json.dumps([declaration.to_json() for declaration in constant], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    return (*constant, Rule(TABLE, "guard", (nft.RETURN,), f"layout {fingerprint}"))


@functools.cache
def rule_comments() -> dict[str, tuple[str, ...]]:
    """Return the comments of each constant chain's rules: what an untouched table lists."""
    comments: dict[str, list[str]] = {}
    for declaration in declarations():
        if isinstance(declaration, Rule):
            comments.setdefault(declaration.chain, []).append(declaration.comment)
    return {chain: tuple(found) for chain, found in comments.items()}


def tag_rule(tags: frozenset[bytes]) -> Rule:
    """Return the rule that tells knocks by their first four payload bytes, right behind the UDP header.

    An anonymous set, because nft 1.0.6 cannot declare a named set of raw payload in JSON.
    """
    first_four = nft.raw_payload("th", 64, 32)
    members = sorted(int.from_bytes(tag, "big") for tag in tags)
    matching = nft.match(first_four, nft.anonymous_set(members))
    return Rule(TABLE, TAGS, (matching, nft.goto("knock")), "tags in use")


def queue_rule(number: int) -> Rule:
    """Return the rule that hands packets to the verifier, or lets them go on where none listens.

    It stands alone in its chain, because kernels without nft_queue need it as
    an xtables target, which tolerates no company.
    """
    return Rule(TABLE, VERIFY, (nft.queue_bypass(number),), f"queue {number}")
