"""A boot with rule files that are refused: what was good last goes on guarding, and opening."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys

import pytest

from nfpkd.demo.process import Followed
from support.network import (
    CLIENT4,
    SERVER4,
    STRANGER4,
    Actions,
    Network,
    knock,
    listen_tcp,
    outcome,
    rule,
    run_options,
    running,
)

PORT, LATER = 2222, 3333
KEPT = "going on with the last good rules, kept in "


def apply(network: Network, actions: Actions, *options: str) -> subprocess.CompletedProcess[str]:
    """Do what nfpkd-guard.service does at boot."""
    return network.nfpkd("apply", "--last-good", *run_options(actions), *options)


def run_once(network: Network, actions: Actions, *options: str) -> None:
    with running(network, actions, "--last-good", *options):
        pass


@pytest.mark.guest
def test_a_boot_with_broken_rules_guards_what_was_guarded_last(network: Network, actions: Actions) -> None:
    """What ran last is what counts, not what was applied at the boot before."""
    file = actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), listen_tcp(network.server, LATER):
        assert apply(network, actions).returncode == 0
        with running(network, actions, "--last-good") as run:
            actions.write("door.json", rule("door", LATER))
            run.wait_for("changed=door")
            knock(network.client, SERVER4, source=CLIENT4)
            run.wait_for("knock accepted")
            file.write_text("[{]")
            run.wait_for("the rules of before stay in force")
        assert outcome(network.client, SERVER4, LATER) == "open"
        done = apply(network, actions)
        assert done.returncode == 1
        assert "the last good guard, from " in done.stderr
        # Whoever had been let in has to knock again.
        assert outcome(network.client, SERVER4, LATER, CLIENT4) == "silence"
        assert outcome(network.client, SERVER4, PORT) == "open"
        actions.write("door.json", rule("door", PORT))
        assert apply(network, actions).returncode == 0
        assert outcome(network.client, SERVER4, PORT) == "silence"


@pytest.mark.guest
def test_a_boot_with_broken_rules_opens_for_a_knock(network: Network, actions: Actions) -> None:
    file = actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), listen_tcp(network.server, LATER):
        run_once(network, actions)
        file.write_text('[{"name": "door",\n  "prot": 2222}]')
        assert apply(network, actions).returncode == 1
        with running(network, actions, "--last-good") as run:
            start = run.lines
            fault = next(i for i, line in enumerate(start) if 'door.json:2:3: "prot" is not a field' in line)
            said = next(i for i, line in enumerate(start) if KEPT in line)
            assert fault < said
            assert start[said].startswith("warning: the rule files have errors; ")
            assert outcome(network.client, SERVER4, PORT, CLIENT4) == "silence"
            knock(network.client, SERVER4, source=CLIENT4)
            run.wait_for("knock accepted")
            assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
            assert outcome(network.client, SERVER4, PORT, STRANGER4) == "silence"
            told = "rules: the rule files are refused; the last good rules are in force: guarding by 1 rule"
            assert told in network.nfpkd("status").stdout
            assert json.loads(network.nfpkd("status", "--format", "json").stdout)["rules"]["stale"] is True
            actions.write("door.json", rule("door", PORT), rule("later", LATER))
            run.wait_for("rules reloaded rules=2 added=later")
            assert outcome(network.client, SERVER4, LATER) == "silence"
            assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
            assert "rules: " not in network.nfpkd("status").stdout
            assert "nfpkd_rules_stale 0\n" in network.nfpkd("status", "--format", "prometheus").stdout


def test_what_is_mended_as_it_was_is_enforced_and_kept(network: Network, actions: Actions) -> None:
    file = actions.write("door.json", rule("door", PORT))
    text = file.read_text()
    run_once(network, actions)
    file.write_text("[{]")
    apply(network, actions)
    # With another option, so that it can be told which guard is kept.
    with running(network, actions, "--last-good", "--source-limit", "7", "--on-exit", "keep") as run:
        file.write_text(text)
        run.wait_for("rules reloaded; nothing changed")
    network.nfpkd("teardown")
    file.write_text("[{]")
    apply(network, actions)
    assert network.state().source_limit == 7


def test_a_key_that_was_taken_back_does_not_stay_on_the_disk(network: Network, actions: Actions) -> None:
    kept = actions.path.with_name("state") / "last-good"
    actions.write("door.json", rule("door", PORT, key="a key that was lost"))
    with running(network, actions, "--last-good") as run:
        assert "a key that was lost" in kept.read_text()
        actions.write("door.json", rule("door", PORT, key="its successor"))
        run.wait_for("changed=door")
        # It is written behind the log line, which an end waits for.
        run.stop()
    assert "a key that was lost" not in kept.read_text()
    assert "its successor" in kept.read_text()


def test_without_being_asked_it_keeps_nothing_and_begins_with_nothing_else(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions):
        assert not (actions.path.with_name("state") / "last-good").exists()
    run_once(network, actions)
    actions.write_text("door.json", "[{]")
    done = network.nfpkd("run", *run_options(actions))
    assert done.returncode == 1
    assert "door.json:1:3: not valid JSON" in done.stderr
    assert KEPT not in done.stderr


def test_where_nothing_was_good_it_does_not_begin(network: Network, actions: Actions) -> None:
    actions.write_text("door.json", "[{]")
    done = network.nfpkd("run", "--last-good", *run_options(actions))
    assert done.returncode == 1
    assert "error: no last good rules are kept in " in done.stderr
    assert "door.json:1:3: not valid JSON" in done.stderr
    assert network.nft("list", "ruleset") == ""


def test_another_directorys_rules_open_nothing(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    run_once(network, actions)
    other = Actions(actions.path.with_name("other.d"))
    other.write_text("door.json", "[{]")
    done = network.nfpkd("run", "--last-good", *run_options(other))
    assert done.returncode == 1
    assert "cannot be used: they are those of " in done.stderr


def test_what_root_applied_serves_a_daemon_that_is_not_root(network: Network, actions: Actions) -> None:
    file = actions.write("door.json", rule("door", PORT))
    nobody = pwd.getpwnam("nobody")
    os.chown(file, 0, nobody.pw_gid)
    file.chmod(0o640)
    state = actions.path.with_name("state")
    state.mkdir(mode=0o700)
    os.chown(state, nobody.pw_uid, nobody.pw_gid)
    for folder in actions.path.parents[:3]:
        folder.chmod(0o755)
    # For root, that group is any group.
    assert apply(network, actions, "--no-strict-modes").returncode == 0
    text = file.read_text()
    file.write_text("[{]")
    with running(network, actions, "--last-good", "--user", "nobody") as run:
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        file.write_text(text.replace("2222", "3333"))
        run.wait_for("changed=door")
        run.stop()
    # Nor is root kept out by what the daemon wrote.
    file.write_text("[{]")
    assert "the last good guard, from " in apply(network, actions).stderr
    assert [service.port for service in network.state().gated] == [3333]


def test_commands_wait_for_the_rule_files(network: Network, actions: Actions) -> None:
    """They are root's to say: what the daemon could have written runs nothing."""
    command = {"ext-command": ["/usr/bin/id", "-un"], "ext-user": "daemon", "rate": {"knocks": 9, "per": 1, "burst": 9}}
    file = actions.write("door.json", rule("door", PORT, **command))
    text = file.read_text()
    run_once(network, actions)
    file.write_text("[{]")
    with running(network, actions, "--last-good") as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("command open not run: the rule files have errors rule=door")
        file.write_text(text)
        run.wait_for("rules reloaded; nothing changed")
        knock(network.client, SERVER4, source=STRANGER4)
        run.wait_for("output=daemon")


# nfpkd on a kernel that refuses some rules.
PICKY = """
import sys
from nfpkd import daemon
from nfpkd.cli import main
from nfpkd.errors import KernelError

enforce = daemon.Verifier.enforce

def refuse_some(verifier, rules):
    if {refused} in [rule.name for rule in rules]:
        raise KernelError("the kernel has no room for that")
    enforce(verifier, rules)

daemon.Verifier.enforce = refuse_some
main(sys.argv[1:])
"""


def picky(network: Network, actions: Actions, refused: str) -> Followed:
    program = PICKY.format(refused=repr(refused))
    command = [sys.executable, "-P", "-c", program, "run", "--last-good", *run_options(actions)]
    return Followed(network.server, command)


def test_rules_that_the_kernel_refuses_are_no_reason_to_lock_everybody_out(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    run_once(network, actions)
    actions.write("large.json", rule("large", LATER))
    with picky(network, actions, "large") as run:
        assert run.wait_for(KEPT)[-1].startswith("warning: the kernel has no room for that; ")
        run.wait_for("guarding rules=1")
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
    # What is kept is not better for being tried twice.
    with picky(network, actions, "door") as run:
        assert run.wait() == 3
        assert run.lines[-1] == "nfpkd: the kernel has no room for that"


def test_a_crash_at_a_bad_edit_loses_no_rules(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions, "--last-good") as run:
        actions.write_text("door.json", "[{]")
        run.wait_for("the rules of before stay in force")
        run.stop(signal.SIGKILL)
    with listen_tcp(network.server, PORT), running(network, actions, "--last-good") as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"


def test_what_cannot_be_kept_is_said_and_enforced(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    # What is in the way, so that nothing can be renamed to it.
    (actions.path.with_name("state") / "last-good" / "in").mkdir(parents=True)
    with listen_tcp(network.server, PORT), running(network, actions, "--last-good") as run:
        assert any(line.startswith("error: the last good rules cannot be kept in ") for line in run.lines)
        assert outcome(network.client, SERVER4, PORT) == "silence"
