from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nfpkd.errors import KernelError
from nfpkd.firewall import layout, nft
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Rule, Set, Transaction
from nfpkd.firewall.ruleset import Options
from nfpkd.firewall.state import Grant, Session, State
from nfpkd.rules.model import PortRange, Protocol, Reject, Secret, Service, TimedKey
from nfpkd.rules.model import Rule as NfpkdRule
from support.fake_kernel import FakeKernel

TCP22, TCP23, TCP80 = (Service(Protocol.TCP, port) for port in (22, 23, 80))
SSH = NfpkdRule("ssh", (TimedKey(Secret(bytes(40))),), b"PKD0", (PortRange(22, 23),), (Protocol.TCP,))
WEB = replace(SSH, name="web", tag=b"PKD1", ports=(PortRange(80, 80),), reject=Reject.RESET)
OPTIONS = Options()
GRANT = Grant("192.0.2.1", TCP22, "ssh", 60, 60)
WEB_GRANT = Grant("2001:db8::1", TCP80, "web", 90, 90)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def sessions() -> list[Session]:
    return []


@pytest.fixture
def firewall(kernel: FakeKernel, sessions: list[Session]) -> Firewall:
    return Firewall(kernel, lambda: sessions)


def state(firewall: Firewall) -> State:
    found = firewall.read_state()
    assert found is not None
    return found


def is_queue_rule(command: Json) -> bool:
    rule = command.get("add", {}).get("rule", {})
    return any("queue" in statement for statement in rule.get("expr", ()))


def from_outside(kernel: FakeKernel, *commands: Json) -> Callable[[], None]:
    """Return what another tool does, not in our name."""

    def interfere() -> None:
        kernel.apply(Transaction(commands))
        kernel.applied.pop()

    return interfere


# apply


def test_without_a_table_there_is_no_state(firewall: Firewall) -> None:
    assert firewall.read_state() is None


def test_apply_guards_what_the_rules_say(firewall: Firewall) -> None:
    firewall.apply([SSH, WEB], Options(7))
    found = state(firewall)
    assert found.gated == {TCP22: "ssh", TCP23: "ssh", TCP80: "web"}
    assert (found.intact, found.queue) == (True, 7)
    assert found.rejects == {TCP80: Reject.RESET}


def test_apply_without_rules_makes_an_empty_table(firewall: Firewall) -> None:
    firewall.apply([], OPTIONS)
    assert state(firewall).gated == {}


def test_apply_returns_what_it_sent(firewall: Firewall, kernel: FakeKernel) -> None:
    sent = firewall.apply([SSH], OPTIONS).sent
    assert kernel.applied == [sent]


def test_a_second_apply_sends_nothing(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH, WEB], OPTIONS)
    assert not firewall.apply([SSH, WEB], OPTIONS).sent
    assert len(kernel.applied) == 1


def test_the_order_of_the_rules_of_separate_ports_does_not_matter(firewall: Firewall) -> None:
    firewall.apply([SSH, WEB], OPTIONS)
    assert not firewall.apply([WEB, SSH], OPTIONS).sent


def test_apply_restores_what_was_changed_from_outside(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    firewall.grant([GRANT])
    kernel.apply(Transaction((nft.flush_chain(TABLE, "gate"),)))
    assert firewall.apply([SSH], OPTIONS).sent
    found = state(firewall)
    assert (found.intact, found.grants) == (True, (GRANT,))


def test_apply_replaces_a_table_of_another_layout(firewall: Firewall, kernel: FakeKernel) -> None:
    ports = Set(TABLE, layout.GATED, "inet_service")
    kernel.apply(Transaction((nft.add_table(TABLE), nft.add(ports), nft.add_elements(TABLE, layout.GATED, [22, 23]))))
    firewall.apply([SSH], OPTIONS)
    found = state(firewall)
    assert found.intact
    assert found.gated.keys() == {TCP22, TCP23}


def test_a_table_that_changed_meanwhile_is_planned_for_again(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    kernel.before_apply = from_outside(kernel, nft.delete_elements(TABLE, "gated", [nft.concat(*TCP22)]))
    firewall.apply([WEB], OPTIONS)
    assert state(firewall).gated == {TCP80: "web"}


def test_a_table_that_went_meanwhile_is_made_anew(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    kernel.before_apply = from_outside(kernel, nft.delete_table(TABLE))
    firewall.apply([WEB], OPTIONS)
    assert state(firewall).gated == {TCP80: "web"}


def test_a_table_that_became_right_meanwhile_is_left_alone(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH, WEB], OPTIONS)
    target = firewall.plan([SSH], OPTIONS)
    kernel.before_apply = from_outside(kernel, *target.commands)
    assert not firewall.apply([SSH], OPTIONS).sent
    assert state(firewall).gated == {TCP22: "ssh", TCP23: "ssh"}


@pytest.mark.parametrize("failures", [1, 2])
def test_apply_tries_again(firewall: Firewall, kernel: FakeKernel, failures: int) -> None:
    kernel.fail_next(failures)
    firewall.apply([SSH], OPTIONS)
    assert TCP22 in state(firewall).gated


def test_apply_gives_up(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    kernel.fail_next(3)
    with pytest.raises(KernelError):
        firewall.apply([WEB], OPTIONS)
    assert state(firewall).gated.keys() == {TCP22, TCP23}


def test_a_transaction_torn_by_a_refused_queue_rule_is_completed(firewall: Firewall, kernel: FakeKernel) -> None:
    kernel.fail_next(torn=lambda command: not is_queue_rule(command))
    firewall.apply([SSH], Options(7))
    first = kernel.applied[0]
    assert first.commands == (nft.flush_chain(TABLE, layout.VERIFY), nft.add(layout.queue_rule(7)))
    assert state(firewall).queue == 7


def test_a_torn_table_guards_all_the_same(firewall: Firewall, kernel: FakeKernel) -> None:
    kernel.fail_next(3, torn=lambda command: not is_queue_rule(command))
    with pytest.raises(KernelError):
        firewall.apply([SSH], Options(7))
    found = state(firewall)
    assert (found.intact, found.queue, TCP22 in found.gated) == (True, None, True)


# plan


@pytest.mark.parametrize("before", [[], [SSH], [SSH, WEB]])
def test_plan_is_what_apply_sends_and_changes_nothing(firewall: Firewall, before: list[NfpkdRule]) -> None:
    firewall.apply(before, OPTIONS)
    held = firewall.read_state()
    planned = firewall.plan([WEB], Options(1))
    assert firewall.read_state() == held
    assert firewall.apply([WEB], Options(1)).sent == planned


def test_plan_without_a_table_makes_none(firewall: Firewall) -> None:
    assert firewall.plan([SSH], OPTIONS)
    assert firewall.read_state() is None


def test_plan_is_checked_by_the_kernel(firewall: Firewall) -> None:
    with pytest.raises(KernelError):
        firewall.plan([SSH], Options(65536))


# Grants


def test_a_grant_opens_from_now_for_its_whole_time(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH, WEB], OPTIONS)
    firewall.grant([GRANT, WEB_GRANT])
    assert state(firewall).grants == (GRANT, WEB_GRANT)
    kernel.now += 60
    assert state(firewall).grants == (WEB_GRANT._replace(expires=30),)


def test_a_second_knock_renews(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    firewall.grant([GRANT])
    kernel.now += 40
    firewall.grant([GRANT])
    assert state(firewall).grants == (GRANT,)


def test_a_knock_after_the_time_opens_again(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    firewall.grant([GRANT])
    kernel.now += 61
    firewall.grant([GRANT])
    assert state(firewall).grants == (GRANT,)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(GRANT, id="two knocks of one client, or of two behind one address"),
        pytest.param(GRANT._replace(rule="backup"), id="knocks for two rules that share a port"),
    ],
)
def test_one_wake_up_may_bring_the_same_grant_twice(firewall: Firewall, second: Grant) -> None:
    firewall.apply([SSH, replace(SSH, name="backup")], OPTIONS)
    firewall.grant([GRANT, second])
    [found] = state(firewall).grants
    assert (found.source, found.service, found.expires) == (GRANT.source, TCP22, 60)


def test_no_grants_ask_nothing_of_the_kernel(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.grant([])
    assert kernel.applied == []


def test_a_grant_without_a_table_is_refused(firewall: Firewall) -> None:
    with pytest.raises(KernelError):
        firewall.grant([GRANT])


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        pytest.param([SSH, WEB], True, id="unchanged"),
        pytest.param(
            [replace(SSH, description="door", window=5, keys=(TimedKey(Secret(b"x" * 40)),))], True, id="details"
        ),
        pytest.param([replace(SSH, reject=Reject.ICMP, tag=b"PKD9")], True, id="reject and tag"),
        pytest.param([replace(SSH, ports=(PortRange(1, 22),))], True, id="other ports, its own among them"),
        pytest.param([replace(SSH, ports=(PortRange(23, 23),))], False, id="its port is gone"),
        pytest.param([replace(SSH, protocols=(Protocol.UDP,))], False, id="its protocol is gone"),
        pytest.param([replace(SSH, name="door")], False, id="renamed"),
        pytest.param([WEB], False, id="its rule is gone"),
        pytest.param([], False, id="all rules are gone"),
    ],
)
def test_grants_stay_as_long_as_their_rule(
    firewall: Firewall, kernel: FakeKernel, after: list[NfpkdRule], kept: bool
) -> None:
    firewall.apply([SSH, WEB], OPTIONS)
    firewall.grant([GRANT])
    kernel.now += 20
    firewall.apply(after, OPTIONS)
    assert state(firewall).grants == ((GRANT._replace(expires=40),) if kept else ())


def test_a_grant_that_runs_out_meanwhile_does_not_stop_a_reload(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    firewall.grant([GRANT])

    def wait() -> None:
        kernel.now += 61

    kernel.before_apply = wait
    kernel.applied.clear()
    firewall.apply([WEB], OPTIONS)
    assert state(firewall).grants == ()
    assert len(kernel.applied) == 1


# Sessions


def test_open_sessions_go_on_behind_a_new_guard(firewall: Firewall, sessions: list[Session]) -> None:
    sessions += [Session("192.0.2.1", 5, TCP22), Session("2001:db8::1", 6, TCP22), Session("192.0.2.1", 7, TCP80)]
    firewall.apply([SSH], OPTIONS)
    assert {session for session, _ in state(firewall).sessions} == set(sessions[:2])


def test_sessions_behind_an_old_guard_are_strangers(firewall: Firewall, sessions: list[Session]) -> None:
    firewall.apply([SSH], OPTIONS)
    sessions += [Session("192.0.2.1", 5, TCP22), Session("192.0.2.1", 5, TCP80)]
    firewall.apply([SSH, WEB], OPTIONS)
    assert [session for session, _ in state(firewall).sessions] == [Session("192.0.2.1", 5, TCP80)]


def test_sessions_stay_when_the_table_is_made_anew(
    firewall: Firewall, kernel: FakeKernel, sessions: list[Session]
) -> None:
    sessions.append(Session("192.0.2.1", 5, TCP22))
    firewall.apply([SSH], OPTIONS)
    before = state(firewall).sessions
    sessions.clear()
    kernel.apply(Transaction((nft.add(Rule(TABLE, "gate", (nft.ACCEPT,), "let all in")),)))
    firewall.apply([SSH], OPTIONS)
    assert state(firewall).sessions == before


# teardown


def test_teardown_removes_the_table(firewall: Firewall) -> None:
    firewall.apply([SSH], OPTIONS)
    assert firewall.teardown() is True
    assert firewall.read_state() is None


def test_teardown_without_a_table_sends_nothing(firewall: Firewall, kernel: FakeKernel) -> None:
    assert firewall.teardown() is False
    assert kernel.applied == []


def test_a_table_that_went_meanwhile_does_not_stop_a_teardown(firewall: Firewall, kernel: FakeKernel) -> None:
    firewall.apply([SSH], OPTIONS)
    kernel.before_apply = from_outside(kernel, nft.delete_table(TABLE))
    assert firewall.teardown() is True
    assert firewall.read_state() is None
