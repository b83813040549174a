"""Every word of the rule language, with real packets."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from nfpkd.demo.namespaces import Namespace, connect
from nfpkd.rules.model import Protocol
from support.network import (
    CLIENT4,
    CLIENT6,
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
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
# One of the two is enough in the guest, which is slow.
FAMILIES_IN_GUEST = pytest.mark.parametrize(
    "family", [4, pytest.param(6, marks=pytest.mark.guest)], ids=["ipv4", "ipv6"]
)


@FAMILIES_IN_GUEST
def test_ranges_and_lists_of_ports(network: Network, actions: Actions, family: int) -> None:
    actions.write("doors.json", rule("doors", [2222, "3000-3002"]))
    with running(network, actions) as run:
        for port in (2222, 3000, 3002):
            assert outcome(network.client, SERVERS[family], port) == "silence"
        assert outcome(network.client, SERVERS[family], 3003) == "reset"
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("opens=2222,3000-3002/tcp")
        for port in (2222, 3000, 3002):
            with listen_tcp(network.server, port, family):
                assert outcome(network.client, SERVERS[family], port, CLIENTS[family]) == "open"


def test_mosh(network: Network, actions: Actions) -> None:
    actions.write("mosh.json", rule("mosh", "60000-61000", protocol="udp"))
    with open_udp(network.server, 60500) as server, running(network, actions) as run:
        send_udp(network.client, b"before", SERVER4, 60500)
        knock(network.client, SERVER4, source=CLIENT4)
        run.wait_for("knock accepted")
        send_udp(network.client, b"after", SERVER4, 60500, CLIENT4)
        assert receives(server, 5) == b"after"


@FAMILIES
@pytest.mark.parametrize("protocol", [Protocol.SCTP, Protocol.DCCP, Protocol.UDPLITE])
def test_lists_of_protocols(network: Network, actions: Actions, family: int, protocol: Protocol) -> None:
    actions.write("doors.json", rule("doors", PORT, protocol=["tcp", protocol.label]))
    with listen_tcp(network.server, PORT, family), running(network, actions) as run:
        assert outcome(network.client, SERVERS[family], PORT) == "silence"
        refused = network.state().counters["refused"].packets
        send_raw(network, protocol, family)
        assert eventually(lambda: network.state().counters["refused"].packets == refused + 1)
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        send_raw(network, protocol, family)
        assert eventually(lambda: network.state().counters["admitted"].packets == 1)


def send_raw(network: Network, protocol: int, family: int) -> None:
    """Send ports and zeros: enough for a gate, which looks at nothing else."""
    with network.client.entered():
        raw = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    with raw:
        raw.bind((CLIENTS[family], 0))
        raw.sendto(b"\x13\x88" + PORT.to_bytes(2, "big") + bytes(28), (SERVERS[family], 0))


@FAMILIES_IN_GUEST
def test_a_knock_is_taken_at_its_port_alone(network: Network, actions: Actions, family: int) -> None:
    limited = rule("limited", PORT, **{"knock-port": [500, "4000-4002", 4001, "4002-4003"]})
    actions.write("doors.json", limited, rule("free", 3333, tag="FREE"))
    with open_udp(network.server, 4711, family) as server, running(network, actions) as run:
        sent = knock(network.client, SERVERS[family], port=4711)
        assert receives(server, 5) == sent
        assert network.state().counters["knocks"].packets == 0
        knock(network.client, SERVERS[family], port=4001)
        assert "rule=limited" in run.wait_for("knock accepted")[-1]
        knock(network.client, SERVERS[family], tag="FREE", port=4711)
        assert "rule=free" in run.wait_for("knock accepted")[-1]


def test_a_rate_is_a_rules_own(network: Network, actions: Actions) -> None:
    rate = {"knocks": 1, "per": 3600, "burst": 3}
    actions.write("doors.json", rule("slow", PORT, rate=rate))
    with running(network, actions) as run:
        for _ in range(3):
            knock(network.client, SERVER4)
            run.wait_for("knock accepted")
        knock(network.client, SERVER4)
        run.wait_for("rate-limited")


@FAMILIES_IN_GUEST
def test_one_flooding_source_does_not_crowd_out_another(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT))
    garbage = b"PKD0" + bytes(52)
    # Not a neighbour of the flooding client's: IPv6 sources are limited by /64.
    with running(network, actions, "--source-limit", "5") as run:
        with open_udp(network.client, 0, family, STRANGERS[family]) as sock:
            for _ in range(1000):
                sock.sendto(garbage, (SERVERS[family], 4711))
        assert eventually(lambda: network.state().counters["limited"].packets > 900)
        assert network.state().counters["knocks"].packets < 100
        other = 6 if family == 4 else 4
        knock(network.client, SERVERS[other], source=CLIENTS[other])
        run.wait_for("knock accepted")


def test_a_knock_does_not_bring_a_flood_of_first_packets_along(network: Network, actions: Actions) -> None:
    """What waits behind a knock waits in the verifier's queue, where it must not crowd out others."""
    actions.write("door.json", rule("door", PORT, protocol="udp"))
    with running(network, actions), open_udp(network.client, 0, 4, STRANGERS[4]) as sock:
        sock.sendto(b"PKD0" + bytes(52), (SERVERS[4], 4711))
        for _ in range(1000):
            # Each from another port, or it would be no first packet.
            send_udp(network.client, b"hello", SERVERS[4], PORT, STRANGERS[4])
        counters = network.state().counters
        assert counters["knocks"].packets == 1
        assert counters["limited"].packets > 500
        assert counters["limited"].packets + counters["held"].packets > 900


@FAMILIES
@pytest.mark.parametrize(("allowed", "accepted"), [(True, True), (False, False)])
def test_who_may_knock(network: Network, actions: Actions, family: int, allowed: bool, accepted: bool) -> None:
    sources = [f"{CLIENTS[family]}", "198.51.100.0/24"] if allowed else ["198.51.100.0/24", "2001:db8:9::/48"]
    actions.write("door.json", rule("door", PORT, **{"from": sources}))
    with running(network, actions) as run:
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        lines = run.wait_for("knock accepted" if accepted else 'its source is not in the rule\'s "from"')
        assert lines


@FAMILIES_IN_GUEST
def test_a_grant_can_be_for_the_neighbours_too(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT, grant={"ipv4": 24, "ipv6": 64}))
    with listen_tcp(network.server, PORT, family), running(network, actions) as run:
        assert outcome(network.client, SERVERS[family], PORT, STRANGERS[family]) == "silence"
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        assert outcome(network.client, SERVERS[family], PORT, STRANGERS[family]) == "open"
        (grant,) = network.state().grants
        assert grant.who == {4: "192.0.2.0/24", 6: "2001:db8::/64"}[family]


@FAMILIES_IN_GUEST
def test_traffic_renews_a_sliding_window(network: Network, actions: Actions, family: int) -> None:
    actions.write("vpn.json", rule("vpn", PORT, protocol="udp", window=2, extend=True))
    with open_udp(network.server, PORT, family) as server, running(network, actions) as run:
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        opened = time.monotonic()

        def talks() -> bool:
            send_udp(network.client, b"hello", SERVERS[family], PORT, CLIENTS[family])
            return receives(server, 0.2) == b"hello"

        # Twice the window, of which the knock alone gives one.
        assert eventually(lambda: not talks() or time.monotonic() > opened + 4)
        assert talks()
        assert eventually(lambda: not network.state().grants)
        assert not talks()


@FAMILIES_IN_GUEST
def test_a_grant_for_one_connection_is_used_up_by_it(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT, once=True))
    with listen_tcp(network.server, PORT, family) as listener, running(network, actions) as run:
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        connection = try_connect(network.client, SERVERS[family], PORT, CLIENTS[family])
        assert isinstance(connection, socket.socket)
        with connection, listener.accept()[0] as accepted:
            assert outcome(network.client, SERVERS[family], PORT, CLIENTS[family]) == "silence"
            assert network.state().grants == ()
            connection.sendall(b"hello")
            assert accepted.recv(64) == b"hello"


@FAMILIES
def test_a_lost_answer_does_not_use_a_grant_up(network: Network, actions: Actions, family: int) -> None:
    """The client's SYN comes again when the server's answer was lost; it is let in again."""
    actions.write("door.json", rule("door", PORT, once=True))
    lose = "{ type filter hook output priority 0; }"
    with listen_tcp(network.server, PORT, family), running(network, actions) as run:
        network.nft("add", "table", "inet", "lossy")
        network.nft("add", "chain", "inet", "lossy", "output", lose)
        network.nft("add", "rule", "inet", "lossy", "output", "tcp", "sport", str(PORT), "drop")
        knock(network.client, SERVERS[family], source=CLIENTS[family])
        run.wait_for("knock accepted")
        with network.client.entered():
            sock = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
        with sock:
            sock.bind((CLIENTS[family], 0))
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((SERVERS[family], PORT))
            assert eventually(lambda: not network.state().grants)
            network.nft("delete", "table", "inet", "lossy")
            sock.settimeout(10)
            assert eventually(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) == 1)


def test_keys_have_their_times_and_overlap(network: Network, actions: Actions) -> None:
    keys: list[Any] = [
        {"key": "old", "not-after": "2020-01-01T00:00:00Z"},
        {"key": "next", "not-before": "2120-01-01T00:00:00+01:00"},
        {"key": "now", "not-before": "2020-01-01T00:00:00Z", "not-after": "2120-01-01T00:00:00Z"},
        "also",
    ]
    door = {"name": "door", "port": PORT, "keys": keys, "rate": {"burst": 2}}
    actions.write("door.json", door)
    with running(network, actions) as run:
        knock(network.client, SERVER4, "old")
        run.wait_for("its key is no longer good")
        knock(network.client, SERVER4, "next")
        run.wait_for("its key is not good yet")
        for key in ("now", "also"):
            knock(network.client, SERVER4, key)
            run.wait_for("knock accepted")


@FAMILIES_IN_GUEST
def test_a_rule_for_one_interface(network: Network, actions: Actions, family: int) -> None:
    inside = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:1::1", "2001:db8:1::2")}
    prefix = {4: 24, 6: 64}[family]
    server_address, inner_address = inside[family]
    with Namespace("inner") as inner:
        connect(network.server, [f"{server_address}/{prefix}"], inner, [f"{inner_address}/{prefix}"])
        outside = find_device(network, SERVER4)
        actions.write("door.json", rule("door", PORT, interfaces=[outside]))
        with listen_tcp(network.server, PORT, family), running(network, actions) as run:
            assert outcome(network.client, SERVERS[family], PORT) == "silence"
            assert outcome(inner, server_address, PORT) == "open"
            knock(inner, server_address)
            knock(network.client, SERVERS[family], source=CLIENTS[family])
            # One right behind the other, as everywhere.
            assert outcome(network.client, SERVERS[family], PORT, CLIENTS[family]) == "open"
            (line,) = [line for line in run.wait_for("knock accepted") if "knock" in line]
            assert f"source={CLIENTS[family]}" in line
            (grant,) = network.state().grants
            assert grant.interface == outside
            # An edit that takes the interface away takes the grant along, and the guard.
            actions.write("door.json", rule("door", PORT, interfaces=["lo"]))
            run.wait_for("changed=door")
            assert network.state().grants == ()
            assert outcome(network.client, SERVERS[family], PORT) == "open"
            assert outcome(network.server, "::1" if family == 6 else "127.0.0.1", PORT) == "silence"


def find_device(network: Network, address: str) -> str:
    for link in json.loads(network.server.run("ip", "-json", "address")):
        if any(found.get("local") == address for found in link["addr_info"]):
            return str(link["ifname"])
    raise LookupError(address)


@FAMILIES_IN_GUEST
def test_a_trusted_interface_is_let_in(network: Network, actions: Actions, family: int) -> None:
    actions.write("door.json", rule("door", PORT))
    local = "::1" if family == 6 else "127.0.0.1"
    with listen_tcp(network.server, PORT, family):
        with running(network, actions, "--trust-interface", "lo"):
            assert outcome(network.server, local, PORT) == "open"
            assert outcome(network.client, SERVERS[family], PORT) == "silence"
        with running(network, actions):
            assert outcome(network.server, local, PORT) == "silence"


@FAMILIES
def test_rules_that_share_a_port_keep_their_own_windows(network: Network, actions: Actions, family: int) -> None:
    actions.write("doors.json", rule("long", PORT, tag="LONG", window=600), rule("short", PORT, tag="SHOR", window=1))
    with listen_tcp(network.server, PORT, family), running(network, actions) as run:
        knock(network.client, SERVERS[family], tag="LONG", source=CLIENTS[family])
        knock(network.client, SERVERS[family], tag="SHOR", source=CLIENTS[family])
        run.wait_for("rule=short")
        (grant,) = network.state().grants
        assert (grant.rule, grant.timeout) == ("long", 600)


def test_one_knock_opens_every_rule_of_its_key(network: Network, actions: Actions) -> None:
    actions.write("doors.json", rule("one", PORT), rule("two", 3333, window=7), rule("three", 4444, key="other"))
    with running(network, actions) as run:
        knock(network.client, SERVER6, source=CLIENT6)
        run.wait_for("rule=two")
        assert {(g.rule, g.timeout) for g in network.state().grants} == {("one", 60), ("two", 7)}


def test_a_knock_runs_a_command_and_the_end_of_its_window_another(
    network: Network, actions: Actions, tmp_path: Path
) -> None:
    script = tmp_path / "log-knock"
    script.write_text('#!/bin/sh\necho "$NFPKD_EVENT $NFPKD_RULE $NFPKD_SOURCE $NFPKD_PORT $NFPKD_TAG $(id -un) $*"\n')
    script.chmod(0o755)
    # pytest keeps its directories to itself; the command runs as somebody else.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    door = rule("door", PORT, window=1, tag="DOOR", **{"ext-command": [str(script), "$(reboot)"]})
    door["close-command"] = f"{script} 'the end'"
    restart = {"name": "restart", "tag": "APAK", "key": KEY, "ext-command": f"{script} restart; reboot"}
    actions.write("doors.json", door, restart)
    with running(network, actions) as run:
        knock(network.client, SERVER6, tag="DOOR", source=CLIENT6)
        (line,) = [line for line in run.wait_for("command open") if "command" in line]
        assert f"output=open door {CLIENT6} 2222/tcp DOOR nobody $(reboot)" in line
        (line,) = [line for line in run.wait_for("command close") if "command" in line]
        assert f"output=close door {CLIENT6} 2222/tcp DOOR nobody the end" in line
        knock(network.client, SERVER4, tag="APAK", source=CLIENT4)
        line = run.wait_for("rule=restart source=192.0.2.2 user")[-1]
        assert f"output=open restart {CLIENT4}  APAK nobody restart; reboot" in line
        assert network.state().grants == ()


def test_an_open_window_is_closed_when_its_rule_is_removed(network: Network, actions: Actions) -> None:
    """Also where no command has run before, and the files have been read again meanwhile."""
    door = rule("door", PORT, window=600, **{"close-command": ["/bin/echo", "closed"]})
    file = actions.write("door.json", door)
    with running(network, actions) as run:
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        actions.write("other.json", rule("other", PORT + 1, key="another key"))
        run.wait_for("rules reloaded")
        file.unlink()
        run.wait_for("output=closed")


def test_open_windows_are_closed_when_nfpkd_ends(network: Network, actions: Actions) -> None:
    door = rule("door", PORT, window=600, **{"close-command": ["/bin/echo", "closed"]})
    actions.write("door.json", door)
    with running(network, actions) as run:
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        rest = run.stop()
        assert run.wait() == 0
    assert any("output=closed" in line for line in rest)


def test_a_command_that_others_could_change_is_not_run(network: Network, actions: Actions, tmp_path: Path) -> None:
    script = tmp_path / "loose"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o777)
    actions.write("doors.json", rule("door", PORT, **{"ext-command": [str(script)]}))
    with running(network, actions) as run:
        send_udp(network.client, make_knock(4711), SERVER4, 4711)
        assert "others can change" in run.wait_for("command open not run")[-1]
        assert not any("ran" in line.split("output=")[-1] for line in run.lines if "output=" in line)
