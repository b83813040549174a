"""A rule in one line, for people."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.describe import describe_rule, describe_rules
from nfpkd.rules.model import (
    PortRange,
    Prefixes,
    Protocol,
    Rate,
    Reject,
    Rule,
    Secret,
    TimedKey,
    Trigger,
)
from support.strategies import rules

KEY = Secret(b"s3cr3t".ljust(40, b"\0"))
NEW_YEAR = 1_798_761_600
TRUE, FALSE = ("/bin/true", "-x"), ("/bin/false",)


def a_rule(**more: Any) -> Rule:
    fields = {"keys": (TimedKey(KEY),), "ports": (PortRange(22, 22),), "protocols": (Protocol.TCP,), **more}
    return Rule("ssh", tag=b"PKD0", **fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "ssh: 22/tcp opens for 60 s to tag PKD0, others get drop; clock within 10 s"),
        (
            {"reject": Reject.ICMP_ADMIN, "window": 7, "skew": None},
            "ssh: 22/tcp opens for 7 s to tag PKD0, others get icmp-admin; clock ignored",
        ),
        (
            {"interfaces": ("eth0",), "once": True},
            "ssh: 22/tcp on eth0 opens for 60 s for one connection to tag PKD0, others get drop; clock within 10 s",
        ),
        (
            {"ports": (), "trigger": Trigger(TRUE, (), "www-data")},
            "ssh: runs /bin/true at a knock with tag PKD0; clock within 10 s; commands as www-data",
        ),
    ],
)
def test_a_whole_line(fields: dict[str, Any], text: str) -> None:
    assert describe_rule(a_rule(**fields)) == text


@pytest.mark.parametrize(
    ("fields", "conditions"),
    [
        ({}, []),
        ({"extend": True}, ["renewed by traffic"]),
        ({"knock_ports": (PortRange(7, 7), PortRange(8, 9))}, ["knocks at 7,8-9/udp"]),
        (
            {"sources": (ipaddress.ip_network("192.0.2.7"), ipaddress.ip_network("2001:db8::/32"))},
            ["knocks from 192.0.2.7/32, 2001:db8::/32"],
        ),
        ({"prefixes": Prefixes(24, 64)}, ["grants for /24 and /64"]),
        ({"rate": Rate(2, 60, 3)}, ["2 knocks in 60 s, 3 at once"]),
        ({"keys": (TimedKey(KEY), TimedKey(KEY, NEW_YEAR))}, ["2 keys", "key good from 2027-01-01T00:00:00Z"]),
        (
            {"keys": (TimedKey(KEY, NEW_YEAR, NEW_YEAR + 61),)},
            ["key good from 2027-01-01T00:00:00Z", "key good until 2027-01-01T00:01:01Z"],
        ),
        ({"trigger": Trigger(TRUE)}, ["runs /bin/true", "commands as nobody"]),
        ({"trigger": Trigger((), FALSE)}, ["runs /bin/false as the window ends", "commands as nobody"]),
        (
            {"trigger": Trigger(TRUE, FALSE, "root")},
            ["runs /bin/true", "runs /bin/false as the window ends", "commands as root"],
        ),
        ({"trigger": Trigger(user="root")}, []),
        ({"old": True}, ["old digest too"]),
    ],
)
def test_conditions_are_said_where_they_differ_from_the_usual(fields: dict[str, Any], conditions: list[str]) -> None:
    assert describe_rule(a_rule(**fields)).split("; ")[2:] == conditions


@given(rules())
def test_any_rule_is_one_line_without_its_keys(rule: Rule) -> None:
    line = describe_rule(rule)
    assert line.startswith(f"{rule.name}: ")
    assert line.isprintable()
    assert not any(repr(key.secret.reveal()) in line for key in rule.keys)


def test_many_are_in_columns() -> None:
    many = [
        a_rule(),
        replace(a_rule(ports=(PortRange(8000, 8100),), interfaces=("eth0",)), name="web"),
        replace(a_rule(ports=(), trigger=Trigger(TRUE)), name="bell"),
    ]
    shown = list(describe_rules(many, lambda role, text: f"<{role.name}>{text}</>"))
    assert [line.partition(";")[0] for line in shown] == [
        "<HEADING>ssh</>:   22/tcp                 opens for 60 s to tag PKD0, others get drop",
        "<HEADING>web</>:   8000-8100/tcp on eth0  opens for 60 s to tag PKD0, others get drop",
        "<HEADING>bell</>:                         runs /bin/true at a knock with tag PKD0",
    ]


@given(st.lists(rules(), max_size=5))
def test_columns_say_what_the_lines_say(many: list[Rule]) -> None:
    assert [line.split() for line in describe_rules(many)] == [describe_rule(rule).split() for rule in many]


def test_no_key_is_shown() -> None:
    rule = a_rule(keys=(TimedKey(KEY), TimedKey(KEY, 1, 2)), trigger=Trigger(TRUE, FALSE))
    assert "s3cr3t" not in describe_rule(rule)
