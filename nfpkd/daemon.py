"""`nfpkd run`: one event loop that guards, judges knocks and follows the rule files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nfpkd.errors import KernelError, RulesError, StateError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.monitor import TableMonitor
from nfpkd.firewall.ruleset import Options
from nfpkd.instance import InstanceLock, Report
from nfpkd.last_good import LastGood, fall_back, log_refused
from nfpkd.logs import log_event
from nfpkd.notify import Notifier
from nfpkd.privileges import find_group, give_up_privileges
from nfpkd.rules import schema
from nfpkd.rules.loader import Loaded, RuleLoader, Stamps, stamp_files
from nfpkd.rules.model import Rule
from nfpkd.rules.watch import RuleWatcher
from nfpkd.triggers.client import Helper, TriggerHelper, TriggerSocket
from nfpkd.triggers.message import Event
from nfpkd.triggers.windows import Windows
from nfpkd.verifier.queue import PacketQueue
from nfpkd.verifier.repair import Repairer
from nfpkd.verifier.replay import ReplayBook
from nfpkd.verifier.store import ReplayStore
from nfpkd.verifier.verifier import Verifier

_log = logging.getLogger(__name__)

# A save is over when nothing has happened for so long; a directory that never
# rests is read all the same.
QUIET_SECONDS = 0.25
PATIENCE_SECONDS = 2.0
# For what no notification covers: network file systems, links behind links.
RESCAN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run.

    *state_dir* is where replays are remembered, None for nowhere, and with *last_good* the rules in force,
    to begin with where those of the day are refused; *keep* leaves the guard in place at the end; *user* is
    who to become; *trigger_socket* is where a helper for commands is, None to start one; *log_level* and
    *log_format* are for that one.
    """

    actions: Path
    options: Options
    state_dir: Path | None
    last_good: bool = False
    keep: bool = False
    user: str = ""
    trigger_socket: Path | None = None
    strict_modes: bool = True
    log_level: int = logging.INFO
    log_format: str = "auto"


class Daemon:
    """Wires the parts together; `run` returns when a signal ends it."""

    def __init__(self, firewall: Firewall, settings: Settings, notifier: Notifier) -> None:
        self._firewall = firewall
        self._settings = settings
        self._loader = RuleLoader(settings.actions, strict_modes=settings.strict_modes)
        self._notifier = notifier
        self._windows = Windows(self._run_command)
        self._helper: Helper | None = None
        self._distrusts_before: int | None = None
        self._kept: LastGood | None = None
        if settings.last_good and settings.state_dir is not None:
            self._kept = LastGood(settings.state_dir, settings.actions)
        # What is in force was good, and is not what the files say.
        self._is_stale = False
        self._dirty = asyncio.Event()
        # None stands for "look again, whatever the stamps say".
        self._stamps: Stamps | None = None

    async def run(self) -> None:
        """Guard until SIGTERM or SIGINT; raises RulesError or KernelError if it cannot begin."""
        settings = self._settings
        with contextlib.ExitStack() as stack:
            self._lock = lock = InstanceLock()
            stack.callback(lock.release)
            self._helper = self._start_helper(stack)
            schema.prepare()
            give_up_privileges(settings.user)
            self._stamps = stamp_files(settings.actions)
            loaded = self._load()
            self._verifier = self._make_verifier(stack)
            queue = PacketQueue(settings.options.queue, self._verifier.handle)
            stack.callback(queue.close)
            monitor = TableMonitor(TABLE)
            stack.callback(monitor.close)
            monitor.learn_own_pid(self._firewall.leave_mark)
            # What refuses to begin leaves a guard of before as it is.
            self._begin(loaded)
            loop = asyncio.get_running_loop()
            # One thread reads and writes files, one after the other.
            loop.set_default_executor(ThreadPoolExecutor(1))
            loop.add_reader(lock.fileno(), lock.answer)
            stack.callback(loop.remove_reader, lock.fileno())
            await self._serve(queue, monitor)
            # Only who is asked to stop takes the guard away: a fault of ours must not open anything.
            self._end(queue)

    def _start_helper(self, stack: contextlib.ExitStack) -> Helper:
        """Start what runs commands, while there are still privileges to run them with, or know where it is."""
        settings = self._settings
        helper: Helper
        if settings.trigger_socket is not None:
            helper = TriggerSocket(settings.trigger_socket)
        else:
            helper = TriggerHelper(
                settings.actions,
                strict_modes=settings.strict_modes,
                log_level=settings.log_level,
                log_format=settings.log_format,
                group=find_group(settings.user),
            )
        stack.callback(helper.close)
        stack.callback(self._windows.close_all)
        return helper

    def _make_verifier(self, stack: contextlib.ExitStack) -> Verifier:
        """Return a verifier that remembers what the one before it has seen; raises StateError."""
        settings = self._settings
        store, memory = None, None
        if settings.state_dir is not None:
            store = ReplayStore(settings.state_dir)
            stack.callback(store.close)
            memory = ReplayBook(store.load())
        if store is None or store.was_lost:
            self._distrusts_before = int(time.time())
            text = "what was knocked before this start is not known: knocks stamped up to it and the skew are refused"
            log_event(logging.WARNING, "memory_lost", text)
        return Verifier(self._firewall, settings.options, [self._windows], store=store, memory=memory)

    def _load(self) -> Loaded:
        """Return the rules to begin with; raises RulesError."""
        try:
            return self._loader.load()
        except RulesError as error:
            return self._fall_back(error)

    def _begin(self, loaded: Loaded) -> None:
        """Enforce *loaded*, or what was good last; raises KernelError."""
        try:
            self._enforce(loaded)
        except KernelError as error:
            self._enforce(self._fall_back(error))
        if not self._is_stale:
            self._keep_as_good(loaded)

    def _fall_back(self, error: RulesError | KernelError) -> Loaded:
        """Return the rules that were good last, in place of those with *error*, which is raised if there are none."""
        if self._kept is None or self._is_stale:
            raise error
        loaded = fall_back(self._kept, error)
        self._is_stale = True
        return loaded

    def _enforce(self, loaded: Loaded) -> None:
        """Guard and judge by what was loaded; raises KernelError, and then everything is as before."""
        self._verifier.enforce(loaded.rules)
        if self._distrusts_before is not None:
            self._distrust(self._distrusts_before)
        for warning in loaded.warnings:
            log_event(logging.WARNING, "rules_warning", str(warning))
        if self._helper is not None:
            self._helper.reload()
        self._windows.close_others({rule.name for rule in loaded.rules})
        # What lives as long as the rules need not be searched for garbage, over and over, while packets
        # wait: with 10,000 rules that was 0.1 s of a reload.
        gc.collect()
        gc.freeze()

    def _keep_as_good(self, loaded: Loaded) -> None:
        """Have the next start find what is enforced now."""
        if self._kept is None:
            return
        try:
            self._kept.save(loaded, self._settings.options)
        except StateError as error:
            log_event(logging.ERROR, "not_kept", str(error))

    def _distrust(self, start: int) -> None:
        for rule in self._verifier.distrust_before(start):
            text = "with its clock ignored nothing tells its knocks from replays: refused until the key changes"
            log_event(logging.ERROR, "memory_lost", text, rule=rule.name)

    def _run_command(self, event: Event, rule: str, source: str) -> None:
        if self._helper is not None:
            self._helper.run(event, rule, source)

    async def _serve(self, queue: PacketQueue, monitor: TableMonitor) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        watcher = RuleWatcher(self._settings.actions, lambda: loop.call_soon_threadsafe(self._dirty.set))
        watcher.start()
        loop.add_reader(queue.fileno(), self._drain, queue)
        repairer = Repairer(monitor, self._verifier)
        loop.add_reader(monitor.fileno(), repairer.listen)
        works = [self._follow(watcher), repairer.follow()]
        if (seconds := self._notifier.watchdog_seconds) is not None:
            works.append(self._feed_watchdog(seconds))
        following = [asyncio.create_task(work) for work in works]
        log_event(
            logging.INFO,
            "started",
            "guarding",
            rules=len(self._verifier.rules),
            actions=self._settings.actions,
            queue=self._settings.options.queue,
        )
        text = "the rule files are refused; the last good rules are in force: " if self._is_stale else ""
        self._report(f"{text}{self._describe()}")
        try:
            waiting = asyncio.create_task(stop.wait())
            # The others only ever end by an error, which must not go unseen.
            done, _ = await asyncio.wait((waiting, *following), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._notifier.stopping()
        finally:
            for task in following:
                task.cancel()
            loop.remove_reader(queue.fileno())
            loop.remove_reader(monitor.fileno())
            watcher.stop()

    async def _feed_watchdog(self, seconds: float) -> None:
        """Tell the service manager that the event loop turns, until cancelled."""
        while True:
            self._notifier.alive()
            await asyncio.sleep(seconds)

    def _describe(self) -> str:
        number = len(self._verifier.rules)
        return f"guarding by {number} {'rule' if number == 1 else 'rules'}"

    def _report(self, status: str) -> None:
        """Tell the service manager, and `nfpkd status`, that what was begun is done, and how things are."""
        self._notifier.ready(status)
        self._lock.report(Report(status, self._is_stale))

    def _drain(self, queue: PacketQueue) -> None:
        queue.drain()
        self._verifier.settle()

    def _end(self, queue: PacketQueue) -> None:
        if self._settings.keep:
            text = "stopped; the ports stay guarded, and nobody can knock until nfpkd runs again"
            log_event(logging.INFO, "stopped", text)
        else:
            self._firewall.teardown()
            log_event(logging.INFO, "stopped", "stopped; the table is removed and the ports are open")
        # What is still waiting behind a knock goes on, rather than being dropped with the queue.
        self._drain(queue)

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
        # Who asks by a signal has done writing.
        while self._dirty.is_set() and self._stamps is not None and time.monotonic() < deadline:
            self._dirty.clear()
            await asyncio.sleep(QUIET_SECONDS)
        self._dirty.clear()

    async def _reload(self) -> None:
        """Enforce what the files say now; whatever is wrong with them leaves everything as it was."""
        before, was_stale = self._verifier.rules, self._is_stale
        # Until they are in force.
        self._is_stale = True
        self._notifier.reloading()
        status = f"the last reload failed; {self._describe()} from before"
        try:
            # Reading many files takes its time; knocks go on being judged meanwhile.
            loaded = await asyncio.to_thread(self._loader.load)
            self._enforce(loaded)
        except RulesError as error:
            log_refused(error)
            text = "the rule files have errors; the rules of before stay in force"
            log_event(logging.ERROR, "reload_failed", text, errors=len(error.problems))
        except KernelError as error:
            text = f"{error}; the rules of before stay in force"
            log_event(logging.ERROR, "reload_failed", text)
        except Exception:  # noqa: BLE001  (no file may end what guards the ports)
            _log.exception("a fault of nfpkd's own; the rules of before stay in force")
        else:
            status = self._describe()
            self._is_stale = False
            _log_changes(before, loaded.rules)
            if loaded.rules != before or was_stale:
                # Writing through to a disk takes its time, too.
                await asyncio.to_thread(self._keep_as_good, loaded)
        self._report(status)


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
