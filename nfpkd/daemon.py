"""`nfpkd run`: one event loop that guards, judges knocks and follows the rule files."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nfpkd.errors import KernelError, PacketError, RulesError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.state import Grant
from nfpkd.instance import InstanceLock
from nfpkd.knock.wire import PAYLOAD_LENGTH
from nfpkd.logs import is_logged, log_event
from nfpkd.rules.loader import FileStamp, Loaded, load_rules, stamp_files
from nfpkd.rules.model import Rule
from nfpkd.rules.watch import RuleWatcher
from nfpkd.verifier.judge import Judge, Judgement, Outcome
from nfpkd.verifier.packet import Datagram, decode_datagram_untrusted
from nfpkd.verifier.queue import PacketQueue

# A save is over when nothing has happened for so long; a directory that never
# rests is read all the same.
QUIET_SECONDS = 0.25
PATIENCE_SECONDS = 2.0
# For what no notification covers: network file systems, links behind links.
RESCAN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run: *keep* leaves the guard in place at the end."""

    actions: Path
    queue: int
    keep: bool = False
    strict_modes: bool = True


class Verifier:
    """Judges what the queue delivers, and opens what was knocked for."""

    def __init__(self, firewall: Firewall, queue_number: int) -> None:
        self._firewall = firewall
        self._queue_number = queue_number
        self._rules: tuple[Rule, ...] = ()
        self._judge = Judge()
        self._pending: list[tuple[str, Judgement]] = []

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._rules

    def enforce(self, rules: tuple[Rule, ...]) -> None:
        """Guard and judge by *rules* from now on, or go on as before; raises KernelError."""
        self._firewall.apply(rules, self._queue_number)
        self._judge.replace_rules(rules)
        self._rules = rules

    def handle(self, packet: bytes) -> bool:
        """Judge one packet; return whether it goes on its way.

        A knock is consumed, whatever becomes of it.  Everything else goes on
        unchanged, after the knocks in front of it have been granted.
        """
        try:
            datagram = decode_datagram_untrusted(packet)
        except PacketError:
            self.commit()
            return True
        judgements = self._judge.judge(datagram, int(time.time()), time.monotonic())
        if not judgements:
            self.commit()
            _log_mismatch(datagram)
            return True
        source = _format_address(datagram.source)
        for judgement in judgements:
            if judgement.outcome is Outcome.ACCEPTED:
                self._pending.append((source, judgement))
            else:
                _log_refusal(source, judgement)
        return False

    def commit(self) -> None:
        """Open what the accepted knocks since the last time ask for, in one transaction."""
        if not self._pending:
            return
        accepted, self._pending = self._pending, []
        grants = [grant for source, judgement in accepted for grant in _make_grants(source, judgement.rule)]
        try:
            self._grant(grants)
        except KernelError as error:
            for source, judgement in accepted:
                text = f"knock accepted, but the kernel did not open the port: {error}"
                log_event(logging.ERROR, "grant_failed", text, rule=judgement.rule.name, source=source)
            return
        for source, judgement in accepted:
            rule = judgement.rule
            opened = rule.describe_services()
            log_event(
                logging.INFO,
                "knock_accepted",
                "knock accepted",
                rule=rule.name,
                source=source,
                opens=opened,
                seconds=rule.window,
            )

    def _grant(self, grants: list[Grant]) -> None:
        try:
            self._firewall.grant(grants)
        except KernelError:
            # Most likely another tool removed the table; put it back and try once more.
            if not self._firewall.apply(self._rules, self._queue_number):
                raise
            log_event(logging.WARNING, "repaired", "the table was changed from outside and has been restored")
            self._firewall.grant(grants)


class Daemon:
    """Wires the parts together; `run` returns when a signal ends it."""

    def __init__(self, firewall: Firewall, settings: Settings) -> None:
        self._firewall = firewall
        self._settings = settings
        self._verifier = Verifier(firewall, settings.queue)
        self._dirty = asyncio.Event()
        # None stands for "look again, whatever the stamps say".
        self._stamps: frozenset[FileStamp] | None = None

    async def run(self) -> None:
        """Guard until SIGTERM or SIGINT; raises RulesError or KernelError if it cannot begin."""
        settings = self._settings
        lock = InstanceLock()
        try:
            self._stamps = stamp_files(settings.actions)
            loaded = load_rules(settings.actions, strict_modes=settings.strict_modes)
            queue = PacketQueue(settings.queue, self._verifier.handle)
            try:
                self._verifier.enforce(loaded.rules)
                _log_warnings(loaded)
                await self._serve(queue)
            finally:
                self._end(queue)
        finally:
            lock.release()

    async def _serve(self, queue: PacketQueue) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        watcher = RuleWatcher(self._settings.actions, lambda: loop.call_soon_threadsafe(self._dirty.set))
        watcher.start()
        loop.add_reader(queue.fileno(), self._drain, queue)
        following = asyncio.create_task(self._follow(watcher))
        log_event(
            logging.INFO,
            "started",
            "guarding",
            rules=len(self._verifier.rules),
            actions=self._settings.actions,
            queue=self._settings.queue,
        )
        try:
            waiting = asyncio.create_task(stop.wait())
            # The second one only ever ends by an error, which must not go unseen.
            await asyncio.wait((waiting, following), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            following.cancel()
            loop.remove_reader(queue.fileno())
            watcher.stop()

    def _drain(self, queue: PacketQueue) -> None:
        queue.drain()
        self._verifier.commit()

    def _end(self, queue: PacketQueue) -> None:
        try:
            if self._settings.keep:
                text = "stopped; the ports stay guarded, and nobody can knock until nfpkd runs again"
                log_event(logging.INFO, "stopped", text)
            else:
                self._firewall.teardown()
                log_event(logging.INFO, "stopped", "stopped; the table is removed and the ports are open")
            # What is still waiting behind a knock goes on, rather than being dropped with the queue.
            self._drain(queue)
        finally:
            queue.close()

    def _reload_on_signal(self) -> None:
        self._stamps = None
        self._dirty.set()

    async def _follow(self, watcher: RuleWatcher) -> None:
        """Reload whenever the rule files changed, until cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._dirty.wait(), RESCAN_SECONDS)
            except TimeoutError:
                pass
            else:
                await self._wait_for_quiet()
            watcher.refresh()
            stamps = stamp_files(self._settings.actions)
            if stamps != self._stamps:
                self._stamps = stamps
                await self._reload()

    async def _wait_for_quiet(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._dirty.is_set() and time.monotonic() < deadline:
            self._dirty.clear()
            await asyncio.sleep(QUIET_SECONDS)
        self._dirty.clear()

    async def _reload(self) -> None:
        """Enforce what the files say now; whatever is wrong with them leaves everything as it was."""
        settings = self._settings
        before = self._verifier.rules
        try:
            # Reading many files takes its time; knocks go on being judged meanwhile.
            loaded = await asyncio.to_thread(load_rules, settings.actions, strict_modes=settings.strict_modes)
            self._verifier.enforce(loaded.rules)
        except RulesError as error:
            for problem in error.problems:
                log_event(logging.ERROR, "rules_refused", str(problem))
            text = "the rule files have errors; the rules of before stay in force"
            log_event(logging.ERROR, "reload_failed", text, errors=len(error.problems))
        except KernelError as error:
            text = f"{error}; the rules of before stay in force"
            log_event(logging.ERROR, "reload_failed", text)
        else:
            _log_warnings(loaded)
            _log_changes(before, loaded.rules)


def _make_grants(source: str, rule: Rule) -> Iterable[Grant]:
    for service in dict.fromkeys(rule.services()):
        yield Grant(source, service, rule.name, rule.window, rule.window)


def _format_address(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _log_mismatch(datagram: Datagram) -> None:
    # Anybody can send these; only who asks for them pays for their lines.
    if len(datagram.payload) == PAYLOAD_LENGTH and is_logged(logging.DEBUG):
        source = _format_address(datagram.source)
        log_event(logging.DEBUG, "not_a_knock", "digest mismatch", source=source, port=datagram.port)


def _log_refusal(source: str, judgement: Judgement) -> None:
    reasons = {
        Outcome.REPLAYED: "this knock was seen before",
        Outcome.MEMORY_FULL: "too many live knocks to remember; a knock that cannot be remembered is refused",
        Outcome.CLOCK_OFF: f"the client's clock is off by {judgement.clock_offset:+d} s",
        Outcome.RATE_LIMITED: "rate-limited",
    }
    log_event(
        logging.WARNING,
        "knock_refused",
        f"knock refused: {reasons[judgement.outcome]}",
        rule=judgement.rule.name,
        source=source,
        reason=judgement.outcome.value,
    )


def _log_warnings(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        log_event(logging.WARNING, "rules_warning", str(warning))


def _log_changes(before: tuple[Rule, ...], after: tuple[Rule, ...]) -> None:
    old = {rule.name: rule for rule in before}
    new = {rule.name: rule for rule in after}
    changes = {
        "added": sorted(new.keys() - old.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
        "removed": sorted(old.keys() - new.keys()),
    }
    shown = {kind: ",".join(names) for kind, names in changes.items() if names}
    text = "rules reloaded" if shown else "rules reloaded; nothing changed"
    log_event(logging.INFO, "reloaded", text, rules=len(after), **shown)
