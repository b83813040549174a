"""The doctor, on hosts that are ill in one way each."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import (
    CLIENT4,
    CLIENT6,
    SERVER4,
    SERVER6,
    Actions,
    Network,
    knock,
    listen_tcp,
    outcome,
    rule,
    run_options,
    running,
)

PORT = 2222
POLICY_DROP = "add chain inet filter input { type filter hook input priority 0; policy drop; }"


def diagnose(network: Network, actions: Actions, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the findings but for those of the machine that the tests run on."""
    done = network.nfpkd("doctor", *run_options(actions), "--format", "json", *options)
    assert done.stderr == ""
    machine = ("no nft_queue", "clock is not synchronised", "inotify", "conntrack is")
    found = json.loads(done.stdout)["findings"]
    return done.returncode, [f for f in found if not any(text in f["what"] for text in machine)]


@pytest.fixture
def door(actions: Actions) -> Path:
    return actions.write("door.json", rule("door", PORT, rate={"knocks": 10, "per": 1, "burst": 10}))


@pytest.mark.guest
@pytest.mark.usefixtures("door")
def test_a_clean_host_has_no_faults(network: Network, actions: Actions) -> None:
    assert diagnose(network, actions) == (0, [])
    with running(network, actions) as run:
        assert diagnose(network, actions) == (0, [])
        # Nothing was touched: it still judges.
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
    text = network.nfpkd("doctor", *run_options(actions))
    assert text.returncode == 0
    assert re.fullmatch(r"\d+ of 15 checks passed", text.stdout.splitlines()[-1])
    assert network.nft("list", "ruleset") == ""


@pytest.mark.parametrize(
    "ruleset",
    [
        ["add table inet filter", POLICY_DROP],
        [
            "add table inet filter",
            POLICY_DROP,
            "add rule inet filter input ct state established,related accept",
            "add rule inet filter input tcp dport { 80, 443 } accept",
        ],
        [
            "add table inet filter",
            "add chain inet filter web",
            "add rule inet filter web reject",
            "add chain inet filter input { type filter hook prerouting priority -10; }",
            "add rule inet filter input meta nfproto ipv4 tcp dport 80 accept",
            "add rule inet filter input meta l4proto tcp jump web",
        ],
    ],
)
@pytest.mark.usefixtures("door")
def test_another_chain_that_drops_is_named_and_its_remedy_works(
    network: Network, actions: Actions, ruleset: list[str]
) -> None:
    for command in ruleset:
        network.nft(command)
    # IPv6 is told its neighbours' addresses by ICMPv6, which the chain drops, too.
    network.nft("insert rule inet filter input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept")
    with listen_tcp(network.server, PORT, 6), running(network, actions) as run:
        code, (found,) = diagnose(network, actions)
        assert code == 3
        assert found["severity"] == "fault"
        assert "table inet filter chain input (hook" in found["what"]
        assert f"{PORT}/tcp" in found["what"]
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVER4, PORT, CLIENT4) != "open"
        knock(network.client, SERVER6, source=CLIENT6)
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVER6, PORT, CLIENT6) != "open"
        for command in re.findall('"([^"]*)"', found["remedy"]):
            network.server.run(*shlex.split(command))
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        assert outcome(network.client, SERVER6, PORT, CLIENT6) == "open"
        assert diagnose(network, actions) == (0, [])


@pytest.mark.usefixtures("door")
def test_what_other_tables_hold_is_followed_through_maps_and_sets(network: Network, actions: Actions) -> None:
    for command in (
        "add table inet filter",
        POLICY_DROP,
        "add set inet filter open { type inet_service; flags interval; elements = { 2000-3000 }; }",
        "add chain inet filter fresh",
        "add rule inet filter fresh tcp dport @open accept",
        "add map inet filter states { type ct_state : verdict; }",
        "add element inet filter states { new : jump fresh }",
        "add rule inet filter input ct state vmap @states",
    ):
        network.nft(command)
    assert diagnose(network, actions) == (0, [])
    network.nft("delete element inet filter open { 2000-3000 }")
    code, (found,) = diagnose(network, actions)
    assert (code, found["severity"]) == (3, "fault")
    network.nft("add chain inet filter raw { type filter hook prerouting priority -300; }")
    network.nft(f"add rule inet filter raw tcp dport {PORT} notrack")
    code, (found, note) = diagnose(network, actions)
    assert "notrack" not in found["what"]
    assert "hides 2222/tcp from conntrack" in note["what"]


@pytest.mark.usefixtures("door")
def test_a_queue_that_another_process_has_is_named(network: Network, actions: Actions) -> None:
    code = (
        "import time\n"
        "from nfpkd.verifier.queue import PacketQueue\n"
        "queue = PacketQueue(5, lambda packet, interface: True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Followed(network.server, [sys.executable, "-P", "-c", code]) as other:
        other.wait_for("ready")
        assert diagnose(network, actions) == (0, [])
        returned, (found,) = diagnose(network, actions, "--queue", "5")
        assert returned == 3
        assert found["what"].startswith("queue 5 is used by another process (process ")
        assert "--queue" in found["remedy"]
        refused = network.nfpkd("run", *run_options(actions), "--queue", "5")
        assert "queue 5 is used by another process" in refused.stderr


def test_a_broken_rule_file_is_told_as_check_tells_it(network: Network, actions: Actions) -> None:
    actions.write_text("broken.json", '[{"name": "a", "port": 22}]')
    code, found = diagnose(network, actions)
    assert code == 3
    checked = network.nfpkd("check", "--actions", str(actions.path))
    assert [f"nfpkd: {finding['what']}" for finding in found] == checked.stderr.splitlines()
    assert all("nfpkd check" in finding["remedy"] for finding in found)


def test_files_that_are_too_open_are_named(network: Network, actions: Actions, door: Path) -> None:
    door.chmod(0o644)
    code, (found,) = diagnose(network, actions)
    assert code == 3
    assert f"{door}: others can read this file with its keys: run " in found["what"]


@pytest.mark.usefixtures("door")
def test_a_guard_without_a_verifier_and_a_table_of_another_make(network: Network, actions: Actions) -> None:
    network.nfpkd("apply", "--actions", str(actions.path))
    code, (found,) = diagnose(network, actions)
    assert code == 3
    assert "no verifier listens on queue 0" in found["what"]
    network.nft("flush", "chain", "inet", "nfpkd", "guard")
    code, (torn, _) = diagnose(network, actions)
    assert code == 3
    assert "not as this version of nfpkd makes it" in torn["what"]
    network.nfpkd("apply", "--actions", str(actions.path))
    assert len(diagnose(network, actions)[1]) == 1


@pytest.mark.usefixtures("door")
def test_a_memory_that_another_nfpkd_has_is_told(network: Network, actions: Actions, tmp_path: Path) -> None:
    with running(network, actions):
        here = network.nfpkd("doctor", "--actions", str(actions.path), "--state-dir", str(tmp_path / "state"))
        assert here.returncode == 0
        with network.client.entered():
            command = [*NFPKD, "doctor", *run_options(actions)]
            there = subprocess.run(command, capture_output=True, text=True, check=False)
        assert there.returncode == 3
        assert "is used by an nfpkd that runs elsewhere" in there.stdout


@pytest.mark.usefixtures("door")
def test_without_the_privilege_what_can_be_looked_at_is(network: Network, actions: Actions) -> None:
    drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]
    with network.server.entered():
        command = [*drop, *NFPKD, "doctor", *run_options(actions)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert re.match("fault +CAP_NET_ADMIN is missing", done.stdout)
    assert "could not be made" in done.stdout.splitlines()[-1]
