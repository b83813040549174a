"""Puts the table back as soon as another tool has changed it."""

from __future__ import annotations

import asyncio
import logging

from nfpkd.errors import KernelError
from nfpkd.firewall.doors import parse_door
from nfpkd.firewall.monitor import Change, TableMonitor
from nfpkd.logs import log_event
from nfpkd.verifier.verifier import Verifier

# What takes several transactions to do is looked at once.
QUIET_SECONDS = 0.05
# However often the table is changed, it is not listed more often than this.
PAUSE_SECONDS = 0.1
# How long what was renewed by traffic may go unnoticed, and when a repair that failed is tried again.
ROUND_SECONDS = 10.0


class Repairer:
    """Has *verifier* look at the table when *monitor* hears that somebody else changed it."""

    def __init__(self, monitor: TableMonitor, verifier: Verifier) -> None:
        self._monitor = monitor
        self._verifier = verifier
        self._heard = asyncio.Event()
        # The gravest change since the last look, and whether grants went with the sets they were in.
        self._change: Change | None = None
        self._lost = False

    def listen(self) -> None:
        """Take in what the monitor has heard; called whenever its socket is readable."""
        for change in self._monitor.read():
            sets = {name for name in change.did("delete set") if parse_door(name)}
            lost = bool(sets or change.did("delete table"))
            if not lost:
                # By hand or by `nfpkd revoke`: not to be undone, even if the table goes right afterwards.
                self._verifier.note_taken(change.did("delete element"))
            if self._change is None or (lost and not self._lost):
                self._change = change
            self._lost = self._lost or lost
            self._heard.set()

    async def follow(self) -> None:
        """Repair, until cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._heard.wait(), ROUND_SECONDS)
            except TimeoutError:
                self._look()
            else:
                await asyncio.sleep(QUIET_SECONDS)
                self._look()
                await asyncio.sleep(PAUSE_SECONDS)

    def _look(self) -> None:
        # What came in with the last wake-up belongs to what is looked at now.
        self.listen()
        self._heard.clear()
        change = self._change
        try:
            if change is None:
                self._verifier.follow_renewals()
                return
            seen = change.describe()
            log_event(logging.DEBUG, "table_checked", "looking at the table, for another program changed it", seen=seen)
            self._verifier.repair(seen, change.process, change.pid, lost=self._lost)
        except KernelError as error:
            log_event(logging.ERROR, "repair_failed", f"{error}; tried again in {ROUND_SECONDS:.0f} s")
        else:
            self._change, self._lost = None, False
