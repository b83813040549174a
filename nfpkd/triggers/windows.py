"""When windows end, for rules that have a command to run then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from nfpkd.triggers.message import Event
from nfpkd.verifier.verifier import Opened

# Only key holders open windows, at their rules' rates.  Beyond this the oldest is closed early.
MAX_WINDOWS = 65_536

Run = Callable[[Event, str, str], object]


class Windows:
    """Runs rules' commands through *run*: at each accepted knock, and as its window ends.

    A knock within the window renews it; its end is then told once.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def opened(self, knock: Opened) -> None:
        """Run the rule's command, and see to the end of its window."""
        rule, source = knock
        if rule.trigger.command or rule.trigger.close_command:
            # Also where there is nothing to run yet: who runs the other one is to know it by then.
            self._run(Event.OPEN, rule.name, source)
        if rule.trigger.close_command:
            self._forget(rule.name, source)
            if len(self._timers) >= MAX_WINDOWS:
                self._close(*next(iter(self._timers)))
            loop = asyncio.get_running_loop()
            timer = loop.call_later(rule.window, self._close, rule.name, source)
            self._timers[rule.name, source] = timer

    def close_others(self, names: Collection[str]) -> None:
        """End the windows of all rules but *names*: with their rules, their grants are gone."""
        for rule, source in tuple(self._timers):
            if rule not in names:
                self._close(rule, source)

    def close_all(self) -> None:
        """End every window now: nfpkd is going, and nobody else would."""
        for rule, source in tuple(self._timers):
            self._close(rule, source)

    def _close(self, rule: str, source: str) -> None:
        self._forget(rule, source)
        self._run(Event.CLOSE, rule, source)

    def _forget(self, rule: str, source: str) -> None:
        timer = self._timers.pop((rule, source), None)
        if timer is not None:
            timer.cancel()
