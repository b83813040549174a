"""The other commands, on a real kernel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import CLIENT4, SERVER4, Actions, Network, knock, listen_tcp, outcome, rule, run_options, running
from support.terminal import run_on_terminal

PORT = 2222


@pytest.fixture
def apply(actions: Actions) -> list[str]:
    actions.write("door.json", rule("door", PORT, description="the way in"))
    return ["apply", "--actions", str(actions.path)]


@pytest.mark.guest
def test_apply_guards_and_says_that_nobody_listens(network: Network, apply: list[str]) -> None:
    with listen_tcp(network.server, PORT):
        done = network.nfpkd(*apply)
        assert done.returncode == 0
        assert done.stdout.startswith("+  2222/tcp  drop  door: the way in\nguarding: 1 rule from ")
        assert "no verifier listens on queue 0" in done.stderr
        assert outcome(network.client, SERVER4, PORT) == "silence"


def test_apply_says_what_it_changes(network: Network, actions: Actions, apply: list[str]) -> None:
    network.nfpkd(*apply)
    network.nfpkd("grant", "door", CLIENT4, "--actions", str(actions.path))
    actions.write("door.json", rule("door", "3333-3334", reject="reset"))
    done = network.nfpkd(*apply)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["-  2222/tcp       drop   door: the way in", "+  3333-3334/tcp  reset  door"]
    assert lines[2].startswith(f"- let in: {CLIENT4}  2222/tcp  door  ")


def test_status_can_be_watched(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions), Followed(network.server, [*NFPKD, "status", "--watch"]) as watching:
        watching.wait_for("0  packets were refused at a gate")
        with listen_tcp(network.server, PORT):
            outcome(network.client, SERVER4, PORT)
        watching.wait_for("1  packets were refused at a gate")


def test_apply_twice_changes_nothing_and_keeps_grants(network: Network, actions: Actions, apply: list[str]) -> None:
    with running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        done = network.nfpkd(*apply)
        assert done.stdout == "nothing to change: 1 rule already in force\n"
        assert done.stderr == ""
        assert [grant.source for grant in network.state().grants] == [CLIENT4]


def test_a_dry_run_prints_what_nft_takes_and_changes_nothing(network: Network, apply: list[str]) -> None:
    done = network.nfpkd(*apply, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert network.nft("list", "ruleset") == ""
    assert json.loads(done.stdout)["nftables"][0] == {"add": {"table": {"family": "inet", "name": "nfpkd"}}}
    assert "checked by the kernel" in done.stderr


@pytest.mark.guest
def test_status_tells_what_the_kernel_holds(network: Network, actions: Actions, apply: list[str]) -> None:
    assert "guards nothing" in network.nfpkd("status").stdout
    assert json.loads(network.nfpkd("status", "--format", "json").stdout) is None
    network.nfpkd(*apply)
    assert "not running" in network.nfpkd("status").stdout
    with running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        text = network.nfpkd("status").stdout
        assert "2222/tcp  drop  door: the way in" in text
        assert f"{CLIENT4}  2222/tcp  door" in text
        told = json.loads(network.nfpkd("status", "--format", "json").stdout)
        assert told["queue_target"] in ("nft_queue", "nft_compat")
        assert told["verifier"]["waiting"] == 0
        assert told["counters"]["knocks"]["packets"] == 1
        (grant,) = told["grants"]
        assert (grant["source"], grant["port"], grant["rule"]) == (CLIENT4, PORT, "door")
        assert 0 < grant["expires"] <= 60
        metrics = network.nfpkd("status", "--format", "prometheus").stdout.splitlines()
        assert {"nfpkd_up 1", "nfpkd_knock_packets_total 1", 'nfpkd_granted_sources{rule="door"} 1'} <= set(metrics)


def test_a_terminal_is_coloured(network: Network, apply: list[str]) -> None:
    with network.server.entered():
        applied = run_on_terminal([*NFPKD, *apply])
        shown = run_on_terminal([*NFPKD, "status"])
        plain = run_on_terminal([*NFPKD, "status"], {"NO_COLOR": "1"})
    assert "\x1b[32m+  2222/tcp  drop  door: the way in\x1b[0m\n" in applied.text
    assert shown.text.startswith("\x1b[31mverifier: not running")
    assert "\n\x1b[1mguarded (1)\x1b[0m\n" in shown.text
    assert "\nguarded (1)\n" in plain.text
    assert "\x1b" not in plain.text


def test_teardown_is_harmless_when_there_is_nothing(network: Network, apply: list[str]) -> None:
    assert network.nfpkd("teardown").stdout == "nothing to remove\n"
    network.nfpkd(*apply)
    assert network.nfpkd("teardown").stdout == "removed: the ports are no longer guarded\n"
    assert network.nft("list", "ruleset") == ""


@pytest.mark.usefixtures("apply")
def test_a_queue_in_use_is_named(network: Network, actions: Actions) -> None:
    with running(network, actions):
        # As another program would hold it: the instance lock is not asked first.
        code = (
            "from nfpkd.verifier.queue import PacketQueue\n"
            "from nfpkd.errors import KernelError\n"
            "try: PacketQueue(0, lambda packet, interface: True)\n"
            "except KernelError as error: print(error)\n"
        )
        said = network.server.run(sys.executable, "-P", "-c", code)
    assert said.startswith("queue 0 is used by another process")


@pytest.mark.parametrize("command", ["status", "teardown", "apply", "run"])
@pytest.mark.usefixtures("apply")
def test_without_the_privilege_the_remedy_is_named(network: Network, actions: Actions, command: str) -> None:
    words = [sys.executable, "-P", "-m", "nfpkd", command]
    if command == "apply":
        words += ["--actions", str(actions.path)]
    if command == "run":
        words += run_options(actions)
    drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]
    with network.server.entered():
        done = subprocess.run([*drop, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "nfpkd needs CAP_NET_ADMIN: run it with sudo" in done.stderr


def test_a_table_of_another_make_is_replaced_and_its_grants_live_on(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        # Or it would put the chain back at once.
        run.stop(signal.SIGKILL)
        network.nft("flush", "chain", "inet", "nfpkd", "guard")
        assert "will make it anew" in network.nfpkd("status").stdout
        assert "guarding: " in network.nfpkd("apply", "--actions", str(actions.path)).stdout
        assert outcome(network.client, SERVER4, PORT, "192.0.2.3") == "silence"
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"


@pytest.mark.guest
def test_an_admin_lets_somebody_in_and_takes_it_back(network: Network, actions: Actions, apply: list[str]) -> None:
    where = ["--actions", str(actions.path)]
    early = network.nfpkd("grant", "door", CLIENT4, *where)
    assert early.returncode == 3
    assert "nfpkd guards nothing here" in early.stderr
    network.nfpkd(*apply)
    with listen_tcp(network.server, PORT):
        done = network.nfpkd("grant", "door", CLIENT4, "--for", "600", *where)
        assert done.stdout == f"{CLIENT4} is let in to 2222/tcp for 600 s\n"
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        (grant,) = network.state().grants
        assert (grant.rule, grant.timeout) == ("door", 600)
        assert network.nfpkd("revoke", "door", "192.0.2.9").stdout == "nothing to take back\n"
        assert network.nfpkd("revoke", "door", CLIENT4).stdout == f"taken back from {CLIENT4}\n"
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "silence"
        network.nfpkd("grant", "door", "2001:db8::7", *where)
        assert network.nfpkd("revoke", "--all").stdout == "taken back from 2001:db8::7\n"
        assert network.state().grants == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grant", "dor", CLIENT4], "there is no rule 'dor'; did you mean 'door'?"),
        (["grant", "door", "nowhere"], "'nowhere' is not an IP address"),
        (["revoke"], "Name a RULE, or give --all"),
        (["revoke", "door", "--all"], "Name a RULE, or give --all"),
    ],
)
@pytest.mark.usefixtures("apply")
def test_who_is_to_be_let_in_must_make_sense(
    network: Network, actions: Actions, arguments: list[str], said: str
) -> None:
    options = ["--actions", str(actions.path)] if arguments[0] == "grant" else []
    done = network.nfpkd(*arguments, *options)
    assert done.returncode == 2
    assert said in done.stderr
