"""When windows end, by a clock that moves when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nfpkd.rules.model import PortRange, Protocol, Rule, Secret, TimedKey, Trigger
from nfpkd.triggers import windows as windows_module
from nfpkd.triggers.message import Event
from nfpkd.triggers.windows import Windows
from nfpkd.verifier.verifier import Opened

OPEN, CLOSE = Event.OPEN, Event.CLOSE
V4, V6 = "192.0.2.1", "2001:db8::1"
BOTH = Trigger(("/bin/open",), ("/bin/close",))


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Bench:
    def __init__(self) -> None:
        self.ran: list[tuple[Event, str, str]] = []
        self.windows = Windows(lambda *command: self.ran.append(command))

    def open(self, rule: Rule, source: str = V4) -> None:
        self.windows.opened(Opened(rule, source))

    async def wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.now += seconds
        # Once round the loop makes due timers ready, once more runs them.
        for _ in range(3):
            await asyncio.sleep(0)


def a_rule(name: str = "ssh", trigger: Trigger = BOTH, window: int = 10) -> Rule:
    key = TimedKey(Secret(b"k" * 40))
    return Rule(name, (key,), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,), window, trigger=trigger)


def run(story: Callable[[Bench], Awaitable[None]]) -> list[tuple[Event, str, str]]:
    bench = Bench()

    async def tell() -> None:
        await story(bench)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(tell())
    return bench.ran


def test_a_window_is_opened_at_once_and_closed_at_its_end() -> None:
    async def story(bench: Bench) -> None:
        bench.open(a_rule())
        assert bench.ran == [(OPEN, "ssh", V4)]
        await bench.wait(9.9)
        assert len(bench.ran) == len(bench.windows) == 1
        await bench.wait(0.2)
        assert len(bench.windows) == 0
        await bench.wait(1000)

    assert run(story) == [(OPEN, "ssh", V4), (CLOSE, "ssh", V4)]


@pytest.mark.parametrize(
    ("trigger", "ran"),
    [
        (Trigger(), []),
        (Trigger(("/bin/open",)), [(OPEN, "ssh", V4)]),
        # The helper passes over the first, and knows the rule from then on.
        (Trigger((), ("/bin/close",)), [(OPEN, "ssh", V4), (CLOSE, "ssh", V4)]),
    ],
)
def test_only_what_a_rule_has_is_run(trigger: Trigger, ran: list[tuple[Event, str, str]]) -> None:
    async def story(bench: Bench) -> None:
        bench.open(a_rule(trigger=trigger))
        await bench.wait(11)

    assert run(story) == ran


def test_a_knock_within_the_window_renews_it_and_its_end_is_told_once() -> None:
    async def story(bench: Bench) -> None:
        for _ in range(3):
            bench.open(a_rule())
            await bench.wait(9)
        assert len(bench.windows) == 1
        assert bench.ran == [(OPEN, "ssh", V4)] * 3
        await bench.wait(2)

    assert run(story)[3:] == [(CLOSE, "ssh", V4)]


def test_windows_of_other_sources_and_rules_end_by_themselves() -> None:
    async def story(bench: Bench) -> None:
        bench.open(a_rule())
        bench.open(a_rule(), V6)
        bench.open(a_rule("web", window=20))
        await bench.wait(5)
        bench.open(a_rule(), V6)
        await bench.wait(6)
        assert bench.ran[4:] == [(CLOSE, "ssh", V4)]
        await bench.wait(5)
        await bench.wait(5)

    assert run(story)[5:] == [(CLOSE, "ssh", V6), (CLOSE, "web", V4)]


def test_with_its_rule_a_window_ends() -> None:
    async def story(bench: Bench) -> None:
        for name in ("ssh", "web"):
            bench.open(a_rule(name))
        bench.windows.close_others({"ssh", "web", "new"})
        assert len(bench.windows) == 2
        bench.windows.close_others({"web"})
        assert bench.ran[2:] == [(CLOSE, "ssh", V4)]
        await bench.wait(11)

    assert run(story)[3:] == [(CLOSE, "web", V4)]


def test_at_the_end_every_window_is_closed_once() -> None:
    async def story(bench: Bench) -> None:
        bench.open(a_rule())
        bench.open(a_rule("web"), V6)
        bench.windows.close_all()
        assert len(bench.windows) == 0
        bench.windows.close_all()
        await bench.wait(11)

    assert run(story)[2:] == [(CLOSE, "ssh", V4), (CLOSE, "web", V6)]


def test_of_too_many_windows_the_oldest_is_closed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "MAX_WINDOWS", 2)
    rule = a_rule(trigger=Trigger((), ("/bin/close",)))

    async def story(bench: Bench) -> None:
        bench.open(rule, "192.0.2.1")
        bench.open(rule, "192.0.2.2")
        # Renewed, so it is no longer the oldest; and none is one too many.
        bench.open(rule, "192.0.2.1")
        assert len(bench.windows) == 2
        bench.open(rule, "192.0.2.3")
        assert bench.ran[4:] == [(CLOSE, "ssh", "192.0.2.2")]
        await bench.wait(11)

    assert run(story)[5:] == [(CLOSE, "ssh", "192.0.2.1"), (CLOSE, "ssh", "192.0.2.3")]
