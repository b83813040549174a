from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.demo.namespaces import Namespace
from nfpkd.errors import KernelError, NetlinkError
from nfpkd.firewall import nft
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.monitor import (
    UNKNOWN,
    Change,
    Collector,
    End,
    TableMonitor,
    Touch,
    parse_notifications_untrusted,
)
from nfpkd.firewall.nft import Table, Transaction
from nfpkd.firewall.ruleset import Options
from support.network import eventually

HOUSE = Table("inet", "house")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, *attributes: bytes, family: int = 1, sender: int = 77, subsystem: int = 10) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8 | kind, 0, 1, sender) + body


def end(pid: int, process: str) -> bytes:
    attributes = attribute(1, bytes(4)), attribute(2, struct.pack(">I", pid)), attribute(3, process.encode() + b"\0")
    return message(15, *attributes, family=0)


HOUSE_NAME = attribute(1, b"house\0")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (message(2, HOUSE_NAME), [Touch(HOUSE, "delete table", "house", 77)]),
        (message(8, HOUSE_NAME, attribute(2, b"door\0")), [Touch(HOUSE, "delete rule", "door", 77)]),
        (
            message(5, HOUSE_NAME, attribute(2, bytes(8)), attribute(3, b"door\0")),
            [Touch(HOUSE, "delete chain", "door", 77)],
        ),
        (message(14, HOUSE_NAME, attribute(2, b"s\0"), sender=0), [Touch(HOUSE, "delete element", "s", 0)]),
        (message(14, HOUSE_NAME) + end(9, "nft"), [Touch(HOUSE, "delete element", "", 77), End(9, "nft")]),
        (end(4242, "n\xfct"), [End(4242, "n\xfct")]),
        # Of other families, messages and subsystems.
        (message(2, HOUSE_NAME, family=2), []),
        (message(99, HOUSE_NAME), []),
        (message(2, HOUSE_NAME, subsystem=1), []),
        # Padding behind a name whose length is no multiple of four, and a nested flag.
        (message(0, attribute(0x8001, b"h\0")), [Touch(Table("inet", "h"), "add table", "h", 77)]),
    ],
)
def test_messages_are_read(data: bytes, found: list[Touch | End]) -> None:
    assert list(parse_notifications_untrusted(data)) == found


@pytest.mark.parametrize(
    "data",
    [
        bytes(15),
        bytes(16),
        message(2, HOUSE_NAME)[:-1],
        struct.pack("=IHHII", 16, 10 << 8, 0, 0, 0),
        message(2),
        message(2, struct.pack("=HH", 3, 1)),
        message(2, struct.pack("=HH", 9, 1)),
        message(15, family=0),
        message(15, attribute(2, b"\1"), family=0),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(NetlinkError):
        list(parse_notifications_untrusted(data))


_ATTRIBUTES = st.builds(attribute, st.integers(0, 5) | st.integers(0, 0xFFFF), st.binary(max_size=12))
_MESSAGES = st.builds(
    lambda kind, attributes, family: message(kind, *attributes, family=family),
    st.integers(0, 30),
    st.lists(_ATTRIBUTES, max_size=4),
    st.integers(0, 2),
)


@given(st.binary(max_size=200) | st.lists(_MESSAGES | st.binary(max_size=30), max_size=4).map(b"".join))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(NetlinkError):
        for change in Collector(HOUSE).add(parse_notifications_untrusted(data)):
            assert change.describe()


def test_what_one_transaction_did_to_the_table_is_one_change() -> None:
    collector = Collector(HOUSE)
    told: list[Touch | End] = [
        Touch(HOUSE, "delete rule", "door", 77),
        Touch(Table("inet", "other"), "delete table", "other", 77),
        Touch(HOUSE, "delete element", "by nobody", 0),
    ]
    assert list(collector.add(told)) == []
    # It goes on in another datagram, and another transaction does not concern the table.
    told = [Touch(HOUSE, "delete set", "__set0", 77), Touch(HOUSE, "add rule", "door", 77), End(9, "nft"), End(5, "x")]
    [change] = collector.add(told)
    seen = {("delete rule", "door"), ("delete set", "__set0"), ("add rule", "door")}
    assert change == Change(9, "nft", frozenset(seen))
    assert change.describe() == "add rule door, delete rule door"
    assert change.did("delete rule") == {"door"}


def test_a_large_transaction_is_remembered_in_part_but_for_what_counts() -> None:
    touches: list[Touch | End] = [Touch(HOUSE, "delete rule", f"chain{i}", 77) for i in range(10_000)]
    told = [*touches, Touch(HOUSE, "delete table", "house", 77), End(9, "nft")]
    [change] = Collector(HOUSE).add(told)
    assert len(change.seen) <= 300
    assert change.describe() == "delete table"
    [change] = Collector(HOUSE).add([*touches, End(9, "nft")])
    assert change.describe() == (
        "delete rule chain0, delete rule chain1, delete rule chain10, delete rule chain100, delete rule chain101, ..."
    )


def test_what_is_incomplete_can_be_forgotten() -> None:
    collector = Collector(HOUSE)
    list(collector.add([Touch(HOUSE, "delete table", "house", 77)]))
    collector.reset()
    assert list(collector.add([End(9, "nft")])) == []


# Real notifications


@pytest.fixture
def monitor(real_kernel: NftablesKernel) -> Iterator[TableMonitor]:  # noqa: ARG001  (the test runs inside its namespace)
    made = TableMonitor(HOUSE)
    yield made
    made.close()


def add(*more: nft.Declaration) -> Transaction:
    return Transaction((nft.add_table(HOUSE), *map(nft.add, more)))


def run_nft(*words: str) -> int:
    """Run nft and return its process's number."""
    with subprocess.Popen(["nft", *words]) as process:
        assert process.wait() == 0
        return process.pid


@pytest.mark.netns
def test_changes_by_others_are_heard_and_who_made_them(monitor: TableMonitor) -> None:
    pid = run_nft("add table inet house; add set inet house s { type ipv4_addr; }; add chain inet house door")
    [change] = monitor.read()
    assert change == Change(pid, "nft", frozenset({("add table", "house"), ("add set", "s"), ("add chain", "door")}))
    run_nft("add element inet house s { 192.0.2.1 }")
    run_nft("add rule inet house door drop")
    run_nft("flush set inet house s")
    run_nft("flush chain inet house door")
    run_nft("delete set inet house s")
    run_nft("delete chain inet house door")
    assert [found.describe() for found in monitor.read()] == [
        "add element s", "add rule door", "delete element s", "delete rule door", "delete set s", "delete chain door"
    ]  # fmt: skip
    run_nft("flush ruleset")
    assert [found.describe() for found in monitor.read()] == ["delete table"]
    assert monitor.read() == []


@pytest.mark.netns
def test_other_tables_do_not_concern_it(monitor: TableMonitor) -> None:
    run_nft("add table inet other; add chain inet other door; add table ip house; add chain ip house door")
    run_nft("list ruleset")
    assert monitor.read() == []


@pytest.mark.netns
def test_its_own_process_is_not_heard(monitor: TableMonitor, real_kernel: NftablesKernel) -> None:
    firewall = Firewall(real_kernel, list)
    real_kernel.apply(add(nft.Chain(HOUSE, "door")))
    firewall.leave_mark(HOUSE)
    ours = TableMonitor(Table("inet", "nfpkd"))
    with contextlib.closing(ours):
        # On some kernels the queue rule takes a way of its own.
        firewall.apply([], Options())
        assert ours.read() == []
    assert monitor.read() == []


@pytest.mark.netns
def test_it_learns_what_the_kernel_calls_its_process(monitor: TableMonitor, real_kernel: NftablesKernel) -> None:
    monitor._own_pid = 0
    monitor.learn_own_pid(Firewall(real_kernel, list).leave_mark)
    assert monitor._own_pid == os.getpid()
    assert real_kernel._ask({"list": {"tables": None}})[1:] == []


_IN_A_CONTAINER = """
import os
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.monitor import TableMonitor
from nfpkd.firewall.ruleset import Options
firewall, monitor = Firewall(NftablesKernel(), list), TableMonitor(TABLE)
monitor.learn_own_pid(firewall.leave_mark)
firewall.apply([], Options())
print(os.getpid(), monitor.read())
"""


@pytest.mark.netns
def test_in_a_container_it_knows_its_own_changes_too(namespace: Namespace) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-P", "-c", _IN_A_CONTAINER]
    assert namespace.run(*command) == "1 []\n"


@pytest.mark.netns
def test_what_runs_out_is_told_to_nobody(monitor: TableMonitor, real_kernel: NftablesKernel) -> None:
    run_nft("add table inet house; add set inet house s { type ipv4_addr; timeout 100ms; gc-interval 100ms; }")
    run_nft("add element inet house s { 192.0.2.1, 192.0.2.2 }")
    assert len(monitor.read()) == 2
    assert eventually(lambda: "elem" not in str(real_kernel.list(HOUSE)))
    run_nft("add element inet house s { 192.0.2.3 }")
    assert [change.describe() for change in monitor.read()] == ["add element s"]


@pytest.mark.netns
def test_lost_notifications_are_noticed(monitor: TableMonitor, real_kernel: NftablesKernel) -> None:
    real_kernel.apply(add(nft.Set(HOUSE, "s", "ipv4_addr")))
    addresses = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(40_000)]
    real_kernel.apply(Transaction((nft.add_elements(HOUSE, "s", addresses),)))
    found: list[Change] = []
    for _ in range(1000):
        found += monitor.read()
    assert UNKNOWN in found
    assert UNKNOWN.describe() == "unknown: notifications were lost"


def test_without_privileges_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, *_: object) -> None: ...
        def setsockopt(self, *_: object) -> None: ...
        def close(self) -> None: ...
        def bind(self, _: object) -> None:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(KernelError, match="Operation not permitted"):
        TableMonitor(HOUSE)
