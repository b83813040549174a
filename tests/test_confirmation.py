"""The change that waits to be confirmed, as a file: written whole, claimed once, and spoiled by anybody."""

from __future__ import annotations

import json
import os
import subprocess
import syslog
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd import confirmation
from nfpkd.confirmation import Confirmation, Pending, parse_pending
from nfpkd.errors import KernelError, StateError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.ruleset import Options
from nfpkd.rules.model import PortRange, Protocol, Rule, TimedKey, parse_key, parse_tag
from support.fake_kernel import FakeKernel
from support.strategies import json_values

RULE = Rule("ssh", (TimedKey(parse_key("k")),), parse_tag("PKD0"), (PortRange(22, 22),), (Protocol.TCP,))


class Waiting:
    """A change that waits, on a host without processes."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.firewall = Firewall(self.kernel, list)
        self.firewall.apply([RULE], Options())
        self.before = self.firewall.read_state()
        self.confirmation = Confirmation(directory)
        self.confirmation.arm(self.kernel, 60)
        self.firewall.teardown()
        (self.file,) = directory.iterdir()
        self.generation: str = json.loads(self.file.read_text())["generation"]

    def roll_back(self) -> bool:
        return self.confirmation.roll_back(self.generation, self.kernel)


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went to syslog; nothing is started, and nobody runs."""
    lines: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    monkeypatch.setattr(confirmation, "find_instance", lambda: None)
    monkeypatch.setattr(syslog, "syslog", lambda _, text: lines.append(text))
    return lines


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path / "run")


def test_a_change_can_be_undone_once(waiting: Waiting, said: list[str]) -> None:
    assert waiting.confirmation.is_waiting(waiting.generation)
    assert waiting.roll_back()
    assert waiting.firewall.read_state() == waiting.before is not None
    assert said == ["nfpkd: not confirmed in time; the firewall is as it was before"]
    assert not waiting.roll_back()
    assert list(waiting.file.parent.iterdir()) == []


def test_a_change_that_is_confirmed_is_not_undone(waiting: Waiting) -> None:
    assert waiting.confirmation.confirm()
    assert not waiting.confirmation.is_waiting(waiting.generation)
    assert not waiting.roll_back()
    assert waiting.firewall.read_state() is None
    assert not waiting.confirmation.confirm()
    assert list(waiting.file.parent.iterdir()) == []


def test_an_older_change_is_not_this_one(waiting: Waiting) -> None:
    assert not waiting.confirmation.is_waiting("another")
    assert not waiting.confirmation.roll_back("another", waiting.kernel)
    assert waiting.confirmation.is_waiting(waiting.generation)


def test_nobody_else_may_read_it(waiting: Waiting) -> None:
    assert waiting.file.stat().st_mode & 0o777 == 0o600
    assert waiting.file.parent.stat().st_mode & 0o777 == 0o700


def test_one_change_waits_at_a_time(waiting: Waiting) -> None:
    before = waiting.file.read_bytes()
    with pytest.raises(KernelError, match="an earlier change still waits"):
        waiting.confirmation.arm(waiting.kernel, 60)
    assert (list(waiting.file.parent.iterdir()), waiting.file.read_bytes()) == ([waiting.file], before)


def test_what_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-written file would keep every later change from being armed."""
    real = os.fdopen

    def full(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        # Every write to it fails for want of room.
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    made = Confirmation(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(KernelError, match="cannot be written: No space left on device"):
            made.arm(FakeKernel(), 60)
    assert list((tmp_path / "run").iterdir()) == []
    made.arm(FakeKernel(), 60)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(KernelError, match="cannot be written"):
        Confirmation(tmp_path / "run").arm(FakeKernel(), 60)


SPOILED = [
    b"",
    b"{",
    b"null",
    b"5",
    b"[]",
    b'"generation"',
    b"{}",
    b'{"generation": "a"}',
    b'{"listing": null}',
    b'{"generation": 5, "listing": null}',
    b'{"generation": "a", "listing": {}}',
    b'{"generation": "a", "listing": [5]}',
    b'{"generation": "a", "listing": [{"set": 5}]}',
    b"[" * 100_000,
    b'{"generation": "\xff", "listing": null}',
    b"\0" * 4096,
    b"9" * 5000,
]


@pytest.mark.parametrize("data", SPOILED)
def test_what_is_damaged_is_refused_with_a_remedy(data: bytes) -> None:
    with pytest.raises(StateError) as caught:
        parse_pending(data)
    assert "is damaged" in caught.value.reason
    assert "nfpkd teardown" in caught.value.remedy


@pytest.mark.parametrize("data", SPOILED)
def test_what_is_damaged_changes_nothing_and_is_told(waiting: Waiting, said: list[str], data: bytes) -> None:
    waiting.file.write_bytes(data)
    assert waiting.confirmation.is_waiting(waiting.generation)
    with pytest.raises(StateError):
        waiting.roll_back()
    assert waiting.firewall.read_state() is None
    (line,) = said
    assert line.startswith("nfpkd: not confirmed in time: the change that waits to be confirmed cannot be undone")
    # The next change is not kept waiting.
    assert list(waiting.file.parent.iterdir()) == []


@pytest.mark.parametrize("data", SPOILED)
def test_what_is_damaged_can_be_confirmed(waiting: Waiting, data: bytes) -> None:
    waiting.file.write_bytes(data)
    assert waiting.confirmation.confirm()
    assert not waiting.roll_back()


def test_a_refusal_of_the_kernel_is_told(waiting: Waiting, said: list[str]) -> None:
    waiting.kernel.fail_next()
    with pytest.raises(KernelError):
        waiting.roll_back()
    assert said == ["nfpkd: not confirmed in time: the fake was told to fail"]


@given(json_values | st.fixed_dictionaries({"generation": st.text(max_size=3), "listing": json_values}))
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        found = parse_pending(json.dumps(value).encode())
    except StateError:
        return
    assert isinstance(value, dict)
    assert found == Pending(value["generation"], value["listing"])


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        parse_pending(data)
