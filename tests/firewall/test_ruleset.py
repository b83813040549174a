from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Transaction
from nfpkd.firewall.ruleset import (
    SESSION_TIMEOUT,
    Ruleset,
    compile_ruleset,
    delete_grants,
    delete_table,
    renew_grants,
    transaction_to,
)
from nfpkd.firewall.state import Grant, Session, State
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Secret, Service

TCP22, UDP22 = Service(Protocol.TCP, 22), Service(Protocol.UDP, 22)
SSH = Rule("ssh", Secret(bytes(40)), b"PKD0", (PortRange(22, 22),), (Protocol.TCP,))
WEB = replace(SSH, name="web", tag=b"PKD1", ports=(PortRange(80, 80),), reject=Reject.RESET, description="the shop")
TCP80 = Service(Protocol.TCP, 80)
GRANT = Grant("192.0.2.1", TCP22, "ssh", 60, 60)


def held(ruleset: Ruleset, **changes: Any) -> State:
    """Return the state of a kernel that holds *ruleset*."""
    state = State(
        intact=True,
        queue=ruleset.queue,
        queue_target="nft_queue",
        tags=ruleset.tags,
        gated=dict(ruleset.gated),
        rejects=dict(ruleset.rejects),
        grants=(),
        sessions=(),
        counters={},
    )
    return replace(state, **changes)


def brief(transaction: Transaction) -> list[tuple[str, str, str]]:
    """Return verb, kind and name of each command."""
    found = []
    for command in transaction.commands:
        [(verb, what)] = command.items()
        [(kind, described)] = what.items()
        found.append((verb, kind, described.get("name") or described.get("chain")))
    return found


def members(transaction: Transaction, verb: str, name: str) -> list[Any]:
    elements = [command[verb]["element"] for command in transaction.commands if "element" in command.get(verb, {})]
    return [member for element in elements if element["name"] == name for member in element["elem"]]


# compile_ruleset


def test_nothing_to_guard() -> None:
    ruleset = compile_ruleset([], 3)
    assert (ruleset.queue, ruleset.tags, ruleset.gated, ruleset.rejects) == (3, frozenset(), {}, {})


def test_every_service_is_gated_and_only_refusals_with_an_answer_are_named() -> None:
    ruleset = compile_ruleset([SSH, WEB], 0)
    assert ruleset.gated == {TCP22: "ssh", TCP80: "web: the shop"}
    assert ruleset.rejects == {TCP80: Reject.RESET}
    assert ruleset.tags == {b"PKD0", b"PKD1"}


def test_a_shared_port_names_all_its_rules() -> None:
    ruleset = compile_ruleset([SSH, replace(SSH, name="backup")], 0)
    assert ruleset.gated == {TCP22: "ssh; backup"}


def test_overlapping_ranges_name_their_rule_once() -> None:
    ruleset = compile_ruleset([replace(SSH, ports=(PortRange(22, 23), PortRange(22, 22)))], 0)
    assert ruleset.gated[TCP22] == "ssh"


def test_labels_are_made_fit_for_nft() -> None:
    ruleset = compile_ruleset([replace(SSH, description='"' + "ü" * 100)], 0)
    assert nft.clean_comment(ruleset.gated[TCP22]) == ruleset.gated[TCP22]
    assert ruleset.gated[TCP22].startswith("ssh: 'ü")


@pytest.mark.parametrize(
    ("grant", "kept"),
    [
        (GRANT, True),
        (GRANT._replace(rule="web"), False),
        (GRANT._replace(service=UDP22), False),
        (GRANT._replace(service=TCP80), False),
    ],
)
def test_a_grant_is_kept_while_its_rule_opens_its_port(grant: Grant, kept: bool) -> None:
    assert compile_ruleset([SSH], 0).keeps(grant) is kept


def test_a_ruleset_shows_no_keys() -> None:
    secret = replace(SSH, key=Secret(b"do not show this".ljust(40)))
    assert "do not show" not in repr(compile_ruleset([secret], 0))


# transaction_to


def test_without_a_table_all_of_it_is_made() -> None:
    commands = brief(transaction_to(compile_ruleset([SSH], 0), None))
    assert commands[:3] == [("add", "table", "nfpkd"), ("delete", "table", "nfpkd"), ("add", "table", "nfpkd")]
    constant = len(layout.declarations())
    assert commands[3 + constant :] == [
        ("add", "element", "gated"),
        ("flush", "chain", "tags"),
        ("add", "rule", "tags"),
        ("flush", "chain", "verify"),
        ("add", "rule", "verify"),
    ]


def test_nothing_changes_without_a_difference() -> None:
    ruleset = compile_ruleset([SSH, WEB], 0)
    assert not transaction_to(ruleset, held(ruleset))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [SSH], [("add", "element", "gated"), ("flush", "chain", "tags"), ("add", "rule", "tags")]),
        # Without tags, no rule: an anonymous set must not be empty.
        ([SSH], [], [("delete", "element", "gated"), ("flush", "chain", "tags")]),
        (
            [SSH],
            [replace(SSH, ports=(PortRange(23, 23),))],
            [("delete", "element", "gated"), ("add", "element", "gated")],
        ),
        (
            [SSH],
            [replace(SSH, description="door")],
            [("delete", "element", "gated"), ("add", "element", "gated")],
        ),
        ([SSH], [replace(SSH, reject=Reject.ICMP)], [("add", "element", "rejects")]),
        ([WEB], [replace(WEB, reject=Reject.DROP)], [("delete", "element", "rejects")]),
        (
            [WEB],
            [replace(WEB, reject=Reject.ICMP_ADMIN)],
            [("delete", "element", "rejects"), ("add", "element", "rejects")],
        ),
        ([SSH], [replace(SSH, tag=b"PKD9")], [("flush", "chain", "tags"), ("add", "rule", "tags")]),
        # What the kernel does not hold costs it nothing.
        ([SSH], [replace(SSH, key=Secret(b"x" * 40), window=5, skew=None, old=True)], []),
    ],
)
def test_only_the_difference_is_sent(
    before: list[Rule], after: list[Rule], expected: list[tuple[str, str, str]]
) -> None:
    transaction = transaction_to(compile_ruleset(after, 0), held(compile_ruleset(before, 0)))
    assert brief(transaction) == expected


@pytest.mark.parametrize("queue", [None, 1])
def test_another_queue_replaces_the_queue_rule(queue: int | None) -> None:
    ruleset = compile_ruleset([SSH], 0)
    transaction = transaction_to(ruleset, held(ruleset, queue=queue))
    assert transaction.commands == (nft.flush_chain(TABLE, "verify"), nft.add(layout.queue_rule(0)))


def test_a_verdict_is_a_jump_to_the_rejecting_chain() -> None:
    transaction = transaction_to(compile_ruleset([WEB], 0), None)
    assert members(transaction, "add", "rejects") == [[nft.concat(6, 80), nft.goto("refuse-reset")]]


def test_grants_of_a_rule_that_goes_go_with_it() -> None:
    state = held(compile_ruleset([SSH, WEB], 0), grants=(GRANT, GRANT._replace(service=TCP80, rule="web")))
    transaction = transaction_to(compile_ruleset([WEB], 0), state)
    assert members(transaction, "delete", "grants4") == [nft.concat("192.0.2.1", 6, 22)]


def test_a_broken_table_is_made_anew_with_its_grants() -> None:
    six = GRANT._replace(source="2001:db8::1", expires=0)
    state = held(compile_ruleset([SSH], 0), intact=False, grants=(GRANT, six, GRANT._replace(rule="gone")))
    transaction = transaction_to(compile_ruleset([SSH], 0), state)
    assert brief(transaction)[1] == ("delete", "table", "nfpkd")
    assert members(transaction, "add", "grants4") == [
        {"elem": {"val": nft.concat("192.0.2.1", 6, 22), "comment": "ssh", "timeout": 60, "expires": 60}}
    ]
    # One that runs out at this very moment gets a second, for none at all would be refused.
    assert members(transaction, "add", "grants6")[0]["elem"]["expires"] == 1


def test_a_broken_table_is_made_anew_with_its_sessions() -> None:
    sessions = ((Session("192.0.2.1", 5, TCP22), 17), (Session("2001:db8::1", 5, TCP22), 0))
    state = held(compile_ruleset([SSH], 0), intact=False, sessions=sessions)
    transaction = transaction_to(compile_ruleset([SSH], 0), state)
    assert members(transaction, "add", "sessions4") == [
        {"elem": {"val": nft.concat("192.0.2.1", 5, 6, 22), "timeout": 17}}
    ]
    assert members(transaction, "add", "sessions6")[0]["elem"]["timeout"] == 1


# Sessions


def test_sessions_go_on_where_a_guard_is_new() -> None:
    sessions = [Session("192.0.2.1", 5, TCP22), Session("2001:db8::1", 5, TCP80), Session("192.0.2.1", 5, UDP22)]
    transaction = transaction_to(compile_ruleset([SSH, WEB], 0), held(compile_ruleset([SSH], 0)), sessions)
    assert members(transaction, "add", "sessions4") == []
    assert members(transaction, "add", "sessions6") == [
        {"elem": {"val": nft.concat("2001:db8::1", 5, 6, 80), "timeout": SESSION_TIMEOUT}}
    ]


def test_sessions_are_not_looked_up_where_no_guard_is_new() -> None:
    ruleset = compile_ruleset([SSH], 0)
    assert not transaction_to(ruleset, held(ruleset), map(pytest.fail, ["looked up"]))


def test_sessions_of_a_new_table_fit_their_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_SESSIONS", 2)
    sessions = [Session("192.0.2.1", port, TCP22) for port in range(5)]
    transaction = transaction_to(compile_ruleset([SSH], 0), None, sessions)
    assert len(members(transaction, "add", "sessions4")) == 2


def test_sessions_fit_beside_those_the_set_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_SESSIONS", 4)
    old = tuple((Session("192.0.2.1", port, TCP22), 60) for port in range(3))
    new = [Session("192.0.2.1", port, TCP80) for port in range(3)]
    state = held(compile_ruleset([SSH], 0), sessions=old)
    transaction = transaction_to(compile_ruleset([SSH, WEB], 0), state, new)
    assert len(members(transaction, "add", "sessions4")) == 1


def test_sessions_go_with_the_guard_they_passed() -> None:
    sessions = ((Session("192.0.2.1", 5, TCP22), 17), (Session("192.0.2.1", 5, TCP80), 17))
    state = held(compile_ruleset([SSH, WEB], 0), sessions=sessions)
    transaction = transaction_to(compile_ruleset([WEB], 0), state)
    assert members(transaction, "delete", "sessions4") == [nft.concat("192.0.2.1", 5, 6, 22)]


# Grants


def test_renewing_adds_deletes_and_adds() -> None:
    key = nft.concat("192.0.2.1", 6, 22)
    assert renew_grants([GRANT]).commands == (
        nft.add_elements(TABLE, "grants4", [key]),
        nft.delete_elements(TABLE, "grants4", [key]),
        nft.add_elements(TABLE, "grants4", [nft.element(key, timeout=60, expires=60, comment="ssh")]),
    )


def test_deleting_is_legal_for_grants_that_ran_out() -> None:
    key = nft.concat("192.0.2.1", 6, 22)
    assert delete_grants([GRANT]).commands == (
        nft.add_elements(TABLE, "grants4", [key]),
        nft.delete_elements(TABLE, "grants4", [key]),
    )


def test_grants_of_both_families_take_their_own_sets() -> None:
    transaction = renew_grants([GRANT, GRANT._replace(source="2001:db8::1"), GRANT._replace(service=UDP22)])
    assert len(members(transaction, "delete", "grants4")) == 2
    assert len(members(transaction, "delete", "grants6")) == 1


def test_no_grants_need_no_transaction() -> None:
    assert not renew_grants([])
    assert not delete_grants([])


def test_the_table_is_deleted_whether_there_is_one_or_not() -> None:
    expected: tuple[Json, ...] = (nft.add_table(TABLE), nft.delete_table(TABLE))
    assert delete_table().commands == expected
