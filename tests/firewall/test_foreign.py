"""What other tables do to guarded ports, by what nft 1.0.6 lists of them."""

from __future__ import annotations

from typing import Any

import pytest

from nfpkd.doctor.checks import Finding, check_notrack, check_others
from nfpkd.firewall.foreign import BaseChain, ChainId, Ruleset, find_obstacles, find_references
from nfpkd.firewall.nft import Table
from nfpkd.rules.model import Protocol, Service

FILTER = Table("inet", "filter")
SSH = Service(Protocol.TCP, 22)
ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
REJECT: dict[str, Any] = {"reject": {"type": "tcp reset"}}
RETURN: dict[str, Any] = {"return": None}
COUNTER: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}
LIMIT: dict[str, Any] = {"limit": {"rate": 3, "burst": 5, "per": "minute"}}
XT: dict[str, Any] = {"xt": None}
L4PROTO = {"meta": {"key": "l4proto"}}
IIFNAME = {"meta": {"key": "iifname"}}
CT_STATE = {"ct": {"key": "state"}}
FIB = {"fib": {"result": "type", "flags": ["daddr"]}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


def dport(right: Any, op: str = "==", protocol: str = "tcp") -> dict[str, Any]:
    return match(field(protocol, "dport"), right, op)


def jump(target: str, kind: str = "jump") -> dict[str, Any]:
    return {kind: {"target": target}}


def vmap(left: Any, data: Any) -> dict[str, Any]:
    return {"vmap": {"key": left, "data": data}}


SOURCE = match(field("ip", "saddr"), "192.0.2.1")
Rules = list[list[dict[str, Any]]]


def make(
    rules: Rules,
    policy: str = "drop",
    chains: dict[str, Rules] | None = None,
    sets: dict[str, list[Any]] | None = None,
    table: Table = FILTER,
    hook: str = "input",
) -> Ruleset:
    """Return a ruleset with one base chain; a rule's handle is its place in its chain."""
    every = {"input": rules, **(chains or {})}
    return Ruleset(
        (BaseChain(table, "input", hook, 0, policy),),
        {
            ChainId(table, name): [{"chain": name, "handle": i, "expr": expr} for i, expr in enumerate(found)]
            for name, found in every.items()
        },
        {ChainId(table, name): elements for name, elements in (sets or {}).items()},
    )


def kinds(ruleset: Ruleset, service: Service = SSH) -> list[str]:
    return [
        obstacle.kind + ("" if obstacle.rule is None else str(obstacle.rule["handle"]))
        for obstacle in find_obstacles(ruleset, [service])
    ]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], ["drop"]),
        ([[dport(22), ACCEPT]], []),
        ([[dport(23), ACCEPT]], ["drop"]),
        ([[dport(22, protocol="udp"), ACCEPT]], ["drop"]),
        ([[dport(22, protocol="th"), ACCEPT]], []),
        ([[dport({"range": [1, 100]}), COUNTER, ACCEPT]], []),
        ([[dport({"set": [80, {"range": [20, 25]}]}), ACCEPT]], []),
        ([[dport({"set": [80, 443]}), ACCEPT]], ["drop"]),
        ([[dport("@ports"), ACCEPT]], []),
        ([[dport("@others"), ACCEPT]], ["drop"]),
        # A set that could not be listed.
        ([[dport("@gone"), ACCEPT]], ["unsure"]),
        ([[dport(22, "!="), ACCEPT]], ["drop"]),
        ([[dport(23, "!="), ACCEPT]], []),
        ([[dport(23, "!=", "udp"), ACCEPT]], ["drop"]),
        ([[dport(1024, "<"), ACCEPT]], []),
        ([[dport(1024, ">="), ACCEPT]], ["drop"]),
        ([[match(field("tcp", "sport"), 1024, ">="), ACCEPT]], ["drop"]),
        ([[match(L4PROTO, 6), ACCEPT]], []),
        ([[match(L4PROTO, {"set": ["tcp", "udp"]}), dport(22, protocol="th"), ACCEPT]], []),
        ([[match(L4PROTO, "@protocols"), ACCEPT]], ["drop"]),
        ([[match(L4PROTO, 17), ACCEPT]], ["drop"]),
        ([[match(field("ip", "protocol"), 6), dport(22), ACCEPT]], ["rest"]),
        ([[match(CT_STATE, ["established", "related"], "in"), ACCEPT]], ["drop"]),
        ([[match(CT_STATE, "new", "in"), dport(22), ACCEPT]], []),
        ([[match(CT_STATE, "invalid", "in"), DROP], [dport(22), ACCEPT]], []),
        ([[match(IIFNAME, "lo"), ACCEPT]], ["drop"]),
        ([[match(IIFNAME, "lo", "!="), dport(22), DROP]], ["drop0"]),
        ([[match(IIFNAME, "eth0"), ACCEPT]], ["drop"]),
        ([[match(FIB, "local"), ACCEPT]], []),
        ([[match(FIB, "broadcast"), ACCEPT]], ["drop"]),
        ([[match(field("icmp", "type"), "echo-request"), ACCEPT]], ["drop"]),
        ([[match("odd", 1), ACCEPT]], ["drop"]),
        # Who knocks has to meet what the rule asks for besides.
        ([[SOURCE, dport(22), ACCEPT]], ["rest"]),
        ([[dport(22), LIMIT, ACCEPT]], ["rest"]),
        ([[SOURCE, ACCEPT]], ["drop"]),
        # What iptables wrote and nft cannot show.
        ([[XT, ACCEPT]], ["unsure"]),
        ([[{"queue": {"num": 5}}]], ["unsure"]),
        # The first that surely decides counts.
        ([[dport(22), ACCEPT], [DROP]], []),
        ([[DROP], [dport(22), ACCEPT]], ["drop0"]),
        ([[dport(22), REJECT], [dport(22), ACCEPT]], ["drop0"]),
        ([[{"xt": {"type": "target", "name": "REJECT"}}]], ["drop0"]),
        ([[dport(22), SOURCE, DROP], [dport(22), ACCEPT]], ["some0"]),
        ([[SOURCE, DROP], [dport(22), ACCEPT]], []),
        ([[RETURN], [dport(22), ACCEPT]], ["drop"]),
        ([[SOURCE, RETURN], [dport(22), ACCEPT]], ["rest"]),
        ([[COUNTER, {"log": None}, {"odd": 1}, DROP], [ACCEPT]], []),
        ([[match({"concat": [L4PROTO, field("th", "dport")]}, {"set": [{"concat": [6, 22]}]}), ACCEPT]], []),
        ([[match({"concat": [L4PROTO, field("th", "dport")]}, {"set": [{"concat": [17, 22]}]}), ACCEPT]], ["drop"]),
        ([[match({"concat": [IIFNAME, field("tcp", "dport")]}, "@gone"), ACCEPT]], ["drop"]),
        ([[match({"concat": [IIFNAME, field("tcp", "dport")]}, {"concat": ["a", 22]}), ACCEPT]], ["rest"]),
        ([[vmap(field("tcp", "dport"), {"set": [[22, ACCEPT], [23, DROP]]})]], []),
        ([[vmap(field("tcp", "dport"), "@verdicts")]], []),
        ([[vmap(field("tcp", "dport"), "@gone")]], ["drop"]),
        ([[vmap(CT_STATE, {"set": [["established", ACCEPT], ["new", jump("ssh")], ["invalid", DROP]]})]], []),
        ([[jump("ssh")]], []),
        ([[jump("nowhere")]], ["drop"]),
        ([[match(L4PROTO, 6), jump("ssh", "goto")]], []),
        ([[SOURCE, jump("ssh")]], ["rest"]),
        ([[jump("empty", "goto")], [dport(22), ACCEPT]], ["drop"]),
        ([[jump("closed")], [dport(22), ACCEPT]], ["drop0"]),
        ([[jump("returning")], [dport(22), ACCEPT]], []),
        ([[jump("circle")], [dport(22), ACCEPT]], []),
    ],
)
def test_a_chain_with_policy_drop(rules: Rules, expected: list[str]) -> None:
    chains = {
        "ssh": [[dport(22), ACCEPT]],
        "empty": [],
        "closed": [[dport(22), DROP]],
        "returning": [[RETURN], [DROP]],
        "circle": [[jump("circle")]],
    }
    sets: dict[str, list[Any]] = {
        "ports": [80, {"elem": {"val": 22, "timeout": 5}}],
        "others": [80],
        "verdicts": [[22, ACCEPT]],
    }
    assert kinds(make(rules, "drop", chains, sets)) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], []),
        ([[SOURCE, DROP]], []),
        ([[match(CT_STATE, "invalid", "in"), DROP]], []),
        ([[dport(22), DROP]], ["drop0"]),
        ([[dport(22), {"notrack": None}]], []),
        ([[ACCEPT], [DROP]], []),
        ([[{"counter": {}}, REJECT]], ["drop0"]),
    ],
)
def test_a_chain_with_policy_accept(rules: Rules, expected: list[str]) -> None:
    assert kinds(make(rules, "accept")) == expected


def test_what_multiplies_is_bounded() -> None:
    chains = {f"c{i}": [[SOURCE, jump(f"c{i + 1}")]] * 10 for i in range(15)}
    assert kinds(make([[jump("c0")]], "drop", chains)) == ["unsure"]


def test_services_with_the_same_fate_are_told_together() -> None:
    services = [Service(Protocol.TCP, port) for port in range(1000, 5000)]
    (found,) = find_obstacles(make([[dport({"range": [2000, 2999]}), ACCEPT]]), services)
    assert [service.port for service in found.services] == [*range(1000, 2000), *range(3000, 5000)]


def test_references_are_chains_and_sets_of_ports_and_verdicts() -> None:
    rules = [
        [dport("@ports"), jump("a")],
        [match(field("ip", "saddr"), "@blocked"), DROP],
        [vmap(CT_STATE, {"set": [["new", jump("b", "goto")]]})],
        [vmap(field("ip", "saddr"), "@verdicts")],
    ]
    found = find_references(rules)
    assert found.chains == {"a", "b"}
    assert found.sets == {"ports", "verdicts"}


STRANGE: list[dict[str, Any]] = [
    {"match": 5},
    {"match": {}},
    {"match": {"op": "==", "left": field("tcp", "dport")}},
    {"match": {"op": "==", "left": {"payload": 5}, "right": 22}},
    {"match": {"op": "==", "left": {"payload": {"protocol": []}}, "right": 22}},
    {"match": {"op": [], "left": field("tcp", "dport"), "right": 22}},
    {"match": {"op": "==", "left": {"meta": "l4proto"}, "right": 6}},
    {"match": {"op": "==", "left": {"fib": None}, "right": "local"}},
    dport({"range": 5}),
    dport({"range": [1]}),
    dport({"set": 5}),
    dport({"elem": 5}),
    {"vmap": 5},
    {"vmap": {"key": CT_STATE, "data": {"set": [5]}}},
    {"vmap": {"key": CT_STATE, "data": {"set": [["new", {"jump": 5}]]}}},
    {"jump": 5},
    {"goto": {}},
]


@pytest.mark.parametrize("statement", STRANGE, ids=repr)
def test_what_nft_lists_in_an_unknown_way_cannot_be_judged(statement: dict[str, Any]) -> None:
    rules: Rules = [[statement, ACCEPT]]
    assert set(kinds(make(rules))) <= {"unsure", "drop", "rest"}
    assert set(kinds(make(rules, "accept"))) <= {"some"}
    assert find_references(rules)
    assert all(finding.what and finding.remedy for finding in check_others(make(rules), [SSH]))


# In words


def told(ruleset: Ruleset, *services: Service) -> Finding:
    (found,) = check_others(ruleset, services or [SSH])
    return found


def test_a_policy_is_named_with_what_to_add() -> None:
    found = told(make([]))
    assert found == Finding(
        "fault",
        "table inet filter chain input (hook input, priority 0) has policy drop and no rule that accepts 22/tcp:"
        " a knock opens nfpkd's gate, and this chain still drops it",
        'run "nft add rule inet filter input tcp dport 22 accept"',
    )


def test_a_rule_is_named_and_what_to_put_in_front_of_it() -> None:
    services = [*(Service(Protocol.TCP, port) for port in (22, 80, 81)), Service(Protocol.UDP, 53)]
    found = told(make([[jump("closed")]], "accept", {"closed": [[COUNTER], [REJECT]]}), *services)
    assert "has the rule with handle 1 of chain closed, which matches 22,80-81/tcp, 53/udp" in found.what
    assert found.remedy == (
        'run "nft insert rule inet filter input tcp dport { 22, 80-81 } accept"'
        ' and "nft insert rule inet filter input udp dport 53 accept"'
    )


@pytest.mark.parametrize(
    ("rules", "severity", "what"),
    [
        ([[SOURCE, dport(22), ACCEPT]], "note", "on further conditions only"),
        ([[XT, ACCEPT]], "warning", "cannot be read from here"),
        ([[SOURCE, dport(22), DROP], [ACCEPT]], "note", "keeps some sources"),
    ],
)
def test_what_may_be_meant_is_no_fault(rules: Rules, severity: str, what: str) -> None:
    found = told(make(rules))
    assert found.severity == severity
    assert what in found.what
    assert "nft -a list chain inet filter input" in found.remedy


def test_whoever_keeps_a_table_is_asked_to_change_it() -> None:
    services = [SSH, *(Service(Protocol.UDP, port) for port in range(60000, 60003))]
    firewalld = told(make([[REJECT]], "accept", table=Table("inet", "firewalld")), *services)
    assert "firewall-cmd --permanent --add-port=22/tcp --add-port=60000-60002/udp" in firewalld.remedy
    ufw = told(make([[jump("ufw-user-input")]], table=Table("ip", "filter")), *services)
    assert ufw.remedy == 'run "ufw allow 22/tcp" and "ufw allow 60000:60002/udp"'


def test_what_hides_connections_from_conntrack_is_noted() -> None:
    rules: Rules = [[dport(22), {"notrack": None}], [SOURCE, {"notrack": None}]]
    ruleset = make(rules, "accept", hook="prerouting")
    assert list(check_others(ruleset, [SSH])) == []
    (found,) = check_notrack(ruleset, [SSH])
    assert found.severity == "note"
    assert "hides 22/tcp from conntrack" in found.what
    assert "nft delete rule inet filter input handle 0" in found.remedy
