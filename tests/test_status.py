from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nfpkd.firewall.state import Grant, Session, State, Traffic
from nfpkd.rules.model import Protocol, Reject, Service
from nfpkd.status import render_json, render_text
from nfpkd.verifier.listeners import Listener

TCP22 = Service(Protocol.TCP, 22)
LISTENER = Listener(port_id=4711, waiting=2, queue_full=3, socket_full=4)
STATE = State(
    intact=True,
    queue=7,
    queue_target="nft_queue",
    tags=frozenset({b"PKD0", b"\0\0\0\x01"}),
    gated={TCP22: "ssh: the door", Service(Protocol.UDP, 53): "names"},
    rejects={TCP22: Reject.RESET},
    grants=(Grant("192.0.2.1", TCP22, "ssh", 60, 42),),
    sessions=((Session("2001:db8::1", 50000, TCP22), 99),),
    counters={"refused": Traffic(5, 300), "knocks": Traffic(2, 128)},
)
EMPTY = State(
    intact=True,
    queue=None,
    queue_target="",
    tags=frozenset(),
    gated={},
    rejects={},
    grants=(),
    sessions=(),
    counters={},
)


def lines(state: State) -> list[str]:
    return render_text(state, {}).splitlines()


def section(state: State, title: str) -> list[str]:
    """Return the lines below the heading that starts with *title*, without their indentation."""
    shown = lines(state)
    start = next(i for i, line in enumerate(shown) if line.startswith(title))
    below = [*shown[start + 1 :], ""]
    return [line.strip() for line in below[: below.index("")]]


def gated(*ports: int, comment: str = "web", protocol: Protocol = Protocol.TCP) -> dict[Service, str]:
    return {Service(protocol, port): comment for port in ports}


def test_the_whole_text() -> None:
    assert render_text(STATE, {7: LISTENER}) == "\n".join(
        [
            "verifier: process 4711 (queue 7, by nft_queue); 2 packets waiting, 7 lost",
            "",
            "guarded (2 services)",
            "  22/tcp  reset  ssh: the door",
            "  53/udp  drop   names",
            "",
            "let in (1 grants)",
            "  192.0.2.1  22/tcp  ssh  42 s left of 60",
            "",
            "open since before the guard (1 connections)",
            "  2001:db8::1  from port 50000  22/tcp",
            "",
            "counters",
            "  2  packets looked like a knock and were judged",
            "  5  packets were refused at a gate",
        ]
    )


def test_no_table_guards_nothing() -> None:
    assert "guards nothing" in render_text(None, {})


def test_a_verifier_that_does_not_run_is_named_first() -> None:
    first = render_text(STATE, {8: LISTENER}).splitlines()[0]
    assert "not running" in first
    assert "nfpkd run" in first


def test_without_a_queue_rule_there_is_no_verifier() -> None:
    assert lines(EMPTY)[0].startswith("verifier: none")


def test_a_table_of_another_version_is_told() -> None:
    assert any("apply" in line for line in lines(replace(EMPTY, intact=False)))
    assert not any("apply" in line for line in lines(EMPTY))


def test_sections_stay_when_they_are_empty_but_for_old_connections() -> None:
    shown = lines(EMPTY)
    assert "guarded (0 services)" in shown
    assert "let in (0 grants)" in shown
    assert not any(line.startswith("open since") for line in shown)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (gated(80), ["80/tcp  drop  web"]),
        (gated(80, 81, 82), ["80-82/tcp  drop  web"]),
        (gated(82, 80, 81), ["80-82/tcp  drop  web"]),
        (gated(80, 82), ["80/tcp  drop  web", "82/tcp  drop  web"]),
        (gated(80, 81) | gated(82, comment="new"), ["80-81/tcp  drop  web", "82/tcp     drop  new"]),
        # A port of its own in the middle parts the run.
        (
            gated(80, 82) | gated(81, comment="new"),
            ["80/tcp  drop  web", "81/tcp  drop  new", "82/tcp  drop  web"],
        ),
        (gated(80, 81) | gated(81, 82, protocol=Protocol.UDP), ["80-81/tcp  drop  web", "81-82/udp  drop  web"]),
        # Another protocol that goes on with the next port is not the same run.
        (gated(80) | gated(81, protocol=Protocol.UDP), ["80/tcp  drop  web", "81/udp  drop  web"]),
        (gated(65534, 65535), ["65534-65535/tcp  drop  web"]),
    ],
)
def test_neighbouring_ports_share_a_line(found: dict[Service, str], expected: list[str]) -> None:
    assert section(replace(EMPTY, gated=found), "guarded") == expected


def test_ports_that_are_refused_differently_do_not_share_a_line() -> None:
    state = replace(EMPTY, gated=gated(80, 81), rejects={Service(Protocol.TCP, 81): Reject.ICMP_ADMIN})
    assert section(state, "guarded") == ["80/tcp  drop        web", "81/tcp  icmp-admin  web"]


def test_grants_are_sorted_by_rule_source_and_service() -> None:
    def grant(rule: str, source: str, port: int) -> Grant:
        return Grant(source, Service(Protocol.TCP, port), rule, 60, 1)

    found = (grant("b", "192.0.2.1", 1), grant("a", "192.0.2.2", 2), grant("a", "192.0.2.2", 1), grant("a", "::1", 9))
    shown = [tuple(line.split()[:3]) for line in section(replace(EMPTY, grants=found), "let in")]
    assert shown == [
        ("192.0.2.2", "1/tcp", "a"),
        ("192.0.2.2", "2/tcp", "a"),
        ("::1", "9/tcp", "a"),
        ("192.0.2.1", "1/tcp", "b"),
    ]


# JSON


def test_no_table_is_null() -> None:
    assert json.loads(render_json(None, {})) is None


def test_the_whole_json() -> None:
    assert json.loads(render_json(STATE, {7: LISTENER})) == {
        "intact": True,
        "queue": 7,
        "queue_target": "nft_queue",
        "verifier": {"port_id": 4711, "waiting": 2, "queue_full": 3, "socket_full": 4},
        "tags": ["0x00000001", "PKD0"],
        "guarded": [
            {"protocol": "tcp", "port": 22, "reject": "reset", "comment": "ssh: the door"},
            {"protocol": "udp", "port": 53, "reject": "drop", "comment": "names"},
        ],
        "grants": [{"source": "192.0.2.1", "protocol": "tcp", "port": 22, "rule": "ssh", "timeout": 60, "expires": 42}],
        "sessions": [{"source": "2001:db8::1", "source_port": 50000, "protocol": "tcp", "port": 22, "expires": 99}],
        "counters": {"refused": {"packets": 5, "bytes": 300}, "knocks": {"packets": 2, "bytes": 128}},
    }


@pytest.mark.parametrize("state", [STATE, EMPTY])
def test_json_without_a_verifier(state: State) -> None:
    assert json.loads(render_json(state, {}))["verifier"] is None
