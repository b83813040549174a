"""From a queued packet to an open door: judges, grants, and says what became of every knock."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from nfpkd.errors import KernelError, PacketError, StateError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.ruleset import Options, make_grants
from nfpkd.firewall.state import Grant
from nfpkd.knock.wire import PAYLOAD_LENGTH
from nfpkd.logs import is_logged, log_event
from nfpkd.rules.model import Rule
from nfpkd.verifier.judge import Judge, Judgement, Outcome
from nfpkd.verifier.ledger import GrantLedger
from nfpkd.verifier.packet import Datagram, decode_datagram_untrusted
from nfpkd.verifier.replay import Changes, ReplayBook

# How often a datagram that is no knock is looked into, if such are logged at all.
SEARCH_EVERY_SECONDS = 10.0


class Opened(NamedTuple):
    """A knock that was accepted: *source* (numeric) may pass for *rule*'s window."""

    rule: Rule
    source: str


class Listener(Protocol):
    """Who is told of accepted knocks, once their grants are in the kernel."""

    def opened(self, knock: Opened) -> None: ...


class Store(Protocol):
    """Who keeps what is remembered of knocks; see `ReplayStore`."""

    def save(self, changes: Changes) -> None: ...

    def flush(self) -> None: ...


class Verifier:
    """Judges what the queue delivers, and opens what was knocked for."""

    def __init__(
        self,
        firewall: Firewall,
        options: Options,
        listeners: Sequence[Listener] = (),
        *,
        store: Store | None = None,
        memory: ReplayBook | None = None,
    ) -> None:
        """*memory* is what was known of knocks at the start; *store* keeps what is learned, or nothing does."""
        self._firewall = firewall
        self._options = options
        self._listeners = listeners
        self._store = store
        self._rules: tuple[Rule, ...] = ()
        self._judge = Judge(memory=memory)
        self._judged: list[tuple[str, Judgement]] = []
        self._news: list[tuple[str, Judgement]] = []
        self._has_interfaces = False
        self._explains = False
        self._ledger = GrantLedger()
        self._next_search = -math.inf

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._rules

    def enforce(self, rules: tuple[Rule, ...]) -> None:
        """Guard and judge by *rules* from now on, or go on as before; raises KernelError."""
        applied = self._firewall.apply(rules, self._options, self._ledger.live(time.monotonic()))
        self._ledger.adopt(applied.grants, time.monotonic())
        self._judge.replace_rules(rules)
        # Known beforehand: to ask for each packet is a fortieth of what garbage costs.
        self._explains = is_logged(logging.DEBUG)
        self._has_interfaces = any(rule.interfaces for rule in rules)
        self._rules = rules

    def repair(self, seen: str, by: str = "", pid: int = 0, *, lost: bool = False) -> bool:
        """Make the kernel hold again what it should; return whether it did not; raises KernelError.

        *seen* is what another tool did, *by* whom; *lost* says that it took grants along.
        """
        known = self._ledger.live(time.monotonic())
        applied = self._firewall.apply(self._rules, self._options, known, lost=lost)
        self._ledger.adopt(applied.grants, time.monotonic())
        if applied.sent:
            text = "the table was changed from outside and has been restored"
            maker = {"by": by, "pid": pid} if by else {}
            log_event(logging.WARNING, "repaired", text, seen=seen, **maker)
        return bool(applied.sent)

    def note_taken(self, set_names: Collection[str]) -> None:
        """Somebody else took elements out of these sets: until they are read again, none of theirs is certain."""
        self._ledger.forget(set_names)

    def follow_renewals(self) -> None:
        """Learn how long the grants that traffic renews are good by now; raises KernelError."""
        if self._ledger.has_sliding:
            self._adopt_grants()

    def distrust_before(self, start: int) -> list[Rule]:
        """As `Judge.distrust_before`; that it was so is kept, too."""
        closed = self._judge.distrust_before(start)
        self._remember([])
        self._flush()
        return closed

    def handle(self, packet: bytes, interface: int) -> bool:
        """Judge one packet, which came in by interface number *interface*; return whether it goes on its way.

        A knock is consumed, whatever becomes of it.  Everything else goes on
        unchanged, after the knocks in front of it have been granted.
        """
        try:
            datagram = decode_datagram_untrusted(packet)
        except PacketError:
            self._commit()
            return True
        name = _name_interface(interface) if self._has_interfaces else ""
        judgements = self._judge.judge(datagram, int(time.time()), time.monotonic(), name)
        if not judgements:
            self._commit()
            # Anybody can send these; only who asks for them pays for their lines.
            if self._explains and len(datagram.payload) == PAYLOAD_LENGTH:
                self._log_mismatch(datagram)
            return True
        source = _format_address(datagram.source)
        self._judged.extend((source, judgement) for judgement in judgements)
        return False

    def settle(self) -> None:
        """End a wake-up: commit, and do what no packet waits for.

        Only now is anything logged: what is said of a knock holds over a crash.
        """
        self._commit()
        self._flush()
        news, self._news = self._news, []
        for source, judgement in news:
            if judgement.outcome is not Outcome.ACCEPTED:
                _log_refusal(source, judgement)
                continue
            knock = Opened(judgement.rule, source)
            _log_accepted(knock)
            for listener in self._listeners:
                listener.opened(knock)

    def _commit(self) -> None:
        """Remember the knocks since the last time, and open in one transaction what the accepted ones ask for."""
        if not self._judged:
            return
        judged, self._judged = self._judged, []
        opening = [one for one in judged if _is_accepted(one)]
        accepted = [Opened(judgement.rule, source) for source, judgement in opening]
        if not self._remember(accepted):
            return
        self._news += [one for one in judged if not _is_accepted(one)]
        now = time.monotonic()
        # Who knocks more than once in a wake-up is let in once.
        opened = {(rule.name, source): rule for rule, source in accepted}
        wanted = [grant for (_, source), rule in opened.items() for grant in make_grants(rule, source, rule.window)]
        try:
            if any(self._ledger.outlasts(grant, now) for grant in wanted) and not self._adopt_grants():
                self.repair("the table is gone")
            # A knock for a short window must not cut a long one short, where rules share a port.
            granted = [grant for grant in wanted if not self._ledger.outlasts(grant, now)]
            self._grant(granted)
            self._ledger.note(granted, now)
        except KernelError as error:
            for rule, source in accepted:
                text = f"knock accepted, but the kernel did not open the port: {error}"
                log_event(logging.ERROR, "grant_failed", text, rule=rule.name, source=source)
            return
        self._news += opening

    def _remember(self, accepted: list[Opened]) -> bool:
        """Have the store keep what was learned, before anything is opened; return whether it did.

        What could not be kept is tried again with the next knock.
        """
        if self._store is not None:
            try:
                self._store.save(self._judge.memory.changes())
            except StateError as error:
                for rule, source in accepted:
                    text = f"knock refused: it cannot be remembered: {error}"
                    log_event(logging.ERROR, "knock_refused", text, rule=rule.name, source=source, reason="not_kept")
                return False
        self._judge.memory.saved()
        return True

    def _flush(self) -> None:
        if self._store is not None:
            try:
                self._store.flush()
            except StateError as error:
                log_event(logging.ERROR, "not_kept", str(error))

    def _adopt_grants(self) -> bool:
        """Know the grants that the kernel has, and no others; return False, and forget nothing, if it has no table."""
        state = self._firewall.read_state()
        if state is not None:
            self._ledger.adopt(state.grants, time.monotonic())
        return state is not None

    def _log_mismatch(self, datagram: Datagram) -> None:
        source = _format_address(datagram.source)
        log_event(logging.DEBUG, "not_a_knock", "digest mismatch", source=source, port=datagram.port)
        now = time.monotonic()
        if now < self._next_search:
            return
        self._next_search = now + SEARCH_EVERY_SECONDS
        sent = self._judge.find_translated(datagram, int(time.time()))
        if sent is not None:
            log_event(
                logging.WARNING,
                "knock_refused",
                f"knock refused: it was sent to port {sent.port} and arrived at port {datagram.port}: "
                "something on the way translates ports; knock at one that it leaves alone",
                rule=sent.rule.name,
                source=source,
                reason="port_translated",
            )

    def _grant(self, grants: list[Grant]) -> None:
        try:
            self._firewall.grant(grants)
        except KernelError:
            # Most likely another tool removed the table, and word of it is still on its way.
            if not self.repair("a grant was refused"):
                raise
            self._firewall.grant(grants)


def _is_accepted(judged: tuple[str, Judgement]) -> bool:
    return judged[1].outcome is Outcome.ACCEPTED


def _format_address(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _name_interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return ""


def _log_accepted(knock: Opened) -> None:
    if not is_logged(logging.INFO):
        return
    rule, source = knock
    log_event(
        logging.INFO,
        "knock_accepted",
        "knock accepted",
        rule=rule.name,
        source=source,
        opens=rule.describe_services(),
        seconds=rule.window,
    )


_REASONS = {
    Outcome.REPLAYED: "this knock was seen before",
    Outcome.CUT_OFF: "it is too old to be told from a replay",
    Outcome.MEMORY_FULL: "too many live knocks to remember; a knock that cannot be remembered is refused",
    Outcome.KEY_NOT_YET_VALID: "its key is not good yet",
    Outcome.KEY_EXPIRED: "its key is no longer good",
    Outcome.SOURCE_NOT_ALLOWED: 'its source is not in the rule\'s "from"',
    Outcome.CLOCK_OFF: "the client's clock is off by {offset:+d} s",
    Outcome.RATE_LIMITED: "rate-limited",
}


def _log_refusal(source: str, judgement: Judgement) -> None:
    reason = _REASONS[judgement.outcome].format(offset=judgement.clock_offset)
    log_event(
        logging.WARNING,
        "knock_refused",
        f"knock refused: {reason}",
        rule=judgement.rule.name,
        source=source,
        reason=judgement.outcome.value,
    )
