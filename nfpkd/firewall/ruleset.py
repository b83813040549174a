"""From rules to what the kernel should hold, and the transaction that gets it there."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nfpkd.firewall import layout, nft
from nfpkd.firewall.doors import Door, Mode, door_of, usual_door
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Expression, Json, Transaction
from nfpkd.firewall.state import Grant, Place, Session, State, family_of
from nfpkd.rules.model import PortRange, Reject, Rule, Service, merge_ranges

_K = TypeVar("_K", Service, Place)
_T = TypeVar("_T")

# How long a connection from before the guard may stay silent; conntrack's own
# patience with an established TCP connection (nf_conntrack_tcp_timeout_established).
SESSION_TIMEOUT = 5 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Options:
    """What is set for a host rather than by a rule: the packet queue's number, the interfaces
    that everything is let in from, and the knock-shaped packets a second that one source may send."""

    queue: int = 0
    trusted: tuple[str, ...] = ()
    source_limit: int = layout.DEFAULT_SOURCE_LIMIT


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the kernel should hold for a set of rules; its fields are those of `State`."""

    source_limit: int
    gated: Mapping[Service, str]
    gated_on: Mapping[Place, str]
    rejects: Mapping[Service, Reject]
    doors: frozenset[Door]
    chains: dict[str, tuple[nft.Rule, ...]]
    rules: Mapping[str, Rule] = field(repr=False)

    def keeps(self, grant: Grant) -> bool:
        """Tell whether the rule that *grant* came from is still there and would still open as much."""
        rule = self.rules.get(grant.rule)
        if rule is None or not rule.covers(grant.service):
            return False
        if grant.interface and grant.interface not in rule.interfaces:
            return False
        family = family_of(grant.source)
        now, then = door_of(rule, family), grant.door or usual_door(family)
        if then.mode is Mode.EXTEND and (now.mode is not Mode.EXTEND or now.window < then.window):
            # Traffic would renew it for ever, to a window that no rule has any more.
            return False
        return (now.prefix, now.by_interface) == (then.prefix, then.by_interface)

    def guards(self, service: Service) -> bool:
        return service in self.gated or any(place.service == service for place in self.gated_on)


def compile_ruleset(rules: Iterable[Rule], options: Options) -> Ruleset:
    """Return what the kernel should hold for *rules*."""
    by_name = {rule.name: rule for rule in rules}
    labels: dict[Service, list[str]] = {}
    labels_on: dict[Place, list[str]] = {}
    rejects = {}
    tags: dict[tuple[PortRange, ...], set[bytes]] = {}
    for rule in by_name.values():
        tags.setdefault(merge_ranges(rule.knock_ports), set()).add(rule.tag)
        label = f"{rule.name}: {rule.description}" if rule.description else rule.name
        for service in rule.services():
            if not rule.interfaces:
                labels.setdefault(service, []).append(label)
            for interface in rule.interfaces:
                labels_on.setdefault(Place(interface, service), []).append(label)
            if rule.reject is not Reject.DROP:
                rejects[service] = rule.reject
    kinds = (door_of(rule, family) for rule in by_name.values() for family in (4, 6) if rule.ports)
    return Ruleset(
        source_limit=options.source_limit,
        gated={service: _join_labels(found) for service, found in labels.items()},
        gated_on={place: _join_labels(found) for place, found in labels_on.items()},
        rejects=rejects,
        doors=frozenset(door for door in kinds if not door.is_usual),
        chains={
            layout.TAGS: tuple(layout.tag_rules({ports: frozenset(found) for ports, found in tags.items()})),
            layout.VERIFY: (layout.queue_rule(options.queue),),
            layout.TRUSTED: tuple(layout.trusted_rules(options.trusted)),
            layout.INTERFACES: tuple(layout.interface_rules(in_use=bool(labels_on))),
        },
        rules=by_name,
    )


def make_grants(rule: Rule, source: str, seconds: int) -> Iterator[Grant]:
    """Yield what lets *source*, a numeric address, pass for *rule*, for so many *seconds*."""
    door = door_of(rule, family_of(source))
    first = str(ipaddress.ip_interface(f"{source}/{door.prefix}").network[0]) if door.is_wide else source
    for service in dict.fromkeys(rule.services()):
        for interface in rule.interfaces or ("",):
            yield Grant(first, service, rule.name, seconds, seconds, None if door.is_usual else door, interface)


def _join_labels(labels: Sequence[str]) -> str:
    return nft.clean_comment("; ".join(dict.fromkeys(labels)))


def transaction_to(
    wanted: Ruleset, held: State | None, sessions: Iterable[Session] = (), lost: Sequence[Grant] = ()
) -> Transaction:
    """Return the transaction after which the kernel holds *wanted*; *held* is what it holds now.

    It carries only the difference: a flush and refill would let packets through
    while it runs.  Grants stay, with their remaining time, as long as their rule
    does.  *sessions* are the connections that are open now; those to
    services which were not guarded before go on.  *lost* are `missing_grants`, which are made again.
    """
    if held is None or not held.intact or held.source_limit != wanted.source_limit:
        return _make_table(wanted, held, sessions, lost)
    kept = kept_grants(wanted, held)
    doors = wanted.doors | {grant.door for grant in (*kept, *lost) if grant.door}
    return Transaction(
        (
            *_change_elements(layout.REJECTS, held.rejects, wanted.rejects, _reject_element),
            *_change_elements(layout.GATED, held.gated, wanted.gated, _gated_element),
            *_change_elements(layout.GATED_ON, held.gated_on, wanted.gated_on, _gated_element),
            *_delete_sessions([session for session, _ in held.sessions if not wanted.guards(session.service)]),
            *_add_sessions(_newly_guarded(wanted, held, sessions).items(), held.sessions),
            *delete_grants([grant for grant in held.grants if not wanted.keeps(grant)]).commands,
            *(nft.add(door.to_set()) for door in sorted(doors - held.doors, key=_by_name)),
            *_change_chains(held.chains, wanted.chains | {layout.DOORS: _door_rules(doors)}),
            *(nft.delete_set(TABLE, door.name) for door in sorted(held.doors - doors, key=_by_name)),
            *_add_grants(lost),
        )
    )


def kept_grants(wanted: Ruleset, held: State | None) -> list[Grant]:
    """Return the grants of *held* that stay."""
    return [grant for grant in held.grants if wanted.keeps(grant)] if held else []


def missing_grants(wanted: Ruleset, held: State | None, known: Iterable[Grant]) -> list[Grant]:
    """Return what another tool destroyed of the grants *known*, as far as the rules still keep it."""
    places = {grant.place for grant in held.grants} if held else set()
    return [grant for grant in known if grant.place not in places and wanted.keeps(grant)]


def admit_sessions(held: State, sessions: Iterable[Session]) -> Transaction:
    """Return the transaction that lets those of *sessions* go on whose services *held*, just made again, guards."""
    guarded = _guarded_services(held)
    found = [(session, SESSION_TIMEOUT) for session in sessions if session.service in guarded]
    return Transaction(tuple(_add_sessions(found, held.sessions)))


def guard_first(wanted: Ruleset, held: State | None) -> Transaction:
    """Return what must be in force before `transaction_to` is: nothing, for nearly every change.

    A packet looks into ``gated`` first and into ``gated_on`` behind it.  What moves from the
    second to the first could be seen in neither, if a transaction ended in between.
    """
    known = {place.service for place in held.gated_on} if held else set()
    moved = {s: label for s, label in wanted.gated.items() if s in known and held and s not in held.gated}
    return Transaction(tuple(_change_elements(layout.GATED, {}, moved, _gated_element)))


def _make_table(wanted: Ruleset, held: State | None, sessions: Iterable[Session], lost: Sequence[Grant]) -> Transaction:
    """Return the transaction that makes the table anew, with the grants of the one it replaces and those *lost*.

    The first ``add`` makes ``delete`` legal on an empty host; ``destroy`` would
    say so directly, but nft 1.0.6 rejects it.
    """
    open_sessions = {s: left for s, left in held.sessions if wanted.guards(s.service)} if held else {}
    open_sessions |= _newly_guarded(wanted, held, sessions)
    kept = [*kept_grants(wanted, held), *lost]
    doors = wanted.doors | {grant.door for grant in kept if grant.door}
    return Transaction(
        (
            nft.add_table(TABLE),
            nft.delete_table(TABLE),
            nft.add_table(TABLE),
            *map(nft.add, layout.declarations(wanted.source_limit)),
            *_change_elements(layout.REJECTS, {}, wanted.rejects, _reject_element),
            *_change_elements(layout.GATED, {}, wanted.gated, _gated_element),
            *_change_elements(layout.GATED_ON, {}, wanted.gated_on, _gated_element),
            *_add_sessions(open_sessions.items()),
            *(nft.add(door.to_set()) for door in sorted(doors, key=_by_name)),
            *_change_chains({}, wanted.chains | {layout.DOORS: _door_rules(doors)}),
            *_add_grants(kept),
        )
    )


def delete_table() -> Transaction:
    """Return the transaction after which there is no table of ours, whether there was one or not."""
    return Transaction((nft.add_table(TABLE), nft.delete_table(TABLE)))


def renew_grants(grants: Sequence[Grant]) -> Transaction:
    """Return the transaction after which all of *grants* run for their whole timeout.

    Adding an element that is there does not refresh its timeout, and deleting
    one that is not there fails: add, delete, add does both.
    """
    return delete_grants(grants) + Transaction(tuple(_add_grants(grants)))


def delete_grants(grants: Sequence[Grant]) -> Transaction:
    """Return the transaction after which none of *grants* is held, even if some run out meanwhile."""
    commands: list[Json] = []
    for name, found in _by_set(grants).items():
        keys = [_grant_key(grant) for grant in found]
        commands += (nft.add_elements(TABLE, name, keys), nft.delete_elements(TABLE, name, keys))
    return Transaction(tuple(commands))


def _add_grants(grants: Iterable[Grant]) -> Iterator[Json]:
    for name, found in _by_set(grants).items():
        yield nft.add_elements(TABLE, name, [_grant_element(grant) for grant in found])


def _by_set(grants: Iterable[Grant]) -> dict[str, list[Grant]]:
    by_set: dict[str, list[Grant]] = {}
    # Several knocks of one wake-up may open the same door, by one rule or by two
    # that share a port; the kernel refuses to delete an element twice.
    longest = {grant.place: grant for grant in sorted(grants, key=lambda grant: grant.expires)}
    for grant in longest.values():
        by_set.setdefault(grant.set_name, []).append(grant)
    return by_set


def _grant_key(grant: Grant) -> Expression:
    interface = (grant.interface,) if grant.interface else ()
    return nft.concat(*interface, grant.source, *grant.service)


def _grant_element(grant: Grant) -> Expression:
    if not grant.timeout:
        return nft.element(_grant_key(grant), comment=grant.rule)
    # No time at all would mean the whole timeout.
    expires = max(1, min(grant.expires, grant.timeout))
    return nft.element(_grant_key(grant), timeout=grant.timeout, expires=expires, comment=grant.rule)


def _newly_guarded(wanted: Ruleset, held: State | None, sessions: Iterable[Session]) -> dict[Session, int]:
    fresh = _guarded_services(wanted) - (_guarded_services(held) if held else set())
    # Looking sessions up may read a long table; most reloads guard nothing new.
    return {s: SESSION_TIMEOUT for s in sessions if s.service in fresh} if fresh else {}


def _guarded_services(where: Ruleset | State) -> set[Service]:
    return where.gated.keys() | {place.service for place in where.gated_on}


def _add_sessions(sessions: Iterable[tuple[Session, int]], held: Iterable[tuple[Session, int]] = ()) -> Iterator[Json]:
    """Yield what adds as many of *sessions* as fit beside those *held*."""
    by_set: dict[str, list[Expression]] = {}
    for session, timeout in sessions:
        element = nft.element(_session_key(session), timeout=max(1, timeout))
        by_set.setdefault(_session_set(session), []).append(element)
    room = dict.fromkeys(layout.SESSIONS.values(), layout.MAX_SESSIONS)
    for session, _ in held:
        room[_session_set(session)] -= 1
    for name, elements in by_set.items():
        if fitting := elements[: max(0, room[name])]:
            yield nft.add_elements(TABLE, name, fitting)


def _delete_sessions(sessions: Iterable[Session]) -> Iterator[Json]:
    by_set: dict[str, list[Expression]] = {}
    for session in sessions:
        by_set.setdefault(_session_set(session), []).append(_session_key(session))
    for name, keys in by_set.items():
        # One may run out meanwhile: the first command makes the second legal.
        yield nft.add_elements(TABLE, name, keys)
        yield nft.delete_elements(TABLE, name, keys)


def _session_set(session: Session) -> str:
    return layout.SESSIONS[family_of(session.source)]


def _session_key(session: Session) -> Expression:
    return nft.concat(session.source, session.source_port, *session.service)


def _change_elements(
    name: str,
    held: Mapping[_K, _T],
    wanted: Mapping[_K, _T],
    make: Callable[[_K, _T], Expression],
) -> Iterator[Json]:
    """Yield what turns the elements *held* into *wanted*; an element that changes leaves and comes back at once."""
    gone = [_gated_key(key) for key, value in held.items() if wanted.get(key) != value]
    new = [make(key, value) for key, value in wanted.items() if held.get(key) != value]
    if gone:
        yield nft.delete_elements(TABLE, name, gone)
    if new:
        yield nft.add_elements(TABLE, name, new)


def _gated_key(key: Service | Place) -> Expression:
    return nft.concat(key.interface, *key.service) if isinstance(key, Place) else nft.concat(*key)


def _gated_element(key: Service | Place, comment: str) -> Expression:
    return nft.element(_gated_key(key), comment=comment)


def _reject_element(service: Service, reject: Reject) -> Expression:
    return [_gated_key(service), nft.goto(layout.REFUSALS[reject])]


def _door_rules(doors: Iterable[Door]) -> tuple[nft.Rule, ...]:
    return tuple(rule for door in sorted(doors, key=_by_name) for rule in door.rules())


def _by_name(door: Door) -> str:
    return door.name


def _change_chains(held: Mapping[str, tuple[str, ...]], wanted: Mapping[str, tuple[nft.Rule, ...]]) -> Iterator[Json]:
    """Yield what makes the data chains anew that differ; a packet meets the old chain or the new one."""
    for chain, rules in wanted.items():
        comments = tuple(rule.comment for rule in rules)
        if held.get(chain, ()) != comments:
            yield nft.flush_chain(TABLE, chain)
            yield from map(nft.add, rules)
