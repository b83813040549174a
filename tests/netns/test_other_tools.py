"""`nfpkd run` among tools that destroy its table, by accident or on purpose."""

from __future__ import annotations

import contextlib
import time

import pytest

from nfpkd.errors import KernelError
from nfpkd.firewall import nft
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Transaction
from nfpkd.rules.model import Protocol
from support.network import (
    CLIENT4,
    CLIENT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    STRANGER6,
    Actions,
    Network,
    eventually,
    knock,
    listen_tcp,
    outcome,
    rule,
    running,
)

PORT = 2222

DAMAGE = {
    "flush ruleset": ["flush ruleset"],
    "delete table": ["delete table inet nfpkd"],
    "flush a chain": ["flush chain inet nfpkd gate"],
    "flush a set": ["flush set inet nfpkd gated"],
    "rules of the guard": ["flush chain inet nfpkd guard"],
    "the grants' set": ["flush chain inet nfpkd gate; flush chain inet nfpkd waiting; delete set inet nfpkd grants4"],
    "an open door": ['insert rule inet nfpkd gate accept comment "let me in"'],
    "a flag with which it guards nothing": ["add table inet nfpkd { flags dormant; }"],
    "several transactions": ["flush chain inet nfpkd guard", "delete chain inet nfpkd guard", "flush ruleset"],
}


def listed(network: Network) -> str:
    """Return what the table holds, but for what passes by itself."""
    state = network.state()
    return repr((state.intact, state.gated, state.chains, {grant[:4] for grant in state.grants}))


def is_whole(network: Network, before: str) -> bool:
    return "nfpkd" in network.nft("list", "tables") and listed(network) == before


@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE)
def test_what_another_tool_destroys_is_back_at_once_with_the_grants(
    network: Network, actions: Actions, commands: list[str]
) -> None:
    actions.write("door.json", rule("door", PORT, window=600))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        [granted] = network.state().grants
        before = listed(network)
        for command in commands:
            network.nft(command)
        told = run.wait_for("has been restored")[-1]
        assert eventually(lambda: is_whole(network, before))
        assert "by=nft" in told
        [kept] = network.state().grants
        assert (kept.timeout, kept.rule) == (granted.timeout, granted.rule)
        assert 0 < kept.expires <= granted.expires
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        assert outcome(network.client, SERVER4, PORT, STRANGER4) == "silence"


@pytest.mark.guest
def test_it_is_said_what_was_seen(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run:
        network.nft("delete", "table", "inet", "nfpkd")
        assert "seen=delete table by=nft pid=" in run.wait_for("has been restored")[-1]
        network.nft("flush", "set", "inet", "nfpkd", "gated")
        assert "seen=delete element gated by=nft pid=" in run.wait_for("has been restored")[-1]


def test_the_tables_of_others_are_left_alone(network: Network, actions: Actions) -> None:
    network.nft("add table inet mine; add chain inet mine door { type filter hook input priority 0; }")
    before = network.nft("list", "table", "inet", "mine")
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        network.nft("delete", "table", "inet", "nfpkd")
        run.wait_for("has been restored")
        assert network.nft("list", "table", "inet", "mine") == before
        # A firewall's restart: its own rules come back beside ours.
        network.nft("flush ruleset; add table inet mine; add chain inet mine fresh")
        run.wait_for("has been restored")
        assert "chain fresh" in network.nft("list", "table", "inet", "mine")
        assert outcome(network.client, SERVER4, PORT) == "silence"


def test_every_kind_of_grant_comes_back_but_those_for_one_connection(network: Network, actions: Actions) -> None:
    actions.write(
        "doors.json",
        rule("wide", PORT, tag="WIDE", grant={"ipv6": 127}),
        rule("sliding", 3333, tag="SLID", extend=True),
        rule("once", 4444, tag="ONCE", once=True),
    )
    with listen_tcp(network.server, PORT, 6), running(network, actions) as run:
        for tag in ("WIDE", "SLID", "ONCE"):
            knock(network.client, SERVER6, tag=tag, source=CLIENT6)
            run.wait_for("knock accepted")
        network.nft("flush", "ruleset")
        run.wait_for("has been restored")
        assert {grant.rule for grant in network.state().grants} == {"wide", "sliding"}
        # Within the same /127.
        assert outcome(network.client, SERVER6, PORT, CLIENT6) == "open"
        assert outcome(network.client, SERVER6, PORT, STRANGER6) == "open"


def test_what_nfpkd_itself_does_elsewhere_is_not_undone(network: Network, actions: Actions) -> None:
    file = actions.write("door.json", rule("door", PORT), rule("more", 3333, tag="MORE"))
    options = ["--actions", str(file.parent)]
    with running(network, actions, "-v") as run:
        for tag in ("PKD0", "MORE"):
            knock(network.client, SERVER4, tag=tag, source=CLIENT4)
            run.wait_for("knock accepted")
        assert network.nfpkd("revoke", "door").returncode == 0
        run.wait_for("looking at the table")
        assert network.nfpkd("grant", "more", STRANGER4, "--for", "500", *options).returncode == 0
        run.wait_for("looking at the table")
        assert network.nfpkd("apply", *options).returncode == 0
        assert {(grant.rule, grant.source) for grant in network.state().grants} == {
            ("more", CLIENT4), ("more", STRANGER4)
        }  # fmt: skip
        # Now they are known, and what was taken away is forgotten.
        network.nft("delete", "table", "inet", "nfpkd")
        run.wait_for("has been restored")
        assert {(grant.rule, grant.source, grant.timeout) for grant in network.state().grants} == {
            ("more", CLIENT4, 60), ("more", STRANGER4, 500)
        }  # fmt: skip
        run.stop()
    assert len([line for line in run.lines if "has been restored" in line]) == 1


def test_what_was_revoked_just_before_the_table_went_does_not_come_back(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        with network.server.entered():
            # In one breath: nobody looked at the table in between.
            network.firewall().revoke("door")
            network.firewall().teardown()
        run.wait_for("has been restored")
        assert network.state().grants == ()
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "silence"


def test_a_grant_that_runs_out_is_no_reason_to_look(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT, window=1))
    with running(network, actions, "-v") as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        assert eventually(lambda: network.state().grants == ())
        # The first look that there is a reason for.
        network.nft("add", "element", "inet", "nfpkd", "grants4", "{ 192.0.2.9 . tcp . 2222 timeout 1h }")
        lines = run.wait_for("looking at the table")
    assert len([line for line in lines if "looking at the table" in line]) == 1


def test_however_often_it_is_changed_it_is_looked_at_ten_times_a_second(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    key = [nft.concat(CLIENT4, Protocol.TCP, PORT)]
    changes = [
        Transaction((add_or_delete(TABLE, "grants4", key),))
        for add_or_delete in (nft.add_elements, nft.delete_elements)
    ]
    with running(network, actions, "-v") as run:
        start = time.monotonic()
        with network.server.entered():
            kernel = NftablesKernel()
            while time.monotonic() - start < 1.0:
                for change in changes:
                    # What no rule keeps, nfpkd may have deleted first.
                    with contextlib.suppress(KernelError):
                        kernel.apply(change)
        network.nft("delete", "table", "inet", "nfpkd")
        lines = run.wait_for("has been restored")
        took = time.monotonic() - start
    looks = [line for line in lines if "looking at the table" in line]
    assert 1 <= len(looks) <= 10 * took + 1
