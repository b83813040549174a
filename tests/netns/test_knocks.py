"""Knocks on a running nfpkd."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from nfpkd.demo.namespaces import Namespace, connect
from nfpkd.verifier.listeners import find_queue_listeners
from support.network import (
    CLIENT4,
    CLIENTS,
    KEY,
    SERVER4,
    SERVER6,
    SERVERS,
    STRANGERS,
    Actions,
    Network,
    eventually,
    knock,
    listen_tcp,
    make_knock,
    open_udp,
    outcome,
    receives,
    rule,
    running,
    send_udp,
    try_connect,
)

PORT = 2222
INNER = "198.51.100.2"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.guest
def test_a_knock_opens_the_port_for_its_source_alone(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT, family), running(network, actions) as run:
        assert outcome(network.client, SERVERS[family], PORT) == "silence"
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVERS[family], PORT, CLIENTS[family]) == "open"
        assert outcome(network.client, SERVERS[family], PORT, STRANGERS[family]) == "silence"


@FAMILIES
@pytest.mark.guest
def test_the_first_syn_right_behind_a_knock_gets_through(network: Network, actions: Actions, family: int) -> None:
    """A lost first SYN would come again after a second, which try_connect does not wait for."""
    doors = 40
    actions.write("doors.json", *(rule(f"door{i}", PORT + i, tag=f"D{i:03}") for i in range(doors)))
    with running(network, actions, "--source-limit", "1000"):
        for i in range(doors):
            with listen_tcp(network.server, PORT + i, family):
                knock(network.client, SERVERS[family], tag=f"D{i:03}", source=CLIENTS[family])
                assert outcome(network.client, SERVERS[family], PORT + i, CLIENTS[family]) == "open"


def test_the_first_datagram_right_behind_a_knock_gets_through(network: Network, actions: Actions) -> None:
    actions.write("vpn.json", rule("vpn", PORT, protocol="udp"))
    with open_udp(network.server, PORT) as server, running(network, actions):
        knock(network.client, SERVER4, source=CLIENT4)
        send_udp(network.client, b"hello", SERVER4, PORT, CLIENT4)
        assert receives(server, 5) == b"hello"


def test_a_knock_is_consumed_and_what_only_looks_like_one_goes_on(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with open_udp(network.server, 4711) as server, running(network, actions, "-v") as run:
        forged = make_knock(4711, "another key")
        send_udp(network.client, forged, SERVER4, 4711)
        assert receives(server, 5) == forged
        run.wait_for("digest mismatch")
        genuine = knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        send_udp(network.client, genuine, SERVER4, 4711)
        run.wait_for("knock refused")
        assert receives(server) is None


def test_a_port_that_is_translated_on_the_way_is_said(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    network.client.run("nft", "add", "table", "ip", "nat")
    network.client.run("nft", "add", "chain", "ip", "nat", "output", "{ type nat hook output priority -100; }")
    network.client.run("nft", "add", "rule", "ip", "nat", "output", "udp", "dport", "4711", "dnat", "to", ":4712")
    with running(network, actions, "-v") as run:
        knock(network.client, SERVER4, port=4711)
        assert "sent to port 4711 and arrived at port 4712" in run.wait_for("knock refused")[-1]


def test_refusals_say_why(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT), rule("slow", 3333, tag="SLOW"))
    with running(network, actions) as run:
        first = knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        send_udp(network.client, first, SERVER4, 4711)
        run.wait_for("seen before")
        second = knock(network.client, SERVER4)
        run.wait_for("rate-limited")
        # What was refused for its rate is spent, too.
        send_udp(network.client, second, SERVER4, 4711)
        run.wait_for("seen before")
        send_udp(network.client, make_knock(4711, KEY, "SLOW", at=time.time() - 60), SERVER4, 4711)
        run.wait_for("the client's clock is off by -6")


def test_several_keys_share_a_tag_and_several_rules_a_port(network: Network, actions: Actions) -> None:
    actions.write("doors.json", rule("one", PORT), rule("two", PORT, key="another key"), rule("three", 3333))
    with listen_tcp(network.server, PORT), listen_tcp(network.server, 3333), running(network, actions) as run:
        knock(network.client, SERVER4, "another key", source=CLIENT4)
        assert "rule=two" in run.wait_for("knock accepted")[-1]
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        assert outcome(network.client, SERVER4, 3333, CLIENT4) == "silence"
        # The key of "one" is the key of "three".
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("rule=one")
        run.wait_for("rule=three")
        assert outcome(network.client, SERVER4, 3333, CLIENT4) == "open"


@pytest.mark.guest
def test_whatever_is_in_the_queue_gets_its_verdict(network: Network, actions: Actions) -> None:
    """Garbage of the right length and tag, and whatever comes right behind it, goes on; then a knock works."""
    actions.write("door.json", rule("door", PORT), rule("udp", PORT, protocol="udp", tag="UDP0"))
    with (
        listen_tcp(network.server, PORT),
        open_udp(network.server, 4711) as server,
        open_udp(network.client, 0, 4, CLIENT4) as client,
        running(network, actions, "--source-limit", "1000") as run,
    ):
        garbage = [tag + secrets.token_bytes(52) for tag in (b"PKD0", b"UDP0") for _ in range(20)]
        for payload in garbage:
            client.sendto(payload, (SERVER4, 4711))
            client.sendto(secrets.token_bytes(secrets.randbelow(1400)), (SERVER4, PORT))
        # Held packets of every length: raw datagrams to a gated port, fragmented where they are long.
        for length in (0, 1, 7, 8, 55, 56, 57, 1472, 1473, 2000):
            client.sendto(garbage[0], (SERVER4, 4711))
            client.sendto(bytes(length), (SERVER4, PORT))
        assert [receives(server, 5) for _ in range(50)] == garbage + garbage[:1] * 10
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        with network.server.entered():
            assert find_queue_listeners()[0].waiting == 0


@pytest.fixture
def inner(network: Network) -> Iterator[Namespace]:
    """A host behind the server, which forwards to it."""
    with Namespace("inner") as inner:
        connect(network.server, ["198.51.100.1/24"], inner, [f"{INNER}/24"])
        network.server.run("sysctl", "-q", "net.ipv4.ip_forward=1")
        network.client.run("ip", "route", "add", "198.51.100.0/24", "via", SERVER4)
        inner.run("ip", "route", "add", "default", "via", "198.51.100.1")
        yield inner


def test_a_knock_for_another_host_passes_by(network: Network, actions: Actions, inner: Namespace) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions), open_udp(inner, 4711) as server:
        sent = knock(network.client, INNER)
        assert receives(server, 5) == sent


def test_what_is_for_another_host_does_not_wait_behind_a_knock(
    network: Network, actions: Actions, inner: Namespace
) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions), listen_tcp(inner, PORT):
        knock(network.client, SERVER4, source=CLIENT4)
        assert outcome(network.client, INNER, PORT, CLIENT4) == "open"
        assert network.state().counters["held"].packets == 0


@FAMILIES
def test_knocks_behind_other_headers_are_heard(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run, open_udp(network.client, 0, family) as sock:
        if family == 6:
            padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, padding)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padding)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes((1, 1, 1, 1)))
        sock.sendto(make_knock(4711), (SERVERS[family], 4711))
        run.wait_for("knock accepted")


def test_a_stopped_verifier_opens_nothing_and_shuts_nobody_out(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), running(network, actions, "--on-exit", "keep") as run:
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        run.stop()
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        assert outcome(network.client, SERVER4, PORT, STRANGERS[4]) == "silence"
        # Nobody judges it, so it is a datagram like any other.
        with open_udp(network.server, 4711) as server:
            sent = knock(network.client, SERVER4, source=CLIENT4)
            assert receives(server, 5) == sent


def test_the_client_command_knocks(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT), rule("six", 3333, tag="SIX"))
    with running(network, actions) as run:
        done = network.nfpkd("knock", "--host", "::1", "--tag", "SIX", "--key", KEY)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("knock sent to ::1 port ")
        assert "rule=six source=::1" in run.wait_for("knock accepted")[-1]
        done = network.nfpkd("knock", "127.0.0.1", "--port", "9", "--key", KEY)
        assert done.stdout == "knock sent to 127.0.0.1 port 9/udp with tag PKD0\n"
        assert "rule=door source=127.0.0.1" in run.wait_for("knock accepted")[-1]


def test_logs_for_machines_hold_no_key(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    command = ["--log-format", "json", "-v"]
    with running(network, actions, *command) as run:
        knock(network.client, SERVER6)
        line = json.loads(run.wait_for("knock_accepted")[-1])
        run.stop()
    assert line["event"] == "knock_accepted"
    assert line["rule"] == "door"
    assert line["level"] == "info"
    assert KEY not in "\n".join(run.lines)


def test_a_grant_lost_to_another_tool_is_repaired(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT), rule("other", 3333, tag="OTHE"))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        with open_udp(network.client, 0, 4, CLIENT4) as sock:
            # Queued while the verifier sleeps, judged when the table is gone.
            os.kill(run.process.pid, signal.SIGSTOP)
            sock.sendto(make_knock(4711), (SERVER4, 4711))
            with network.server.entered():
                assert eventually(lambda: find_queue_listeners()[0].waiting == 1)
            network.nft("flush", "ruleset")
            os.kill(run.process.pid, signal.SIGCONT)
        run.wait_for("restored")
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
        connection = try_connect(network.client, SERVER4, PORT, STRANGERS[4])
        assert connection == "silence"
