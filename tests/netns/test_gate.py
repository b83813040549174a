"""What the kernel alone does with packets, with no verifier running."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import pytest

from nfpkd.demo.namespaces import Namespace, connect
from nfpkd.firewall.state import Grant
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Service, TimedKey, parse_key, parse_tag
from support.network import (
    CLIENT4,
    CLIENTS,
    SERVER4,
    SERVER6,
    SERVERS,
    STRANGERS,
    Network,
    eventually,
    listen_tcp,
    open_udp,
    outcome,
    receives,
    send_udp,
    try_connect,
)

PORT = 2222
TCP = Service(Protocol.TCP, PORT)
UDP = Service(Protocol.UDP, PORT)
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def make_rule(name: str = "door", port: int = PORT, reject: Reject = Reject.DROP) -> Rule:
    return Rule(
        name,
        (TimedKey(parse_key("k")),),
        parse_tag("PKD0"),
        (PortRange(port, port),),
        tuple(Protocol),
        reject=reject,
    )


def grant(network: Network, source: str, service: Service, seconds: int = 60) -> None:
    with network.server.entered():
        network.firewall().grant([Grant(source, service, "door", seconds, seconds)])


@FAMILIES
@pytest.mark.guest
@pytest.mark.parametrize(("reject", "answer"), [(Reject.DROP, "silence"), (Reject.RESET, "reset")])
def test_a_stranger_gets_what_the_rule_says(network: Network, family: int, reject: Reject, answer: str) -> None:
    with listen_tcp(network.server, PORT, family):
        assert outcome(network.client, SERVERS[family], PORT) == "open"
        network.enforce(make_rule(reject=reject))
        assert outcome(network.client, SERVERS[family], PORT) == answer


@FAMILIES
@pytest.mark.parametrize(
    ("reject", "codes"),
    # Type and code: RFC 792 and RFC 1812 5.2.7.1 for IPv4, RFC 4443 3.1 for IPv6.
    [(Reject.ICMP, {4: (3, 3), 6: (1, 4)}), (Reject.ICMP_ADMIN, {4: (3, 13), 6: (1, 1)})],
)
def test_a_stranger_is_told_by_icmp(
    network: Network, family: int, reject: Reject, codes: dict[int, tuple[int, int]]
) -> None:
    network.enforce(make_rule(reject=reject))
    with network.client.entered():
        if family == 6:
            raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        else:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with raw, listen_tcp(network.server, PORT, family):
        outcome(network.client, SERVERS[family], PORT)
        raw.settimeout(5)
        # Neighbour discovery is ICMPv6, too.
        header = b""
        while not header or header[0] >= 128:
            header = raw.recv(2048)[0 if family == 6 else 20 :]
        assert (header[0], header[1]) == codes[family]


@FAMILIES
@pytest.mark.parametrize(("reject", "refused"), [(Reject.DROP, False), (Reject.RESET, True)])
def test_udp_gets_port_unreachable_where_tcp_gets_a_reset(
    network: Network, family: int, reject: Reject, refused: bool
) -> None:
    network.enforce(make_rule(reject=reject))
    with open_udp(network.server, PORT, family), open_udp(network.client, 0, family) as sock:
        sock.connect((SERVERS[family], PORT))
        sock.send(b"hello")
        if refused:
            with pytest.raises(ConnectionRefusedError):
                receives(sock, 5)
        else:
            assert receives(sock) is None


@FAMILIES
@pytest.mark.guest
def test_a_grant_opens_for_its_source_alone(network: Network, family: int) -> None:
    network.enforce(make_rule())
    with listen_tcp(network.server, PORT, family):
        grant(network, CLIENTS[family], TCP)
        assert outcome(network.client, SERVERS[family], PORT, CLIENTS[family]) == "open"
        assert outcome(network.client, SERVERS[family], PORT, STRANGERS[family]) == "silence"


@FAMILIES
def test_a_grant_ends_with_its_window_and_its_connection_does_not(network: Network, family: int) -> None:
    network.enforce(make_rule())
    with listen_tcp(network.server, PORT, family) as listener:
        grant(network, CLIENTS[family], TCP, seconds=1)
        connection = try_connect(network.client, SERVERS[family], PORT, CLIENTS[family])
        assert isinstance(connection, socket.socket)
        with connection, listener.accept()[0] as accepted:
            assert eventually(lambda: not network.state().grants)
            assert outcome(network.client, SERVERS[family], PORT, CLIENTS[family]) == "silence"
            connection.sendall(b"still here")
            assert accepted.recv(64) == b"still here"


@FAMILIES
def test_udp_is_let_in_only_within_the_window_even_in_a_known_flow(network: Network, family: int) -> None:
    network.enforce(make_rule())
    with (
        open_udp(network.server, PORT, family) as server,
        open_udp(network.client, 0, family, CLIENTS[family]) as client,
    ):
        client.connect((SERVERS[family], PORT))
        client.send(b"before")
        assert receives(server) is None
        grant(network, CLIENTS[family], UDP, seconds=1)
        client.send(b"within")
        assert receives(server, 5) == b"within"
        # Answered, so that conntrack calls the flow established.
        server.sendto(b"answer", client.getsockname()[:2])
        assert receives(client, 5) == b"answer"
        assert eventually(lambda: not network.state().grants)
        client.send(b"after")
        assert receives(server) is None


@FAMILIES
def test_answers_to_what_this_host_started_come_in(network: Network, family: int) -> None:
    network.enforce(make_rule())
    with (
        open_udp(network.server, PORT, family) as server,
        open_udp(network.client, 5000, family, CLIENTS[family]) as client,
    ):
        server.sendto(b"question", (CLIENTS[family], 5000))
        assert client.recv(64) == b"question"
        client.sendto(b"answer", (SERVERS[family], PORT))
        assert receives(server, 5) == b"answer"


@FAMILIES
def test_loopback_is_guarded_too(network: Network, family: int) -> None:
    network.enforce(make_rule(reject=Reject.RESET))
    with listen_tcp(network.server, PORT, family):
        assert outcome(network.server, "::1" if family == 6 else "127.0.0.1", PORT) == "reset"


@pytest.mark.parametrize("source_port_gated", [False, True])
def test_other_ports_are_not_touched(network: Network, source_port_gated: bool) -> None:
    network.enforce(make_rule())
    with listen_tcp(network.server, 8080), open_udp(network.server, 8080) as server:
        assert outcome(network.client, SERVER4, 8080) == "open"
        with open_udp(network.client, PORT if source_port_gated else 0) as client:
            client.sendto(b"hello", (SERVER4, 8080))
        assert receives(server, 5) == b"hello"
    assert network.state().counters["refused"].packets == 0


@pytest.mark.guest
def test_a_session_from_before_conntrack_goes_on_when_the_client_speaks_first(network: Network) -> None:
    with listen_tcp(network.server, PORT) as listener:
        connection = try_connect(network.client, SERVER4, PORT)
        assert isinstance(connection, socket.socket)
        with connection, listener.accept()[0] as accepted:
            network.enforce(make_rule(reject=Reject.RESET))
            connection.sendall(b"client first")
            accepted.settimeout(5)
            assert accepted.recv(64) == b"client first"
            assert outcome(network.client, SERVER4, PORT) == "reset"


def test_a_session_is_kept_when_a_reload_guards_its_port(network: Network) -> None:
    network.enforce(make_rule("other", 4444))
    with listen_tcp(network.server, PORT) as listener:
        connection = try_connect(network.client, SERVER4, PORT)
        assert isinstance(connection, socket.socket)
        with connection, listener.accept()[0] as accepted:
            network.enforce(make_rule("other", 4444), make_rule())
            connection.sendall(b"client first")
            accepted.settimeout(5)
            assert accepted.recv(64) == b"client first"


def test_a_published_port_is_guarded_before_its_translation(network: Network) -> None:
    network.nft("add", "table", "ip", "publish")
    network.nft("add", "chain", "ip", "publish", "pre", "{ type nat hook prerouting priority dstnat; }")
    network.nft("add", "rule", "ip", "publish", "pre", "tcp", "dport", str(PORT), "redirect", "to", ":8080")
    with listen_tcp(network.server, 8080):
        assert outcome(network.client, SERVER4, PORT) == "open"
        network.enforce(make_rule())
        assert outcome(network.client, SERVER4, PORT) == "silence"
        grant(network, CLIENT4, TCP)
        assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"


def test_what_is_forwarded_is_not_ours(network: Network) -> None:
    with Namespace("inner") as inner:
        connect(network.server, ["198.51.100.1/24"], inner, ["198.51.100.2/24"])
        network.server.run("sysctl", "-q", "net.ipv4.ip_forward=1")
        network.client.run("ip", "route", "add", "198.51.100.0/24", "via", SERVER4)
        inner.run("ip", "route", "add", "default", "via", "198.51.100.1")
        network.enforce(make_rule())
        with listen_tcp(inner, PORT):
            assert outcome(network.client, "198.51.100.2", PORT) == "open"


@pytest.mark.parametrize("address", ["192.0.2.255", "224.0.0.251"], ids=["broadcast", "multicast"])
def test_broadcast_and_multicast_do_not_slip_past(network: Network, address: str) -> None:
    with open_udp(network.server, PORT) as server, open_udp(network.client, 0, 4, CLIENT4) as client:
        membership = socket.inet_aton("224.0.0.251") + socket.inet_aton(SERVER4)
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(CLIENT4))
        client.sendto(b"before", (address, PORT))
        assert receives(server, 5) == b"before"
        network.enforce(make_rule())
        client.sendto(b"after", (address, PORT))
        assert receives(server) is None


def test_a_stray_segment_does_not_reset_the_live_connection_it_seems_to_belong_to(network: Network) -> None:
    network.enforce(make_rule(reject=Reject.RESET))
    with listen_tcp(network.server, PORT) as listener:
        grant(network, CLIENT4, TCP, seconds=1)
        connection = try_connect(network.client, SERVER4, PORT, CLIENT4)
        assert isinstance(connection, socket.socket)
        with connection, listener.accept()[0] as accepted:
            assert eventually(lambda: not network.state().grants)
            before = network.state().counters["refused"].packets
            sent, received = _sequence_numbers(connection)
            # Far beyond the window, which conntrack calls invalid; a reset in
            # answer would carry the number that the client expects next.
            stray = (sent + (1 << 30)) & 0xFFFFFFFF
            port = connection.getsockname()[1]
            header = struct.pack(">HHIIBBHHH", port, PORT, stray, received, 5 << 4, 0x10, 512, 0, 0)
            with network.client.entered():
                raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            with raw:
                raw.sendto(_with_checksum(header), (SERVER4, 0))
            assert eventually(lambda: network.state().counters["refused"].packets == before + 1)
            connection.sendall(b"alive")
            assert accepted.recv(64) == b"alive"


def _sequence_numbers(connection: socket.socket) -> tuple[int, int]:
    """Return the next sequence numbers to send and to receive, as the kernel's repair mode tells them."""
    # Linux: include/uapi/linux/tcp.h
    repair, repair_queue, queue_sequence = 19, 20, 21
    numbers = []
    connection.setsockopt(socket.IPPROTO_TCP, repair, 1)
    for queue in (2, 1):  # send, receive
        connection.setsockopt(socket.IPPROTO_TCP, repair_queue, queue)
        numbers.append(connection.getsockopt(socket.IPPROTO_TCP, queue_sequence) & 0xFFFFFFFF)
    connection.setsockopt(socket.IPPROTO_TCP, repair_queue, 0)
    # -1 switches it off without a probe.
    connection.setsockopt(socket.IPPROTO_TCP, repair, -1)
    return numbers[0], numbers[1]


def _with_checksum(header: bytes) -> bytes:
    pseudo = socket.inet_aton(CLIENT4) + socket.inet_aton(SERVER4) + struct.pack(">HH", socket.IPPROTO_TCP, len(header))
    total = sum(struct.unpack(f">{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack(">H", ~total & 0xFFFF) + header[18:]


@FAMILIES
@pytest.mark.parametrize("protocol", [Protocol.SCTP, Protocol.DCCP, Protocol.UDPLITE])
def test_protocols_the_tests_cannot_speak_are_guarded(network: Network, family: int, protocol: Protocol) -> None:
    network.enforce(make_rule())
    # Ports, then zeros: enough for a gate, which looks at nothing else.
    packet = struct.pack(">HH", 5000, PORT) + bytes(28)
    with network.client.entered():
        raw = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    with raw:
        raw.sendto(packet, (SERVERS[family], 0))
    assert eventually(lambda: network.state().counters["refused"].packets == 1)


def test_ipv6_extension_headers_do_not_slip_past(network: Network) -> None:
    with open_udp(network.server, PORT, 6) as server:
        _send_behind_options(network, b"before")
        assert receives(server, 5) == b"before"
        network.enforce(make_rule())
        _send_behind_options(network, b"after")
        assert receives(server) is None


def _send_behind_options(network: Network, payload: bytes) -> None:
    """Send a datagram behind a hop-by-hop and a destination options header."""
    with open_udp(network.client, 0, 6) as sock:
        padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, padding)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padding)
        sock.sendto(payload, (SERVER6, PORT))


@FAMILIES
def test_fragments_do_not_slip_past(network: Network, family: int) -> None:
    network.enforce(make_rule())
    with open_udp(network.server, PORT, family) as server:
        send_udp(network.client, bytes(4000), SERVERS[family], PORT)
        assert receives(server) is None
        grant(network, CLIENTS[family], UDP)
        send_udp(network.client, bytes(4000), SERVERS[family], PORT, CLIENTS[family])
        assert receives(server, 5) == bytes(4000)


def test_teardown_leaves_other_tables_alone(network: Network) -> None:
    network.nft("add", "table", "inet", "mine")
    network.nft("add", "chain", "inet", "mine", "input", "{ type filter hook input priority 0; }")
    before = network.nft("list", "ruleset")
    network.enforce(make_rule())
    with network.server.entered():
        assert network.firewall().teardown()
        assert not network.firewall().teardown()
    assert network.nft("list", "ruleset") == before


def test_without_ipv6_everything_else_works(network: Network) -> None:
    for name in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        with network.server.entered(), contextlib.suppress(OSError):
            path.write_text("1")
    network.enforce(make_rule(reject=Reject.RESET))
    with listen_tcp(network.server, PORT):
        assert outcome(network.client, SERVER4, PORT) == "reset"
