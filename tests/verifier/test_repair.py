"""What the repairer does with what it hears; with real tables and tools in tests/netns/test_other_tools.py."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

import pytest

from nfpkd.errors import KernelError
from nfpkd.firewall.monitor import UNKNOWN, Change, TableMonitor
from nfpkd.verifier import repair as repair_module
from nfpkd.verifier.repair import Repairer
from nfpkd.verifier.verifier import Verifier

TABLE_GONE = Change(9, "nft", frozenset({("delete table", "nfpkd")}))
GRANTS_GONE = Change(9, "nft", frozenset({("delete set", "grants6_net64")}))
OTHER_SET_GONE = Change(9, "nft", frozenset({("delete set", "gated")}))
ELEMENT_GONE = Change(9, "nft", frozenset({("delete element", "grants4")}))


class Scene:
    """Stands in for monitor and verifier: what will be heard, and what was asked for."""

    def __init__(self) -> None:
        self.heard: list[Change] = []
        self.done: list[object] = []
        self.failures = 0
        self.repairer = Repairer(cast(TableMonitor, self), cast(Verifier, self))

    def read(self) -> list[Change]:
        heard, self.heard = self.heard, []
        return heard

    def note_taken(self, names: Collection[str]) -> None:
        if names:
            self.done.append(set(names))

    def repair(self, seen: str, by: str, pid: int, *, lost: bool) -> bool:
        assert (pid == 0) == (by == "")
        self.done.append((seen, by, lost))
        if self.failures:
            self.failures -= 1
            raise KernelError("the test said so")
        return True

    def follow_renewals(self) -> None:
        self.done.append("renewals")

    def hear(self, *changes: Change) -> None:
        self.heard += changes
        self.repairer.listen()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("QUIET_SECONDS", "PAUSE_SECONDS", "ROUND_SECONDS"):
        monkeypatch.setattr(repair_module, name, 0.01)
    return Scene()


def follow(scene: Scene, done: int) -> list[Any]:
    """Let it work until so much is *done*."""

    async def wait() -> None:
        task = asyncio.create_task(scene.repairer.follow())
        async with asyncio.timeout(10):
            while len(scene.done) < done:
                await asyncio.sleep(0)
        task.cancel()

    asyncio.run(wait())
    return scene.done[:done]


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ([TABLE_GONE], [("delete table", "nft", True)]),
        ([GRANTS_GONE], [("delete set grants6_net64", "nft", True)]),
        ([OTHER_SET_GONE], [("delete set gated", "nft", False)]),
        ([UNKNOWN], [("unknown: notifications were lost", "", False)]),
        ([ELEMENT_GONE], [{"grants4"}, ("delete element grants4", "nft", False)]),
        # The gravest is what is said.
        ([ELEMENT_GONE, TABLE_GONE, OTHER_SET_GONE], [{"grants4"}, ("delete table", "nft", True)]),
        ([OTHER_SET_GONE, ELEMENT_GONE], [{"grants4"}, ("delete set gated", "nft", False)]),
    ],
)
def test_what_is_heard_is_looked_at_once(scene: Scene, changes: list[Change], done: list[object]) -> None:
    scene.hear(*changes)
    assert follow(scene, len(done) + 1) == [*done, "renewals"]


def test_a_repair_that_failed_is_tried_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.failures = 2
    scene.hear(TABLE_GONE)
    assert follow(scene, 4) == [("delete table", "nft", True)] * 3 + ["renewals"]
    assert [record.event for record in caplog.records] == ["repair_failed"] * 2  # type: ignore[attr-defined]
