"""The life of `nfpkd run`: start, reloads, end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nfpkd.demo.process import Followed
from support.network import (
    CLIENT4,
    SERVER4,
    Actions,
    Network,
    knock,
    listen_tcp,
    outcome,
    rule,
    run_options,
    running,
    try_connect,
)

PORT = 2222


def save_in_place(file: Path, text: str) -> None:
    file.write_text(text)


def save_by_rename(file: Path, text: str) -> None:
    fresh = file.with_name(".door.json.swp")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(file)


def save_by_delete_and_create(file: Path, text: str) -> None:
    file.unlink()
    file.touch(mode=0o600)
    file.write_text(text)


@pytest.mark.parametrize("save", [save_in_place, save_by_rename, save_by_delete_and_create])
def test_an_edit_is_enforced_however_it_is_saved(
    network: Network, actions: Actions, save: Callable[[Path, str], None]
) -> None:
    file = actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), listen_tcp(network.server, 3333), running(network, actions) as run:
        save(file, json.dumps([rule("door", 3333)]))
        run.wait_for("rules reloaded")
        assert outcome(network.client, SERVER4, PORT) == "open"
        assert outcome(network.client, SERVER4, 3333) == "silence"


def test_a_swapped_link_is_enforced(network: Network, actions: Actions) -> None:
    """As a mounted config map is updated: files link through a linked directory, which is replaced."""
    for generation, port in (("first", PORT), ("second", 3333)):
        folder = actions.path / f"..{generation}"
        folder.mkdir()
        (folder / "door.json").touch(mode=0o600)
        (folder / "door.json").write_text(json.dumps([rule("door", port)]))
    (actions.path / "..data").symlink_to("..first")
    (actions.path / "door.json").symlink_to("..data/door.json")
    with listen_tcp(network.server, 3333), running(network, actions) as run:
        (actions.path / "..data_tmp").symlink_to("..second")
        (actions.path / "..data_tmp").rename(actions.path / "..data")
        run.wait_for("changed=door")
        assert outcome(network.client, SERVER4, 3333) == "silence"


def test_many_files_at_once_are_one_reload(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run:
        for i in range(100):
            actions.write(f"{i}.json", rule(f"rule{i}", 10000 + i))
        run.wait_for("rules=101")
    assert len(network_reloads(run.lines)) <= 3


def network_reloads(lines: list[str]) -> list[str]:
    return [line for line in lines if "rules reloaded" in line]


def test_the_directory_itself_may_be_replaced(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run:
        actions.path.rename(actions.path.with_name("old"))
        run.wait_for("the rules of before stay in force")
        Actions(actions.path).write("door.json", rule("door", 3333))
        run.wait_for("changed=door")
        actions.write("door.json", rule("door", 4444))
        run.wait_for("changed=door")


def test_a_broken_edit_changes_nothing_and_the_next_good_one_applies(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        actions.write_text("door.json", '[{"name": "door",\n  "port": 70000}]')
        lines = run.wait_for("the rules of before stay in force")
        assert any('door.json:2:11: "port" must be' in line for line in lines)
        assert outcome(network.client, SERVER4, PORT) == "silence"
        actions.write("door.json", rule("door", PORT), rule("more", 3333))
        run.wait_for("added=more")


def test_grants_survive_every_change_but_the_end_of_their_rule(network: Network, actions: Actions) -> None:
    actions.write("doors.json", rule("door", PORT), rule("going", 3333, tag="GO"))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        knock(network.client, SERVER4, tag="GO", source=CLIENT4)
        run.wait_for("rule=going")
        before = {grant.rule: grant for grant in network.state().grants}
        assert before.keys() == {"door", "going"}
        changed = rule("door", PORT, key="a new key", tag="NEW", window=600, reject="reset", description="new")
        actions.write("doors.json", changed)
        run.wait_for("removed=going")
        (kept,) = network.state().grants
        assert (kept.rule, kept.timeout) == ("door", 60)
        assert kept.expires <= before["door"].expires
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"


def test_sighup_reloads(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run:
        os.kill(run.process.pid, signal.SIGHUP)
        run.wait_for("nothing changed")


@pytest.mark.guest
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_exit_leaves_the_ruleset_as_it_was(network: Network, actions: Actions, number: signal.Signals) -> None:
    network.nft("add", "table", "inet", "mine")
    network.nft("add", "set", "inet", "mine", "hosts", "{ type ipv4_addr; elements = { 192.0.2.9 }; }")
    before = network.nft("list", "ruleset")
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT) as listener, running(network, actions) as run:
        assert "nfpkd" in network.nft("list", "ruleset")
        knock(network.client, SERVER4, source=CLIENT4)
        connection = try_connect(network.client, SERVER4, PORT, CLIENT4)
        assert not isinstance(connection, str)
        with connection, listener.accept()[0] as accepted:
            run.stop(number)
            assert run.wait() == 0
            assert network.nft("list", "ruleset") == before
            connection.sendall(b"still here")
            assert accepted.recv(64) == b"still here"


@pytest.mark.guest
def test_after_a_crash_the_guard_stands_and_the_next_run_takes_over(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT):
        with running(network, actions) as run:
            knock(network.client, SERVER4, source=CLIENT4)
            run.wait_for("knock accepted")
            run.stop(signal.SIGKILL)
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        assert outcome(network.client, SERVER4, PORT, "192.0.2.3") == "silence"
        with running(network, actions):
            assert [grant.rule for grant in network.state().grants] == ["door"]
            assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"


def test_a_second_run_is_turned_away_and_harms_nothing(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions):
        second = network.nfpkd("run", *run_options(actions))
        assert second.returncode == 3
        assert "already running here (process " in second.stderr
        assert outcome(network.client, SERVER4, PORT) == "silence"


def test_run_does_not_begin_with_wrong_rules(network: Network, actions: Actions) -> None:
    actions.write_text("door.json", "[{]")
    done = network.nfpkd("run", *run_options(actions))
    assert done.returncode == 1
    assert "door.json:1:3: not valid JSON" in done.stderr
    assert network.nft("list", "ruleset") == ""


def test_a_rule_directory_that_goes_away_leaves_the_rules_in_force(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        shutil.rmtree(actions.path)
        run.wait_for("the rules of before stay in force")
        assert outcome(network.client, SERVER4, PORT) == "silence"


# nfpkd, with a fault put into it.
FAULTY = """
import sys
from nfpkd import daemon
from nfpkd.cli import main

{fault}
main(sys.argv[1:])
"""


def faulty(network: Network, actions: Actions, fault: str) -> Followed:
    program = FAULTY.format(fault=fault)
    return Followed(network.server, [sys.executable, "-P", "-c", program, "run", *run_options(actions)])


def test_a_fault_of_its_own_ends_it_and_leaves_the_guard_up(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    fault = """
async def fail(*_):
    raise RuntimeError("a fault of nfpkd's own")

daemon.Daemon._follow = fail
"""
    with listen_tcp(network.server, PORT), faulty(network, actions, fault) as run:
        assert run.wait() != 0
        assert any("a fault of nfpkd's own" in line for line in run.lines)
        assert outcome(network.client, SERVER4, PORT) == "silence"
    # The next one takes over, and ends as it should.
    with running(network, actions):
        pass
    assert network.nft("list", "ruleset") == ""


def test_a_fault_while_rules_are_read_changes_nothing(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    fault = """
load = daemon.RuleLoader.load
calls = []

def fail_the_second_time(*arguments, **options):
    calls.append(True)
    if len(calls) == 2:
        raise AssertionError("a fault of nfpkd's own")
    return load(*arguments, **options)

daemon.RuleLoader.load = fail_the_second_time
"""
    with listen_tcp(network.server, PORT), faulty(network, actions, fault) as run:
        run.wait_for("guarding")
        actions.write("door.json", rule("door", 3333))
        run.wait_for("the rules of before stay in force")
        assert outcome(network.client, SERVER4, PORT) == "silence"
        actions.write("door.json", rule("door", 4444))
        run.wait_for("changed=door")
