"""From a packet to an open door, on a kernel in memory: what is granted, in which transaction, and what is said."""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import KernelError, StateError
from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.ruleset import Options, delete_grants
from nfpkd.firewall.state import Grant, State
from nfpkd.knock.wire import encode_knock
from nfpkd.rules.model import (
    KEY_LENGTH,
    PortRange,
    Prefixes,
    Protocol,
    Rate,
    Rule,
    Secret,
    Service,
    TimedKey,
)
from nfpkd.verifier import verifier as verifier_module
from nfpkd.verifier.replay import Changes
from nfpkd.verifier.verifier import Opened, Verifier
from support.fake_kernel import FakeKernel

WALL = 1_700_000_000
KNOCK_PORT = 40000
V4, V6 = "192.0.2.77", "2001:db8:1:2:3:4:5:6"
SSH = Service(Protocol.TCP, 22)
OFTEN = Rate(1000, 1, 1000)
TCP_SEGMENT = bytes([0x45, *bytes(8), 6, *bytes(10)]) + bytes(20)


def a_key(text: str) -> TimedKey:
    return TimedKey(Secret(text.encode().ljust(KEY_LENGTH, b"\0")))


def a_rule(name: str = "ssh", key: str = "k", ports: Iterable[int] = (22,), **more: Any) -> Rule:
    fields = {"protocols": (Protocol.TCP,), "rate": OFTEN, **more}
    return Rule(name, (a_key(key),), b"PKD0", tuple(PortRange(port, port) for port in ports), **fields)


def a_packet(source: str, payload: bytes, port: int = KNOCK_PORT) -> bytes:
    """Return a whole UDP datagram; the verifier does not look at checksums."""
    datagram = struct.pack(">HHHH", 1234, port, 8 + len(payload), 0) + payload
    address = ipaddress.ip_address(source)
    if address.version == 4:
        length = 20 + len(datagram)
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, address.packed, bytes(4))
    else:
        header = struct.pack(">IHBB16s16s", 6 << 28, len(datagram), 17, 64, address.packed, bytes(16))
    return header + datagram


class Clocks:
    """Stands in for the module time: both clocks stand still until they are moved."""

    def __init__(self) -> None:
        self.passed = 0.0

    def time(self) -> float:
        return WALL + self.passed

    def monotonic(self) -> float:
        return 5000.0 + self.passed


class Bench:
    """A verifier on a kernel in memory, and a client that knocks."""

    def __init__(self, clocks: Clocks) -> None:
        self.kernel = FakeKernel()
        self.firewall = Firewall(self.kernel, list)
        self.clocks = clocks
        self.told: list[Opened] = []
        self.when_told: Callable[[], None] = lambda: None
        self.verifier = self.restart()
        self._knocks = 0

    def restart(self) -> Verifier:
        """Return a verifier that knows nothing but what the kernel holds."""
        self.verifier = Verifier(self.firewall, Options(), [self])
        return self.verifier

    def opened(self, knock: Opened) -> None:
        self.when_told()
        self.told.append(knock)

    def wait(self, seconds: float) -> None:
        self.clocks.passed += seconds
        self.kernel.now += seconds

    def knock(self, key: str = "k", source: str = V4, interface: int = 1) -> bool:
        """Hand in a knock, and return whether it went on."""
        self._knocks += 1
        random = self._knocks.to_bytes(12, "big")
        payload = encode_knock(a_key(key).secret.reveal(), b"PKD0", KNOCK_PORT, int(self.clocks.time()), random)
        return self.verifier.handle(a_packet(source, payload), interface)

    def open(self, key: str = "k", source: str = V4, interface: int = 1) -> None:
        """Knock, and let the wake-up end."""
        assert not self.knock(key, source, interface)
        self.verifier.settle()

    @property
    def state(self) -> State:
        state = self.firewall.read_state()
        assert state is not None
        return state

    @property
    def grants(self) -> set[Grant]:
        assert len(self.state.grants) == len(set(self.state.grants))
        return set(self.state.grants)

    @property
    def left(self) -> dict[str, int]:
        """For how many seconds each rule's grants are still good."""
        return {grant.rule: grant.expires for grant in self.grants}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clocks = Clocks()
    monkeypatch.setattr(verifier_module, "time", clocks)
    return Bench(clocks)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, dict[str, object]]]]:
    caplog.set_level(logging.DEBUG, "nfpkd")
    return lambda: [(record.event, record.fields) for record in caplog.records]  # type: ignore[attr-defined]


Events = Callable[[], list[tuple[str, dict[str, object]]]]


def grant(source: str, service: Service = SSH, rule: str = "ssh", window: int = 60, **more: Any) -> Grant:
    return Grant(source, service, rule, window, window, **more)


@pytest.mark.parametrize("source", [V4, V6])
def test_a_knock_opens_its_rules_ports_to_its_source(bench: Bench, source: str) -> None:
    rule = a_rule(ports=(22, 23, 22), protocols=(Protocol.TCP, Protocol.UDP), window=7)
    bench.verifier.enforce((rule,))
    assert bench.verifier.rules == (rule,)
    bench.open(source=source)
    expected = {Service(protocol, port) for protocol in (Protocol.TCP, Protocol.UDP) for port in (22, 23)}
    assert bench.grants == {grant(source, service, window=7) for service in expected}
    assert bench.told == [Opened(rule, source)]


@pytest.mark.parametrize(
    ("fields", "source", "expected"),
    [
        ({"prefixes": Prefixes(24, 64)}, V4, grant("192.0.2.0", door=Door(4, 24))),
        ({"prefixes": Prefixes(24, 64)}, V6, grant("2001:db8:1:2::", door=Door(6, 64))),
        ({"prefixes": Prefixes(ipv6=64)}, V4, grant(V4)),
        ({"prefixes": Prefixes(ipv4=24)}, V6, grant(V6)),
        ({"prefixes": Prefixes(31, 127)}, V4, grant("192.0.2.76", door=Door(4, 31))),
        ({"extend": True, "window": 30}, V4, grant(V4, window=30, door=Door(4, 32, Mode.EXTEND, 30))),
        ({"extend": True}, V6, grant(V6, door=Door(6, 128, Mode.EXTEND, 60))),
        ({"once": True}, V4, grant(V4, door=Door(4, 32, Mode.ONCE))),
        ({"once": True, "prefixes": Prefixes(8, 16)}, V6, grant("2001::", door=Door(6, 16, Mode.ONCE))),
    ],
)
def test_a_grant_has_the_door_that_its_rule_asks_for(
    bench: Bench, fields: dict[str, Any], source: str, expected: Grant
) -> None:
    bench.verifier.enforce((a_rule(**fields),))
    bench.open(source=source)
    assert bench.grants == {expected}


def test_a_rule_for_interfaces_opens_on_each_of_them(bench: Bench) -> None:
    name = socket.if_indextoname(1)
    bench.verifier.enforce((a_rule(interfaces=(name, "eth7"), prefixes=Prefixes(24)),))
    bench.open(interface=1)
    door = Door(4, 24, by_interface=True)
    assert bench.grants == {grant("192.0.2.0", door=door, interface=found) for found in (name, "eth7")}


@pytest.mark.parametrize("number", [0, 1, 2**31 - 1])
def test_a_knock_by_an_interface_that_is_not_the_rules_or_gone_is_none(bench: Bench, number: int) -> None:
    bench.verifier.enforce((a_rule(interfaces=("not-this-one",)),))
    assert bench.knock(interface=number)
    assert bench.grants == set()


def test_a_rule_without_ports_opens_none_and_is_told_of(bench: Bench) -> None:
    rule = a_rule(ports=())
    bench.verifier.enforce((rule,))
    before = len(bench.kernel.applied)
    bench.open()
    assert len(bench.kernel.applied) == before
    assert bench.told == [Opened(rule, V4)]


def test_one_knock_opens_all_rules_with_its_key(bench: Bench) -> None:
    rules = (a_rule("a", ports=(1,)), a_rule("b", ports=(2,), window=9), a_rule("c", "other", ports=(3,)))
    bench.verifier.enforce(rules)
    bench.open()
    assert bench.grants == {grant(V4, Service(Protocol.TCP, 1), "a"), grant(V4, Service(Protocol.TCP, 2), "b", 9)}
    assert bench.told == [Opened(rules[0], V4), Opened(rules[1], V4)]


def test_all_knocks_of_one_wake_up_are_one_transaction(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(), a_rule("web", "other", ports=(80, 443), extend=True)))
    before = len(bench.kernel.applied)
    for source in (V4, V6, V4, "192.0.2.78"):
        assert not bench.knock(source=source)
    assert not bench.knock("other")
    assert bench.grants == set()
    bench.verifier.settle()
    assert len(bench.kernel.applied) == before + 1
    assert {(found.source, found.service.port) for found in bench.grants} == {
        (V4, 22), (V6, 22), ("192.0.2.78", 22), (V4, 80), (V4, 443)
    }  # fmt: skip
    assert len(bench.told) == 5


def test_nothing_accepted_is_no_transaction(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(),))
    before = len(bench.kernel.applied)
    bench.verifier.settle()
    bench.verifier.handle(TCP_SEGMENT, 1)
    assert len(bench.kernel.applied) == before


@pytest.mark.parametrize(
    "packet",
    [TCP_SEGMENT, b"", b"\x45", a_packet(V4, b""), a_packet(V4, b"PKD0" + bytes(52)), a_packet(V6, bytes(56))],
)
def test_a_held_packet_goes_on_after_what_was_knocked_for_in_front_of_it(bench: Bench, packet: bytes) -> None:
    bench.verifier.enforce((a_rule(),))
    assert not bench.knock()
    assert bench.grants == set()
    assert bench.verifier.handle(packet, 1)
    assert bench.grants == {grant(V4)}
    # For what is told, and logged, no packet waits.
    assert bench.told == []
    bench.verifier.settle()
    assert len(bench.told) == 1


def test_exactly_what_is_no_authentic_knock_goes_on(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(rate=Rate(1, 5, 1)), a_rule("far", "l", sources=(ipaddress.ip_network(V6),))))
    right = encode_knock(a_key("k").secret.reveal(), b"PKD0", KNOCK_PORT, WALL, bytes(12))
    late = encode_knock(a_key("k").secret.reveal(), b"PKD0", KNOCK_PORT, WALL - 99, bytes(12))
    assert not bench.verifier.handle(a_packet(V4, right), 1)
    # Refused, and consumed all the same.
    assert not bench.verifier.handle(a_packet(V4, right), 1)
    assert not bench.verifier.handle(a_packet(V4, late), 1)
    assert not bench.knock()
    assert not bench.knock("l")
    # Ordinary packets.
    assert bench.verifier.handle(a_packet(V4, right, KNOCK_PORT + 1), 1)
    assert bench.verifier.handle(a_packet(V4, right[:-1]), 1)
    assert bench.verifier.handle(a_packet(V4, right + b"\0"), 1)
    assert bench.knock("a key of no rule")


@given(st.binary(max_size=120) | st.binary(max_size=70).map(lambda payload: a_packet(V4, payload)))
def test_any_bytes_go_on(packet: bytes) -> None:
    firewall = Firewall(FakeKernel(), list)
    verifier = Verifier(firewall, Options())
    verifier.enforce((a_rule(),))
    assert verifier.handle(packet, 1)
    state = firewall.read_state()
    assert state is not None
    assert state.grants == ()


def test_what_became_of_each_knock_is_said(bench: Bench, events: Events) -> None:
    sources = (ipaddress.ip_network("198.51.100.0/24"),)
    dated = TimedKey(a_key("old").secret, None, WALL - 1), TimedKey(a_key("new").secret, WALL + 1)
    rules = (a_rule(rate=Rate(1, 5, 1)), a_rule("near", "near", sources=sources), replace(a_rule("dated"), keys=dated))
    bench.verifier.enforce(rules)
    bench.open()
    bench.knock()
    bench.knock("near")
    bench.knock("old")
    bench.knock("new")
    bench.verifier.settle()
    bench.knock("nobody's")
    refused = [
        ("ssh", "rate_limited"), ("near", "source_not_allowed"), ("dated", "key_expired"),
        ("dated", "key_not_yet_valid"),
    ]  # fmt: skip
    assert events() == [
        ("knock_accepted", {"rule": "ssh", "source": V4, "opens": "22/tcp", "seconds": 60}),
        *[("knock_refused", {"rule": rule, "source": V4, "reason": reason}) for rule, reason in refused],
        ("not_a_knock", {"source": V4, "port": KNOCK_PORT}),
    ]


def test_translated_ports_are_found_out_now_and_then(bench: Bench, events: Events) -> None:
    bench.verifier.enforce((a_rule(),))
    for number in range(12):
        payload = encode_knock(a_key("k").secret.reveal(), b"PKD0", KNOCK_PORT + 1, WALL + number, bytes(12))
        assert bench.verifier.handle(a_packet(V4, payload), 1)
        bench.wait(1)
    found = [fields for event, fields in events() if event == "knock_refused"]
    assert found == [{"rule": "ssh", "source": V4, "reason": "port_translated"}] * 2


def test_a_replay_and_a_wrong_clock_are_said(bench: Bench, events: Events) -> None:
    bench.verifier.enforce((a_rule(),))
    for offset in (0, 0, -40):
        payload = encode_knock(a_key("k").secret.reveal(), b"PKD0", KNOCK_PORT, WALL + offset, bytes(12))
        bench.verifier.handle(a_packet(V6, payload), 1)
    bench.verifier.settle()
    assert [fields["reason"] for event, fields in events() if event == "knock_refused"] == ["replayed", "clock_off"]


class Disk:
    """A store that notes how many grants there were at each step; "broken" in it breaks it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.steps: list[tuple[str, int]] = []
        self.urgent: list[bool] = []
        self.broken = ""

    def save(self, changes: Changes) -> None:
        self.urgent.append(changes.at_once)
        self._do("save")

    def flush(self) -> None:
        self._do("flush")

    def _do(self, step: str) -> None:
        if step == self.broken:
            raise StateError("the disk is gone", "bring it back")
        self.steps.append((step, len(self._bench.grants)))


def test_a_knock_is_kept_before_it_opens_and_written_through_before_it_is_told(bench: Bench, events: Events) -> None:
    disk = Disk(bench)
    bench.when_told = lambda: disk.steps.append(("told", len(events())))
    verifier = bench.verifier = Verifier(bench.firewall, Options(), [bench], store=disk)
    verifier.enforce((a_rule(),))
    assert not bench.knock()
    verifier.settle()
    assert disk.steps == [("save", 0), ("flush", 1), ("told", 1)]
    assert disk.urgent == [False]


def test_a_knock_that_would_be_good_after_a_reboot_does_not_wait(bench: Bench) -> None:
    disk = Disk(bench)
    verifier = bench.verifier = Verifier(bench.firewall, Options(), [bench], store=disk)
    verifier.enforce((a_rule(), a_rule("any-clock", "any", skew=None)))
    for key, ahead in (("k", 0), ("k", 5), ("any", 0)):
        payload = encode_knock(a_key(key).secret.reveal(), b"PKD0", KNOCK_PORT, WALL + ahead, bytes(12))
        assert not verifier.handle(a_packet(V4, payload), 1)
        verifier.settle()
    assert disk.urgent == [False, True, True]


def test_a_disk_that_does_not_write_through_is_told(bench: Bench, events: Events) -> None:
    disk = Disk(bench)
    disk.broken = "flush"
    verifier = bench.verifier = Verifier(bench.firewall, Options(), [bench], store=disk)
    verifier.enforce((a_rule(),))
    bench.open()
    assert [event for event, _ in events()] == ["not_kept", "knock_accepted"]
    assert len(bench.grants) == 1


def test_listeners_are_told_once_the_door_is_open(bench: Bench) -> None:
    seen = []
    bench.when_told = lambda: seen.append(len(bench.grants))
    bench.verifier.enforce((a_rule(),))
    bench.knock()
    bench.knock(source=V6)
    assert bench.told == []
    bench.verifier.settle()
    assert seen == [2, 2]


def test_a_grant_that_the_kernel_refuses_is_said_and_nobody_is_told(bench: Bench, events: Events) -> None:
    rule = a_rule()
    bench.verifier.enforce((rule,))
    bench.knock()
    bench.knock(source=V6)
    bench.kernel.fail_next()
    bench.verifier.settle()
    assert bench.told == []
    assert bench.grants == set()
    assert [(event, fields["source"]) for event, fields in events()] == [("grant_failed", V4), ("grant_failed", V6)]
    # The next knock is not burdened by it.
    bench.open()
    assert bench.told == [Opened(rule, V4)]


def test_a_table_removed_from_outside_is_put_back_with_the_grant(bench: Bench, events: Events) -> None:
    rule = a_rule()
    bench.verifier.enforce((rule,))
    bench.firewall.teardown()
    bench.open()
    assert bench.grants == {grant(V4)}
    assert SSH in bench.state.gated
    assert bench.told == [Opened(rule, V4)]
    assert [event for event, _ in events()] == ["repaired", "knock_accepted"]


def test_a_table_that_cannot_be_put_back_is_said(bench: Bench, events: Events) -> None:
    bench.verifier.enforce((a_rule(),))
    bench.firewall.teardown()
    bench.kernel.fail_next(100)
    bench.open()
    assert bench.told == []
    assert [event for event, _ in events()] == ["grant_failed"]


def test_rules_that_the_kernel_refuses_leave_those_of_before(bench: Bench) -> None:
    before = (a_rule(),)
    bench.verifier.enforce(before)
    bench.kernel.fail_next(100)
    with pytest.raises(KernelError):
        bench.verifier.enforce((a_rule("web", "other", ports=(80,)),))
    bench.kernel.fail_next(0)
    bench.kernel._failures.clear()
    assert bench.verifier.rules == before
    assert bench.knock("other")
    bench.open()
    assert bench.grants == {grant(V4)}


class NeverRead(Firewall):
    """A firewall whose state cannot be read, once it was applied."""

    def read_state(self) -> State | None:
        if self.told_to_fail:
            raise KernelError("the test said so")
        return super().read_state()

    told_to_fail = False

    def apply(self, *arguments: Any, **more: Any) -> Any:
        self.told_to_fail = False
        try:
            return super().apply(*arguments, **more)
        finally:
            self.told_to_fail = True


def test_rules_are_in_force_altogether_or_not_at_all() -> None:
    """A failure behind the transaction must not leave a kernel with new rules and a verifier with old ones."""
    firewall = NeverRead(FakeKernel(), list)
    verifier = Verifier(firewall, Options())
    shared = (a_rule("a"), a_rule("b", "other", window=5))
    verifier.enforce(shared)
    assert verifier.rules == shared


# Rules that share a port


@pytest.mark.parametrize("first", ["long", "short"])
def test_a_shorter_window_never_shortens_a_longer_one(bench: Bench, first: str) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    for key in (first, {"long": "short", "short": "long"}[first]):
        bench.open(key)
    assert bench.left == {"long": 600}
    assert [knock.rule.name for knock in bench.told] == [first, {"long": "short", "short": "long"}[first]]


@pytest.mark.parametrize("order", [("long", "short"), ("short", "long"), ("long", "short", "long", "short")])
def test_the_longest_window_of_one_wake_up_counts(bench: Bench, order: tuple[str, ...]) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    for key in order:
        bench.knock(key)
    bench.verifier.settle()
    assert bench.left == {"long": 600}


def test_a_window_that_ends_later_takes_over(bench: Bench) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    bench.open("long")
    bench.wait(589)
    bench.open("short")
    assert bench.left == {"long": 11}
    bench.wait(2)
    bench.open("short")
    assert bench.left == {"short": 10}
    bench.open("long")
    assert bench.left == {"long": 600}


def test_a_longer_window_is_renewed_by_its_own_rule(bench: Bench) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    bench.open("long")
    bench.wait(100)
    bench.open("long")
    assert bench.left == {"long": 600}


def test_only_the_shared_port_stays_with_the_longer_window(bench: Bench) -> None:
    bench.verifier.enforce((a_rule("long", "l", window=600), a_rule("short", "s", ports=(22, 23), window=10)))
    bench.open("l")
    bench.open("s")
    assert {(found.service.port, found.rule, found.expires) for found in bench.grants} == {
        (22, "long", 600), (23, "short", 10)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "source"),
    [({"prefixes": Prefixes(24, 64)}, V4), ({"extend": True}, V4), ({}, "192.0.2.78"), ({}, V6)],
    ids=["another width", "another kind", "a neighbour", "another family"],
)
def test_other_doors_are_not_in_each_others_way(bench: Bench, fields: dict[str, Any], source: str) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600, **fields), a_rule("short", "short", window=10)))
    bench.open("long")
    bench.open("short", source)
    assert bench.left == {"long": 600, "short": 10}


def test_a_shorter_window_shortens_nothing_that_was_there_before_the_start(bench: Bench) -> None:
    rules = (a_rule("long", "long", window=600), a_rule("short", "short", window=10))
    bench.verifier.enforce(rules)
    bench.open("long")
    bench.wait(100)
    bench.restart().enforce(rules)
    bench.open("short")
    assert bench.left == {"long": 500}


def test_a_shorter_window_shortens_nothing_when_a_reload_makes_a_port_shared(bench: Bench) -> None:
    long = a_rule("long", "long", window=600)
    bench.verifier.enforce((long,))
    bench.open("long")
    bench.verifier.enforce((long, a_rule("short", "short", window=10)))
    bench.open("short")
    assert bench.left == {"long": 600}


def test_a_grant_without_end_is_an_admins_and_stays(bench: Bench) -> None:
    rules = (a_rule("long", "long", window=600), a_rule("short", "short", window=10))
    bench.verifier.enforce(rules)
    bench.firewall.grant([Grant(V4, SSH, "long", 0, 0)])
    bench.restart().enforce(rules)
    bench.open("short")
    assert bench.grants == {Grant(V4, SSH, "long", 0, 0)}


def test_a_grant_that_went_with_its_rule_is_in_nobodys_way(bench: Bench) -> None:
    long = a_rule("long", "long", window=600)
    others = (a_rule("short", "short", window=10), a_rule("third", "third", window=20))
    bench.verifier.enforce((long, *others))
    bench.open("long")
    bench.verifier.enforce(others)
    assert bench.grants == set()
    bench.open("short")
    assert bench.left == {"short": 10}


def test_a_grant_that_was_used_up_is_in_nobodys_way(bench: Bench) -> None:
    """The kernel deletes a grant for one connection with that connection, and tells nobody."""
    rules = (a_rule("long", "long", window=600, once=True), a_rule("short", "short", window=10, once=True))
    bench.verifier.enforce(rules)
    bench.open("long")
    remove_all_grants(bench)
    bench.open("short")
    assert bench.left == {"short": 10}


def test_a_grant_that_an_admin_took_away_is_in_nobodys_way(bench: Bench) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    bench.open("long")
    remove_all_grants(bench)
    bench.open("short")
    assert bench.left == {"short": 10}


def test_a_longer_window_outlives_a_table_removed_from_outside(bench: Bench, events: Events) -> None:
    bench.verifier.enforce((a_rule("long", "long", window=600), a_rule("short", "short", window=10)))
    bench.open("long")
    bench.wait(100)
    bench.firewall.teardown()
    bench.open("short")
    assert bench.left == {"long": 500}
    assert "repaired" in [event for event, _ in events()]


def remove_all_grants(bench: Bench) -> None:
    bench.kernel.apply(delete_grants(bench.state.grants))


# What another tool destroyed


def test_a_repair_brings_back_what_is_left_of_each_grant(bench: Bench, events: Events) -> None:
    bench.verifier.enforce((a_rule(), a_rule("web", "web", ports=(80,), window=10, extend=True)))
    bench.open()
    bench.wait(5)
    bench.open("web")
    bench.wait(7)
    bench.firewall.teardown()
    assert bench.verifier.repair("delete table", "nft", 7, lost=True)
    assert bench.left == {"ssh": 48, "web": 3}
    assert events()[-1] == ("repaired", {"seen": "delete table", "by": "nft", "pid": 7})
    assert not bench.verifier.repair("delete table", "nft", 7, lost=True)


def test_grants_from_before_the_start_are_brought_back_too(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(),))
    bench.open()
    bench.restart().enforce((a_rule(),))
    bench.firewall.teardown()
    bench.verifier.repair("delete table")
    assert bench.left == {"ssh": 60}


def test_a_reload_that_comes_before_the_repair_loses_nothing(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(), a_rule("web", "web", ports=(80,))))
    bench.open()
    bench.open("web")
    bench.firewall.teardown()
    bench.verifier.enforce((a_rule(),))
    assert bench.left == {"ssh": 60}


def test_grants_come_back_into_a_table_that_somebody_else_made_again(bench: Bench) -> None:
    rules = (a_rule(prefixes=Prefixes(24)),)
    bench.verifier.enforce(rules)
    bench.open()
    bench.firewall.teardown()
    bench.firewall.apply(rules, Options())
    bench.verifier.repair("delete table", lost=True)
    assert bench.left == {"ssh": 60}


@pytest.mark.parametrize("looked", [True, False])
def test_what_an_admin_took_away_does_not_come_back(bench: Bench, looked: bool) -> None:
    bench.verifier.enforce((a_rule(),))
    bench.open()
    bench.firewall.revoke("ssh")
    bench.verifier.note_taken({"grants4"})
    if looked:
        bench.verifier.repair("delete element grants4")
    bench.firewall.teardown()
    bench.verifier.repair("delete table", lost=True)
    assert bench.grants == set()
    assert SSH in bench.state.gated


def test_a_grant_for_one_connection_does_not_come_back(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(once=True),))
    bench.open()
    bench.firewall.teardown()
    bench.verifier.repair("delete table", lost=True)
    assert bench.grants == set()


def test_a_sliding_grant_comes_back_as_long_as_traffic_had_made_it(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(extend=True),))
    bench.open()
    bench.wait(50)
    # As a packet would.
    bench.firewall.grant([found._replace(expires=60) for found in bench.grants])
    bench.verifier.follow_renewals()
    bench.wait(30)
    bench.firewall.teardown()
    bench.verifier.repair("delete table", lost=True)
    assert bench.left == {"ssh": 30}


def test_only_sliding_grants_are_looked_after(bench: Bench) -> None:
    bench.verifier.enforce((a_rule(),))
    bench.open()
    bench.kernel.list = None  # type: ignore[method-assign, assignment]
    bench.verifier.follow_renewals()


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 30)), max_size=12))
def test_whoever_knocked_has_their_whole_window(steps: list[tuple[str, int]]) -> None:
    """Whatever else is knocked for in between, on a port that three rules share."""
    windows = {"a": 10, "b": 25, "c": 60}
    with pytest.MonkeyPatch.context() as patch:
        clocks = Clocks()
        patch.setattr(verifier_module, "time", clocks)
        bench = Bench(clocks)
        bench.verifier.enforce(tuple(a_rule(name, name, window=window) for name, window in windows.items()))
        end = 0.0
        for name, wait in steps:
            bench.wait(wait)
            bench.open(name)
            end = max(end, clocks.passed + windows[name])
            assert [found.expires for found in bench.grants] == [end - clocks.passed]
