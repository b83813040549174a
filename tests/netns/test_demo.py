from __future__ import annotations

import pytest

from nfpkd.demo import story
from nfpkd.demo.namespaces import Namespace, _ip
from nfpkd.errors import KernelError
from nfpkd.knock.client import make_knock
from nfpkd.rules.model import Secret
from nfpkd.text import Role


def test_the_demo_tells_what_it_saw() -> None:
    lines: list[str] = []
    marks: list[Role] = []

    def note(role: Role, text: str) -> str:
        marks.append(role)
        return text

    assert story.tell(lines.append, note)
    assert marks.count(Role.GOOD) == 9
    assert Role.ERROR not in marks
    told = "\n".join(lines)
    assert told.count("ok: ") == 9
    assert "no: " not in told
    for seen in ("knock accepted", "seen before", "rules reloaded", "the table is removed"):
        assert seen in told


def test_a_step_that_fails_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    def knock_with_another_key(_: Secret, tag: bytes, port: int) -> bytes:
        return make_knock(Secret(bytes(40)), tag, port)

    monkeypatch.setattr(story, "make_knock", knock_with_another_key)
    lines: list[str] = []
    assert not story.tell(lines.append)
    assert lines[-1].startswith("   NOT AS IT SHOULD BE: port 2222: no answer")


def test_a_command_that_fails_says_how() -> None:
    with Namespace("broken") as namespace, pytest.raises(KernelError, match=r"ip netns exec .* failed: .*no-such-word"):
        namespace.run("ip", "no-such-word")


def test_a_missing_ip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(KernelError, match="install iproute2"):
        _ip("link")
