from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nfpkd.errors import KernelError, Problem, RulesError, StateError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.ruleset import Options, make_grants
from nfpkd.firewall.state import Session
from nfpkd.last_good import FILE_NAME, LastGood, fall_back
from nfpkd.rules.loader import Loaded, load_rules
from nfpkd.rules.model import Protocol, Service
from support.fake_kernel import FakeKernel

SSH: dict[str, Any] = {
    "name": "ssh",
    "key": "words that nobody may read",
    "tag": "SSH1",
    "port": "22-23",
    "protocol": "tcp",
    "reject": "reset",
}
WEB = SSH | {"name": "web", "key": "other words", "port": 80, "interfaces": ["eth0"], "once": True}
OPTIONS = Options(7, ("lo",), 30)
INSIDE = Session("192.0.2.7", 40000, Service(Protocol.TCP, 22))
ELSEWHERE = Session("192.0.2.7", 40001, Service(Protocol.TCP, 443))
BROKEN = RulesError([Problem("ssh.json", 1, 3, "not valid JSON")])
SERVICE = 4711


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    folder = tmp_path / "actions.d"
    folder.mkdir()
    return folder


@pytest.fixture
def kept(tmp_path: Path, actions: Path) -> LastGood:
    return LastGood(tmp_path / "state", actions)


@pytest.fixture
def load(actions: Path) -> Callable[..., Loaded]:
    """Return a function that makes rule files of what it is given, one of each rule, and loads them."""

    def write_and_load(*rules: dict[str, Any]) -> Loaded:
        for file in actions.iterdir():
            file.unlink()
        for rule in rules:
            file = actions / f"{rule['name']}.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps([rule]))
        return load_rules(actions)

    return write_and_load


def write(kept: LastGood, text: str) -> None:
    """Have *text* kept, as if it had been written so."""
    kept.path.parent.mkdir(exist_ok=True)
    kept.path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def guard_again(kept: LastGood, firewall: Firewall) -> bool:
    transaction = kept.load_guard()
    assert transaction is not None
    return firewall.make_again(transaction)


def test_what_is_kept_makes_the_same_guard_again(kept: LastGood, load: Callable[..., Loaded]) -> None:
    firewall = Firewall(FakeKernel(), list)
    loaded = load(SSH, WEB)
    firewall.apply(loaded.rules, OPTIONS)
    before = firewall.read_state()
    kept.save(loaded, OPTIONS)
    firewall.teardown()
    assert guard_again(kept, firewall)
    assert firewall.read_state() == before
    # Nor has the daemon, when it comes, anything to change, by the rules of the day or the last good ones.
    for rules in (loaded, kept.load_rules()):
        assert rules is not None
        assert not firewall.apply(rules.rules, OPTIONS).sent


def test_the_same_rules_are_kept_with_their_keys(kept: LastGood, load: Callable[..., Loaded]) -> None:
    loaded = load(SSH, WEB)
    kept.save(loaded, OPTIONS)
    found = kept.load_rules()
    assert found == loaded
    assert found is not None
    assert [rule.keys for rule in found.rules] == [rule.keys for rule in loaded.rules]


def test_nobody_who_was_let_in_is_kept(kept: LastGood, load: Callable[..., Loaded]) -> None:
    firewall = Firewall(FakeKernel(), list)
    loaded = load(SSH)
    firewall.apply(loaded.rules, OPTIONS)
    firewall.grant(list(make_grants(loaded.rules[0], "192.0.2.9", 600)))
    kept.save(loaded, OPTIONS)
    assert "192.0.2.9" not in kept.path.read_text()


def test_only_the_owner_reads(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.save(load(SSH), OPTIONS)
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700


def test_a_key_that_is_no_longer_good_is_gone(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.save(load(SSH), OPTIONS)
    # As a process leaves it that was killed while it wrote.
    (kept.path.parent / f"{FILE_NAME}.new").write_text(SSH["key"])
    assert SSH["key"] in kept.path.read_text()
    kept.save(load(WEB), OPTIONS)
    assert [path.name for path in kept.path.parent.iterdir()] == [FILE_NAME]
    assert SSH["key"] not in kept.path.read_text()


def test_no_rules_are_good_rules(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.save(load(), OPTIONS)
    assert kept.load_rules() == Loaded((), (), 0)
    assert kept.load_guard()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_keeps_is_the_services(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.path.parent.mkdir(mode=0o700)
    os.chown(kept.path.parent, SERVICE, SERVICE)
    kept.save(load(SSH), OPTIONS)
    info = kept.path.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (SERVICE, SERVICE, 0o600)
    assert kept.load_rules() is not None


def test_a_link_in_the_way_leads_nowhere(kept: LastGood, load: Callable[..., Loaded], tmp_path: Path) -> None:
    kept.path.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("as it was")
    for link in (kept.path, kept.path.parent / f"{FILE_NAME}.new"):
        link.symlink_to(elsewhere)
    with pytest.raises(StateError, match="cannot be used: too many levels of symbolic links"):
        kept.load_rules()
    kept.save(load(SSH), OPTIONS)
    assert elsewhere.read_text() == "as it was"
    assert not kept.path.is_symlink()
    assert kept.load_rules() is not None


def test_what_cannot_be_written_leaves_what_was_kept(
    kept: LastGood, load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.save(load(SSH), OPTIONS)
    before = kept.path.read_text()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nfpkd.last_good.os.fsync", fail)
    with pytest.raises(StateError, match=r"cannot be kept in .*last-good: no space left on device"):
        kept.save(load(WEB), OPTIONS)
    assert kept.path.read_text() == before
    assert [path.name for path in kept.path.parent.iterdir()] == [FILE_NAME]


def test_a_directory_that_is_none_is_named(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.path.parent.write_text("")
    with pytest.raises(StateError, match=r"cannot be kept in .*: (not a directory|file exists)"):
        kept.save(load(SSH), OPTIONS)


def test_nothing_kept_is_no_error(kept: LastGood) -> None:
    assert kept.load_guard() is None
    assert kept.load_rules() is None


def test_rules_of_another_directory_open_nothing_here(
    kept: LastGood, load: Callable[..., Loaded], actions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.save(load(SSH), OPTIONS)
    other = LastGood(kept.path.parent, actions.with_name("others.d"))
    with pytest.raises(StateError, match=r"they are those of .*/actions\.d, not of .*/others\.d"):
        other.load_rules()
    # But they go on guarding.
    assert guard_again(other, Firewall(FakeKernel(), list))
    # It is the same one, by whatever name.
    monkeypatch.chdir(actions.parent)
    assert LastGood(kept.path.parent, Path("actions.d")).load_rules() is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"port"', '"prot"'), r'/ssh\.json:1:\d+: "prot" is not a field'),
        (('"reset"', '"icmp"'), "rules that share a port must agree"),
    ],
)
def test_a_newer_nfpkd_that_refuses_the_rules_still_guards(
    kept: LastGood, load: Callable[..., Loaded], change: tuple[str, str], said: str
) -> None:
    kept.save(load(SSH, SSH | {"name": "too", "key": "yet other words"}), OPTIONS)
    found = json.loads(kept.path.read_text().partition("\n")[2])
    found["texts"][0][1] = found["texts"][0][1].replace(*change)
    write(kept, json.dumps(found))
    with pytest.raises(StateError, match=f"this version of nfpkd does not take them: .*{said}") as raised:
        kept.load_rules()
    assert "words" not in str(raised.value)
    assert guard_again(kept, Firewall(FakeKernel(), list))


@pytest.mark.parametrize("what", ["a bit that is not as it was", "an end that is missing"])
def test_what_a_disk_has_changed_is_refused(kept: LastGood, load: Callable[..., Loaded], what: str) -> None:
    kept.save(load(SSH, WEB), OPTIONS)
    good = kept.path.read_bytes()
    for at in range(0, len(good), 31):
        changed = bytes((*good[:at], good[at] ^ 1, *good[at + 1 :])) if "bit" in what else good[:at]
        kept.path.write_bytes(changed)
        for load_something in (kept.load_guard, kept.load_rules):
            with pytest.raises(StateError, match="last-good, cannot be used: the file is damaged"):
                load_something()


@pytest.mark.parametrize("text", ["", "5", "[]", "{}", '{"directory": "/", "guard": []}', '{"texts": [["a"]]}'])
def test_what_another_version_has_kept_is_refused(kept: LastGood, text: str) -> None:
    write(kept, text)
    for load_something in (kept.load_guard, kept.load_rules):
        with pytest.raises(StateError, match="cannot be used: this version of nfpkd does not know its format"):
            load_something()


def test_what_is_no_file_is_refused(kept: LastGood) -> None:
    kept.path.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be used: is a directory"):
        kept.load_rules()
    kept.path.rmdir()
    # Nobody writes to it, and nobody waits for that.
    os.mkfifo(kept.path)
    with pytest.raises(StateError, match="cannot be used: it is not a regular file"):
        kept.load_guard()


def test_a_file_that_others_can_change_is_refused(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.save(load(SSH), OPTIONS)
    kept.path.chmod(0o620)
    with pytest.raises(StateError, match="cannot be used: others can change the file"):
        kept.load_rules()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_elses_is_refused(kept: LastGood, load: Callable[..., Loaded]) -> None:
    kept.save(load(SSH), OPTIONS)
    os.chown(kept.path, SERVICE, -1)
    with pytest.raises(StateError, match="cannot be used: others can change the file"):
        kept.load_rules()


def test_a_guard_that_stands_is_left_alone(kept: LastGood, load: Callable[..., Loaded]) -> None:
    firewall = Firewall(FakeKernel(), list)
    kept.save(load(SSH), OPTIONS)
    firewall.apply(load(WEB).rules, OPTIONS)
    before = firewall.read_state()
    assert not guard_again(kept, firewall)
    assert firewall.read_state() == before


def test_open_connections_to_what_is_guarded_again_go_on(kept: LastGood, load: Callable[..., Loaded]) -> None:
    firewall = Firewall(FakeKernel(), lambda: [INSIDE, ELSEWHERE])
    kept.save(load(SSH), OPTIONS)
    guard_again(kept, firewall)
    state = firewall.read_state()
    assert state is not None
    assert [session for session, _ in state.sessions] == [INSIDE]


def test_a_file_of_another_tables_making_is_the_kernels_to_refuse(kept: LastGood) -> None:
    commands = [{"add": {"chain": {"family": "inet", "table": "x", "name": "y"}}}]
    write(kept, json.dumps({"directory": "/", "texts": [], "guard": commands}))
    with pytest.raises(KernelError):
        guard_again(kept, Firewall(FakeKernel(), list))


# Going on with it


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str, str]]]:
    caplog.set_level(logging.INFO, "nfpkd")

    def read() -> list[tuple[str, str, str]]:
        return [(record.levelname, record.event, record.getMessage()) for record in caplog.records]  # type: ignore[attr-defined]

    return read


def test_the_faults_are_said_first(
    kept: LastGood, load: Callable[..., Loaded], logged: Callable[[], list[tuple[str, str, str]]]
) -> None:
    loaded = load(SSH)
    kept.save(loaded, OPTIONS)
    assert fall_back(kept, BROKEN) == loaded
    assert logged() == [
        ("ERROR", "rules_refused", "ssh.json:1:3: not valid JSON"),
        (
            "WARNING",
            "fell_back",
            f"the rule files have errors; going on with the last good rules, kept in {kept.path}",
        ),
    ]


def test_what_the_kernel_refused_is_said(
    kept: LastGood, load: Callable[..., Loaded], logged: Callable[[], list[tuple[str, str, str]]]
) -> None:
    kept.save(load(SSH), OPTIONS)
    fall_back(kept, KernelError("too many elements"))
    ((_, event, text),) = logged()
    assert event == "fell_back"
    assert text.startswith("too many elements; going on with the last good rules, ")


@pytest.mark.parametrize(("text", "said"), [(None, "no last good rules are kept in "), ("[", "the file is damaged")])
def test_where_nothing_is_good_the_error_is_raised(
    kept: LastGood, logged: Callable[[], list[tuple[str, str, str]]], text: str | None, said: str
) -> None:
    if text is not None:
        kept.path.parent.mkdir()
        kept.path.write_text(text)
    with pytest.raises(RulesError) as raised:
        fall_back(kept, BROKEN)
    assert raised.value is BROKEN
    ((level, event, message),) = logged()
    assert (level, event) == ("ERROR", "fall_back_failed")
    assert said in message
