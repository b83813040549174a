from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from nfpkd.errors import KernelError, StateError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import Kernel
from nfpkd.firewall.last_good import FILE_NAME, LastGood
from nfpkd.firewall.ruleset import Options, make_grants
from nfpkd.firewall.state import Session
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Service, TimedKey, parse_key, parse_tag
from support.fake_kernel import FakeKernel

SECRET = "words that nobody may read"
SSH = Rule(
    "ssh",
    (TimedKey(parse_key(SECRET)),),
    parse_tag("SSH1"),
    (PortRange(22, 23),),
    (Protocol.TCP,),
    reject=Reject.RESET,
)
WEB = replace(SSH, name="web", ports=(PortRange(80, 80),), interfaces=("eth0",), once=True)
OPTIONS = Options(7, ("lo",), 30)
INSIDE = Session("192.0.2.7", 40000, Service(Protocol.TCP, 22))
ELSEWHERE = Session("192.0.2.7", 40001, Service(Protocol.TCP, 443))


@pytest.fixture
def kept(tmp_path: Path) -> LastGood:
    return LastGood(tmp_path / "state")


def test_what_is_kept_makes_the_same_guard_again(kernel: Kernel, kept: LastGood) -> None:
    firewall = Firewall(kernel, list)
    firewall.apply([SSH, WEB], OPTIONS)
    before = firewall.read_state()
    kept.save([SSH, WEB], OPTIONS)
    firewall.teardown()
    transaction = kept.load()
    assert transaction is not None
    assert firewall.make_again(transaction)
    assert firewall.read_state() == before
    # Nor has the daemon, when it comes, anything to change.
    assert not firewall.apply([SSH, WEB], OPTIONS).sent


def test_nobody_who_was_let_in_is_kept(kept: LastGood) -> None:
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    firewall.apply([SSH], OPTIONS)
    firewall.grant(list(make_grants(SSH, "192.0.2.9", 600)))
    kept.save([SSH], OPTIONS)
    assert "192.0.2.9" not in kept.path.read_text()


def test_no_key_is_kept_and_only_the_owner_reads(kept: LastGood) -> None:
    kept.save([SSH], OPTIONS)
    text = kept.path.read_text()
    assert SECRET not in text
    assert SECRET.encode().hex() not in text
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700


def test_the_newest_replaces_the_one_before_and_leaves_nothing_beside_it(kept: LastGood) -> None:
    kept.save([SSH], OPTIONS)
    kept.save([WEB], OPTIONS)
    assert [path.name for path in kept.path.parent.iterdir()] == [FILE_NAME]
    assert '"ssh"' not in kept.path.read_text()


def test_what_cannot_be_written_leaves_what_was_kept(kept: LastGood) -> None:
    kept.save([SSH], OPTIONS)
    before = kept.path.read_text()
    # Where the new one would be written first is something else.
    blocked = LastGood(kept.path)
    with pytest.raises(StateError, match=r"cannot be kept in .*: (not a directory|file exists)"):
        blocked.save([WEB], OPTIONS)
    assert kept.path.read_text() == before


def test_nothing_kept_is_no_error(kept: LastGood) -> None:
    assert kept.load() is None


@pytest.mark.parametrize("text", ["", "[", "[]", "5", "{}", '{"nftables": 5}', '{"nftables": [5]}', "\x80"])
def test_a_damaged_file_is_refused(kept: LastGood, text: str) -> None:
    kept.path.parent.mkdir()
    kept.path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError, match=r"guard\.json, cannot be used: it is damaged"):
        kept.load()


def test_a_file_that_cannot_be_read_is_refused(kept: LastGood) -> None:
    kept.path.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be used: is a directory"):
        kept.load()


def test_a_guard_that_stands_is_left_alone(kept: LastGood) -> None:
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    kept.save([SSH], OPTIONS)
    firewall.apply([WEB], OPTIONS)
    before = firewall.read_state()
    transaction = kept.load()
    assert transaction is not None
    assert not firewall.make_again(transaction)
    assert firewall.read_state() == before


def test_open_connections_to_what_is_guarded_again_go_on(kernel: Kernel, kept: LastGood) -> None:
    firewall = Firewall(kernel, lambda: [INSIDE, ELSEWHERE])
    kept.save([SSH], OPTIONS)
    transaction = kept.load()
    assert transaction is not None
    firewall.make_again(transaction)
    state = firewall.read_state()
    assert state is not None
    assert [session for session, _ in state.sessions] == [INSIDE]


def test_a_file_of_another_tables_making_is_the_kernels_to_refuse(kept: LastGood) -> None:
    kept.path.parent.mkdir()
    kept.path.write_text(json.dumps({"nftables": [{"add": {"chain": {"family": "inet", "table": "x", "name": "y"}}}]}))
    transaction = kept.load()
    assert transaction is not None
    with pytest.raises(KernelError):
        Firewall(FakeKernel(), list).make_again(transaction)
