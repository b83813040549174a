from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.ruleset import Options, compile_ruleset
from nfpkd.firewall.state import Grant, Place, Session, State, Traffic
from nfpkd.instance import Report
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Service, TimedKey, parse_key
from nfpkd.status import render_changes, render_json, render_text
from nfpkd.text import Role
from nfpkd.verifier.listeners import Listener

TCP22, TCP80 = (Service(Protocol.TCP, port) for port in (22, 80))
LISTENER = Listener(port_id=4711, waiting=2, queue_full=3, socket_full=4)
STATE = State(
    intact=True,
    source_limit=20,
    queue=7,
    queue_target="nft_queue",
    gated={TCP22: "ssh: the door", Service(Protocol.UDP, 53): "names"},
    gated_on={Place("eth0", TCP80): "web"},
    rejects={TCP22: Reject.RESET},
    doors=frozenset({Door(6, 64, Mode.ONCE)}),
    chains={},
    grants=(
        Grant("192.0.2.1", TCP22, "ssh", 60, 42),
        Grant("2001:db8::", TCP80, "web", 30, 7, Door(6, 64, Mode.ONCE, by_interface=True), "eth0"),
    ),
    sessions=((Session("2001:db8::1", 50000, TCP22), 99),),
    counters={"refused": Traffic(5, 300), "knocks": Traffic(2, 128), "limited": Traffic(3, 192)},
)
EMPTY = State(
    intact=True,
    source_limit=20,
    queue=None,
    queue_target="",
    gated={},
    gated_on={},
    rejects={},
    doors=frozenset(),
    chains={},
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
            "guarded (3)",
            "  22/tcp           reset  ssh: the door",
            "  53/udp           drop   names",
            "  80/tcp  on eth0  drop   web",
            "",
            "let in (2)",
            "  192.0.2.1      22/tcp           ssh  42 s left of 60",
            "  2001:db8::/64  80/tcp  on eth0  web  7 s left of 30   one connection",
            "",
            "open since before the guard, or let in for one connection (1)",
            "  2001:db8::1  from port 50000  22/tcp",
            "",
            "counters",
            "  2  packets looked like a knock and were judged",
            "  3  packets were over the limit of their source, 20 a second",
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
    assert "guarded (0)" in shown
    assert "let in (0)" in shown
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


def guarded(port: int, *protocols: Protocol, comment: str = "web") -> dict[Service, str]:
    return {Service(protocol, port): comment for protocol in protocols}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (guarded(2222, *Protocol), ["2222/any  drop  web"]),
        (guarded(53, Protocol.UDP, Protocol.TCP), ["53/tcp+udp  drop  web"]),
        (
            {service: "web" for port in range(8000, 8101) for service in guarded(port, *Protocol)},
            ["8000-8100/any  drop  web"],
        ),
        (
            guarded(53, Protocol.TCP) | guarded(53, Protocol.UDP, comment="names"),
            ["53/tcp  drop  web", "53/udp  drop  names"],
        ),
        (
            guarded(80, Protocol.TCP, Protocol.SCTP) | guarded(81, Protocol.TCP),
            ["80/sctp    drop  web", "80-81/tcp  drop  web"],
        ),
    ],
)
def test_protocols_that_are_guarded_alike_share_a_line(found: dict[Service, str], expected: list[str]) -> None:
    assert section(replace(EMPTY, gated=found), "guarded") == expected


def test_interfaces_that_are_guarded_alike_share_a_line() -> None:
    on = {Place(interface, service): "web" for interface in ("lo", "eth0") for service in gated(80, 81)}
    on[Place("wg0", TCP80)] = "other"
    state = replace(EMPTY, gated=gated(22), gated_on=on)
    assert section(state, "guarded") == [
        "22/tcp                  drop  web",
        "80/tcp     on wg0       drop  other",
        "80-81/tcp  on eth0, lo  drop  web",
    ]


def test_a_port_that_is_guarded_everywhere_and_on_an_interface_is_one_service() -> None:
    state = replace(EMPTY, gated=gated(80), gated_on={Place("lo", TCP80): "inside"})
    assert "guarded (1)" in lines(state)
    assert section(state, "guarded") == ["80/tcp         drop  web", "80/tcp  on lo  drop  inside"]


# Grants


def grant(port: int = 22, rule: str = "ssh", source: str = "192.0.2.1", **changes: Any) -> Grant:
    return Grant(source, Service(Protocol.TCP, port), rule, 60, 42)._replace(**changes)


def let_in(*grants: Grant) -> list[str]:
    return section(replace(EMPTY, grants=grants), "let in")


def test_grants_are_sorted_by_rule_and_source() -> None:
    found = (grant(1, "b"), grant(2, "a", "192.0.2.2"), grant(1, "a", "192.0.2.2"), grant(9, "a", "::1"))
    assert [tuple(line.split()[:3]) for line in let_in(*found)] == [
        ("192.0.2.2", "1-2/tcp", "a"),
        ("::1", "9/tcp", "a"),
        ("192.0.2.1", "1/tcp", "b"),
    ]


def test_what_a_knock_opened_is_one_line() -> None:
    services = [Service(protocol, port) for protocol in Protocol for port in (22, *range(8000, 9000))]
    # Listed while a second ends.
    found = [grant(service=service, expires=41 + (service.port > 8500)) for service in services]
    assert let_in(*found) == ["192.0.2.1  22,8000-8999/any  ssh  41 s left of 60"]
    assert f"let in ({len(found)})" in lines(replace(EMPTY, grants=tuple(found)))


def test_protocols_with_other_ports_are_named_apart() -> None:
    udp = grant(service=Service(Protocol.UDP, 53))
    assert let_in(grant(22), grant(53), udp) == ["192.0.2.1  22,53/tcp 53/udp  ssh  42 s left of 60"]


def test_what_ends_at_another_time_is_a_line_of_its_own() -> None:
    found = (grant(22), grant(23, expires=44), grant(24, expires=45))
    assert let_in(*found) == [
        "192.0.2.1  22-23/tcp  ssh  42 s left of 60",
        "192.0.2.1  24/tcp     ssh  45 s left of 60",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"rule": "web"},
        {"source": "192.0.2.2"},
        {"timeout": 90},
        {"door": Door(4, 32, by_interface=True), "interface": "lo"},
    ],
)
def test_what_differs_is_a_line_of_its_own(other: dict[str, Any]) -> None:
    assert len(let_in(grant(22), grant(23, **other))) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"timeout": 0, "expires": 0}, "192.0.2.1  22/tcp  ssh  for good"),
        ({"source": "192.0.2.0", "door": Door(4, 24)}, "192.0.2.0/24  22/tcp  ssh  42 s left of 60"),
        (
            {"door": Door(4, 32, Mode.EXTEND, 60)},
            "192.0.2.1  22/tcp  ssh  42 s left of 60  renewed by traffic",
        ),
        ({"door": Door(4, 32, Mode.ONCE)}, "192.0.2.1  22/tcp  ssh  42 s left of 60  one connection"),
        (
            {"door": Door(4, 32, by_interface=True), "interface": "eth0"},
            "192.0.2.1  22/tcp  on eth0  ssh  42 s left of 60",
        ),
    ],
)
def test_a_grant_says_what_kind_it_is(changes: dict[str, Any], expected: str) -> None:
    assert let_in(grant(**changes)) == [expected]


# What stands out


def marked(role: Role, text: str) -> str:
    return f"<{role.name}>{text}</>"


def test_headings_and_losses_stand_out() -> None:
    shown = render_text(STATE, {7: LISTENER}, paint=marked).splitlines()
    assert shown[0] == "verifier: process 4711 (queue 7, by nft_queue); 2 packets waiting, <WARNING>7 lost</>"
    headings = [line for line in shown if line.startswith("<")]
    assert [line.removeprefix("<HEADING>").removesuffix("</>") for line in headings] == [
        "guarded (3)",
        "let in (2)",
        "open since before the guard, or let in for one connection (1)",
        "counters",
    ]


@pytest.mark.parametrize(
    ("state", "role"),
    [(None, Role.WARNING), (EMPTY, Role.ERROR), (replace(EMPTY, queue=8), Role.ERROR)],
)
def test_what_keeps_everybody_out_stands_out(state: State | None, role: Role) -> None:
    assert render_text(state, {}, paint=marked).startswith(f"<{role.name}>")


def test_rules_that_are_not_those_of_the_files_stand_out() -> None:
    report = Report("the last reload failed; guarding by 3 rules from before", stale=True)
    assert render_text(STATE, {7: LISTENER}, report, marked).splitlines()[1] == (
        f"<WARNING>rules: {report.status}; `nfpkd check` says what is wrong</>"
    )


@pytest.mark.parametrize(
    ("listeners", "report"),
    [({7: LISTENER}, Report("guarding by 3 rules")), ({}, Report("whatever anybody says", stale=True))],
)
def test_other_reports_are_not_worth_a_line(listeners: dict[int, Listener], report: Report) -> None:
    assert render_text(STATE, listeners, report) == render_text(STATE, listeners)


def test_a_verifier_that_lost_nothing_does_not() -> None:
    quiet = LISTENER._replace(queue_full=0, socket_full=0)
    assert render_text(STATE, {7: quiet}, paint=marked).splitlines()[0].endswith("2 packets waiting, 0 lost")


def test_counters_are_aligned_as_numbers_are() -> None:
    found = {"knocks": Traffic(1234, 0), "refused": Traffic(7, 0)}
    shown = lines(replace(EMPTY, counters=found))
    assert shown[-2:] == [
        "  1234  packets looked like a knock and were judged",
        "     7  packets were refused at a gate",
    ]


def test_changes_are_marked_by_what_they_are() -> None:
    key = (TimedKey(parse_key("k")),)
    wanted = compile_ruleset([Rule("web", key, b"PKD0", (PortRange(80, 80),), (Protocol.TCP,))], Options())
    held = replace(EMPTY, gated=gated(22, comment="ssh"), grants=(Grant("192.0.2.1", TCP22, "ssh", 60, 42),))
    assert render_changes(held, wanted, marked) == [
        "<GONE>-  22/tcp  drop  ssh</>",
        "<NEW>+  80/tcp  drop  web</>",
        "<GONE>- let in: 192.0.2.1  22/tcp  ssh  42 s left of 60</>",
    ]
    assert render_changes(held, wanted)[1] == "+  80/tcp  drop  web"


# JSON


def test_no_table_is_null() -> None:
    assert json.loads(render_json(None, {})) is None


def test_the_whole_json() -> None:
    assert json.loads(render_json(STATE, {7: LISTENER}, Report("guarding by 3 rules"))) == {
        "intact": True,
        "queue": 7,
        "queue_target": "nft_queue",
        "source_limit": 20,
        "verifier": {"port_id": 4711, "waiting": 2, "queue_full": 3, "socket_full": 4},
        "rules": {"status": "guarding by 3 rules", "stale": False},
        "guarded": [
            {"protocol": "tcp", "port": 22, "reject": "reset", "comment": "ssh: the door"},
            {"protocol": "udp", "port": 53, "reject": "drop", "comment": "names"},
        ],
        "guarded_on": [{"interface": "eth0", "protocol": "tcp", "port": 80, "reject": "drop", "comment": "web"}],
        "grants": [
            {
                "source": "192.0.2.1",
                "prefix": 32,
                "who": "192.0.2.1",
                "interface": None,
                "protocol": "tcp",
                "port": 22,
                "rule": "ssh",
                "mode": "plain",
                "timeout": 60,
                "expires": 42,
            },
            {
                "source": "2001:db8::",
                "prefix": 64,
                "who": "2001:db8::/64",
                "interface": "eth0",
                "protocol": "tcp",
                "port": 80,
                "rule": "web",
                "mode": "once",
                "timeout": 30,
                "expires": 7,
            },
        ],
        "sessions": [{"source": "2001:db8::1", "source_port": 50000, "protocol": "tcp", "port": 22, "expires": 99}],
        "counters": {
            "refused": {"packets": 5, "bytes": 300},
            "knocks": {"packets": 2, "bytes": 128},
            "limited": {"packets": 3, "bytes": 192},
        },
    }


@pytest.mark.parametrize("state", [STATE, EMPTY])
def test_json_without_a_verifier(state: State) -> None:
    shown = json.loads(render_json(state, {}, Report("whatever anybody says", stale=True)))
    assert shown["verifier"] is None
    assert shown["rules"] is None


def test_json_without_a_report() -> None:
    assert json.loads(render_json(STATE, {7: LISTENER}))["rules"] is None
