"""From rules to what the kernel should hold, and the transaction that gets it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Expression, Json, Transaction
from nfpkd.firewall.state import Grant, Session, State
from nfpkd.rules.model import Reject, Rule, Service

_T = TypeVar("_T")

# How long a connection from before the guard may stay silent; conntrack's own
# patience with an established TCP connection (nf_conntrack_tcp_timeout_established).
SESSION_TIMEOUT = 5 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the kernel should hold for a set of rules; *gated* maps services to comments."""

    queue: int
    tags: frozenset[bytes]
    gated: Mapping[Service, str]
    rejects: Mapping[Service, Reject]
    rules: Mapping[str, Rule] = field(repr=False)

    def keeps(self, grant: Grant) -> bool:
        """Tell whether the rule that *grant* came from is still there and still opens its port."""
        rule = self.rules.get(grant.rule)
        return rule is not None and rule.covers(grant.service)


def compile_ruleset(rules: Iterable[Rule], queue: int) -> Ruleset:
    """Return what the kernel should hold for *rules*, whose knocks are judged behind queue number *queue*."""
    by_name = {rule.name: rule for rule in rules}
    labels: dict[Service, list[str]] = {}
    rejects = {}
    for rule in by_name.values():
        label = f"{rule.name}: {rule.description}" if rule.description else rule.name
        for service in rule.services():
            labels.setdefault(service, []).append(label)
            if rule.reject is not Reject.DROP:
                rejects[service] = rule.reject
    return Ruleset(
        queue=queue,
        tags=frozenset(rule.tag for rule in by_name.values()),
        gated={service: _join_labels(found) for service, found in labels.items()},
        rejects=rejects,
        rules=by_name,
    )


def _join_labels(labels: Sequence[str]) -> str:
    return nft.clean_comment("; ".join(dict.fromkeys(labels)))


def transaction_to(wanted: Ruleset, held: State | None, sessions: Iterable[Session] = ()) -> Transaction:
    """Return the transaction after which the kernel holds *wanted*; *held* is what it holds now.

    It carries only the difference: a flush and refill would let packets through
    while it runs.  Grants stay, with their remaining time, as long as their rule
    does.  *sessions* are the connections that are open now; those to
    services which were not guarded before go on.
    """
    if held is None or not held.intact:
        return _make_table(wanted, held, sessions)
    return Transaction(
        (
            *_change_elements(layout.REJECTS, held.rejects, wanted.rejects, _reject_element),
            *_change_elements(layout.GATED, held.gated, wanted.gated, _gated_element),
            *_delete_sessions([session for session, _ in held.sessions if session.service not in wanted.gated]),
            *_add_sessions(_newly_guarded(wanted, held, sessions).items(), held.sessions),
            *_change_tags(held.tags, wanted.tags),
            *_change_queue(held.queue, wanted.queue),
            *delete_grants([grant for grant in held.grants if not wanted.keeps(grant)]).commands,
        )
    )


def _make_table(wanted: Ruleset, held: State | None, sessions: Iterable[Session]) -> Transaction:
    """Return the transaction that makes the table anew, with the grants of the one it replaces.

    The first ``add`` makes ``delete`` legal on an empty host; ``destroy`` would
    say so directly, but nft 1.0.6 rejects it.
    """
    open_sessions = dict(held.sessions) if held else {}
    open_sessions |= _newly_guarded(wanted, held, sessions)
    return Transaction(
        (
            nft.add_table(TABLE),
            nft.delete_table(TABLE),
            nft.add_table(TABLE),
            *map(nft.add, layout.declarations()),
            *_change_elements(layout.REJECTS, {}, wanted.rejects, _reject_element),
            *_change_elements(layout.GATED, {}, wanted.gated, _gated_element),
            *_add_sessions(open_sessions.items()),
            *_change_tags(frozenset(), wanted.tags),
            *_change_queue(None, wanted.queue),
            *_add_grants([grant for grant in held.grants if wanted.keeps(grant)] if held else []),
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
    longest = {(g.source, g.service): g for g in sorted(grants, key=lambda grant: grant.expires)}
    for grant in longest.values():
        by_set.setdefault(layout.GRANTS[6 if ":" in grant.source else 4], []).append(grant)
    return by_set


def _grant_key(grant: Grant) -> Expression:
    return nft.concat(grant.source, *grant.service)


def _grant_element(grant: Grant) -> Expression:
    if not grant.timeout:
        return nft.element(_grant_key(grant), comment=grant.rule)
    # No time at all would mean the whole timeout.
    expires = max(1, min(grant.expires, grant.timeout))
    return nft.element(_grant_key(grant), timeout=grant.timeout, expires=expires, comment=grant.rule)


def _newly_guarded(wanted: Ruleset, held: State | None, sessions: Iterable[Session]) -> dict[Session, int]:
    fresh = wanted.gated.keys() - (held.gated.keys() if held else ())
    # Looking sessions up may read a long table; most reloads guard nothing new.
    return {s: SESSION_TIMEOUT for s in sessions if s.service in fresh} if fresh else {}


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
    return layout.SESSIONS[6 if ":" in session.source else 4]


def _session_key(session: Session) -> Expression:
    return nft.concat(session.source, session.source_port, *session.service)


def _change_elements(
    name: str,
    held: Mapping[Service, _T],
    wanted: Mapping[Service, _T],
    make: Callable[[Service, _T], Expression],
) -> Iterator[Json]:
    """Yield what turns the elements *held* into *wanted*; an element that changes leaves and comes back at once."""
    gone = [nft.concat(*service) for service, value in held.items() if wanted.get(service) != value]
    new = [make(service, value) for service, value in wanted.items() if held.get(service) != value]
    if gone:
        yield nft.delete_elements(TABLE, name, gone)
    if new:
        yield nft.add_elements(TABLE, name, new)


def _gated_element(service: Service, comment: str) -> Expression:
    return nft.element(nft.concat(*service), comment=comment)


def _reject_element(service: Service, reject: Reject) -> Expression:
    return [nft.concat(*service), nft.goto(layout.REFUSALS[reject])]


def _change_tags(held: frozenset[bytes], wanted: frozenset[bytes]) -> Iterator[Json]:
    if held == wanted:
        return
    yield nft.flush_chain(TABLE, layout.TAGS)
    if wanted:
        yield nft.add(layout.tag_rule(wanted))


def _change_queue(held: int | None, wanted: int) -> Iterator[Json]:
    if held != wanted:
        yield nft.flush_chain(TABLE, layout.VERIFY)
        yield nft.add(layout.queue_rule(wanted))
