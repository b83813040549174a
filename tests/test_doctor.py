"""Each check, by facts."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from nfpkd.doctor import checks, facts
from nfpkd.doctor.checks import Diagnosis, Finding
from nfpkd.doctor.facts import Clock, Conntrack, Facts, Inotify, Memory
from nfpkd.errors import KernelError, Problem, RulesError
from nfpkd.firewall.foreign import ChainId, Ruleset
from nfpkd.firewall.kernel import Listing, NftablesKernel
from nfpkd.firewall.nft import Json, Table
from nfpkd.firewall.state import State
from nfpkd.rules.loader import Loaded
from nfpkd.rules.model import Protocol, Rule, Service
from nfpkd.verifier.listeners import Listener
from support.fake_kernel import FakeKernel

SSH = Service(Protocol.TCP, 22)
LISTENER = Listener(port_id=4711, waiting=0, queue_full=0, socket_full=0)
STATE = State(
    intact=True,
    source_limit=20,
    queue=0,
    queue_target="nft_queue",
    gated={SSH: "ssh"},
    gated_on={},
    rejects={},
    doors=frozenset(),
    chains={},
    grants=(),
    sessions=(),
    counters={},
)
MEMORY = Memory(Path("/state"), exists=True, is_directory=True, is_writable=True, mode=0o700, owner=0)
HEALTHY = Facts(
    queue=0,
    net_admin=True,
    missing=(),
    queues=True,
    is_guarding=True,
    state=STATE,
    others=Ruleset(),
    legacy=(),
    listeners={0: LISTENER},
    comm="nfpkd",
    is_running=True,
    clock=Clock(0, 0),
    in_container=False,
    conntrack=Conntrack(1, 100),
    actions=Path("/rules"),
    rules=Loaded((Rule("ssh", (), b"PKD0", (), ()),), (), 1),
    folders=1,
    memory=MEMORY,
    inotify=Inotify(8192, 128, 0),
)


def only(findings: Iterable[Finding] | None) -> Finding:
    assert findings is not None
    (found,) = findings
    assert found.what
    assert found.remedy
    return found


def examined(**changes: Any) -> Diagnosis:
    return checks.examine(replace(HEALTHY, **changes))


def test_a_healthy_host() -> None:
    diagnosis = examined()
    assert diagnosis.findings == ()
    assert diagnosis.is_healthy
    assert checks.render_text(diagnosis) == "15 of 15 checks passed"


def test_what_cannot_be_asked_is_neither_passed_nor_failed() -> None:
    unknown = dict.fromkeys(("queues", "is_guarding", "state", "others", "is_running", "clock", "conntrack", "inotify"))
    diagnosis = examined(**unknown, net_admin=False)
    assert only(diagnosis.findings).severity == "fault"
    assert checks.render_text(diagnosis).endswith("5 of 6 checks passed; 9 could not be made")


@pytest.mark.parametrize(
    ("changes", "severity", "what", "remedy"),
    [
        ({"net_admin": False}, "fault", "CAP_NET_ADMIN", "sudo"),
        ({"missing": (KernelError("no binding", "get it"),)}, "fault", "no binding", "get it"),
        ({"queues": KernelError("cannot queue", "load it")}, "fault", "cannot queue", "load it"),
        ({"queues": False}, "note", "nft_compat", "nft_queue"),
        ({"state": replace(STATE, intact=False)}, "fault", "not as this version", "nfpkd apply"),
        ({"listeners": {}, "is_running": False}, "fault", "no verifier listens on queue 0", "nfpkd run"),
        ({"state": replace(STATE, queue=None)}, "fault", "no queue", "nfpkd apply"),
        ({"is_running": False}, "fault", "queue 0 is used by another process (process 4711, nfpkd)", "--queue"),
        ({"is_running": False, "comm": ""}, "fault", "(process 4711)", "--queue"),
        ({"queue": 7}, "note", "queue 0, not to queue 7", "--queue 7"),
        ({"listeners": {0: LISTENER._replace(queue_full=3, socket_full=4)}}, "warning", "7 packets", "--source-limit"),
        ({"legacy": ("iptables filter",)}, "note", "iptables filter", "iptables-legacy -S"),
        ({"clock": Clock(5, 0)}, "warning", "not synchronised", "timedatectl"),
        ({"clock": Clock(0, 0x40)}, "warning", "not synchronised", "chrony"),
        ({"clock": Clock(5, 0x40), "in_container": True}, "note", "not synchronised", "host"),
        ({"conntrack": None}, "warning", "conntrack is not there", "modprobe nf_conntrack"),
        ({"conntrack": Conntrack(90, 100)}, "warning", "nearly full: 90 of 100", "nf_conntrack_max=200"),
        ({"conntrack": Conntrack(100, 100)}, "fault", "is full: 100 of 100", "nf_conntrack_max=200"),
        ({"rules": Loaded((), (), 0)}, "note", "no rules in /rules", "nfpkd keygen"),
        (
            {"rules": RulesError([Problem("/rules/a.json", 3, 4, "is wrong")])},
            "fault",
            "/rules/a.json:3:4: is wrong",
            "nfpkd check --actions /rules",
        ),
        (
            {"rules": HEALTHY.rules._replace(warnings=(Problem("/rules/a.json", 1, 2, "is odd"),))},  # type: ignore[union-attr]
            "warning",
            "/rules/a.json:1:2: is odd",
            "nfpkd check",
        ),
        ({"memory": None}, "note", "not remembered", "--state-dir"),
        ({"memory": MEMORY._replace(is_directory=False)}, "fault", "/state is not a directory", "--state-dir"),
        ({"memory": MEMORY._replace(is_writable=False)}, "fault", "/state cannot be written", "owner"),
        (
            {"memory": MEMORY._replace(exists=False, is_writable=False)},
            "fault",
            "the state directory cannot be made",
            "--state-dir",
        ),
        ({"memory": MEMORY._replace(mode=0o770)}, "warning", "others can write", "chmod 700 /state"),
        ({"memory": MEMORY._replace(file_owner=5, is_held=True)}, "warning", "belongs to user 5", "chown"),
        ({"memory": MEMORY._replace(file_owner=0, is_held=False)}, "note", "does not remember", "--state-dir DIR"),
        (
            {
                "memory": MEMORY._replace(file_owner=0, is_held=True),
                "is_running": False,
                "listeners": {},
                "state": None,
            },
            "fault",
            "runs elsewhere",
            "--state-dir",
        ),
        ({"inotify": Inotify(8192, 128, errno.EMFILE)}, "warning", "128 inotify instances", "instances=256"),
        ({"inotify": Inotify(8192, 128, errno.ENOSPC)}, "warning", "8192 inotify watches", "watches=16384"),
        ({"inotify": Inotify(100, 128, 0), "folders": 90}, "warning", "90 directories", "watches=8192"),
    ],
)
def test_what_is_in_the_way_is_named_with_its_remedy(
    changes: dict[str, Any], severity: str, what: str, remedy: str
) -> None:
    diagnosis = examined(**changes)
    found = only(diagnosis.findings)
    assert found.severity == severity
    assert what in found.what
    assert remedy in found.remedy
    assert diagnosis.passed == 14
    assert diagnosis.is_healthy == (severity != "fault")


@pytest.mark.parametrize(
    "changes",
    [
        # Nothing is guarded: nobody has to listen, and conntrack comes with the table.
        {"is_guarding": False, "state": None, "listeners": {}, "is_running": False, "conntrack": None},
        {"state": replace(STATE, gated={}, queue=None), "listeners": {}, "is_running": False},
        {"conntrack": Conntrack(5, 0)},
        {"inotify": Inotify(-1, -1, 0)},
        {"memory": MEMORY._replace(exists=False, mode=0o777)},
        {"memory": MEMORY._replace(file_owner=0, is_held=None)},
    ],
)
def test_what_is_no_fault(changes: dict[str, Any]) -> None:
    assert examined(**changes).findings == ()


def test_faults_come_first_and_columns_are_aligned() -> None:
    diagnosis = examined(queues=False, net_admin=False, clock=Clock(5, 0))
    lines = checks.render_text(diagnosis).splitlines()
    assert [line[:9] for line in lines[:-1]] == ["fault    ", "warning  ", "note     "]
    assert lines[-1] == "12 of 15 checks passed"
    told = json.loads(checks.render_json(diagnosis))
    assert [finding["severity"] for finding in told["findings"]] == ["fault", "warning", "note"]
    assert told["findings"][0].keys() == {"severity", "what", "remedy"}
    assert (told["passed"], told["made"], told["unmade"]) == (12, 15, 0)


def test_a_finding_is_one_line_whatever_a_file_is_called() -> None:
    diagnosis = examined(rules=RulesError([Problem("/rules/a\nb\x1b[2J.json", 0, 0, "is wrong")]))
    assert len(checks.render_text(diagnosis).splitlines()) == 2
    assert "\x1b" not in checks.render_text(diagnosis)


def test_nothing_is_raised_where_proc_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_PROC_NET", tmp_path / "net")
    monkeypatch.setattr(facts, "_PROC_SYS", tmp_path / "sys")
    monkeypatch.setattr(facts, "has_net_admin", lambda: False)
    found = facts.gather(tmp_path / "rules", 0, tmp_path / "a" / "b")
    assert (found.conntrack, found.is_running, found.legacy, found.others) == (None, None, (), None)
    assert found.memory is not None
    assert (found.memory.path, found.memory.exists) == (tmp_path, False)
    assert not checks.examine(found).is_healthy


def test_a_table_that_cannot_be_listed_is_a_fault() -> None:
    class Broken(FakeKernel):
        def list(self, _table: Table) -> Listing | None:
            raise KernelError("refused")

    missing: list[KernelError] = []
    assert facts._read_state(Broken(), missing) == (None, None)
    assert len(missing) == 1


@pytest.mark.parametrize(
    ("names", "running"),
    [
        (["@nfpkd"], True),
        (["/run/x", "@nfpkd", "@y"], True),
        (["@x", "@nfpkd2", "/run/@nfpkd/x", ""], False),
        # Line breaks and blanks are allowed in a socket's name.
        (["@x\n   ", "@\n\n\t", "@\udcff"], False),
    ],
)
def test_a_running_nfpkd_is_known_by_its_socket_among_any_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], running: bool
) -> None:
    monkeypatch.setattr(facts, "_PROC_NET", tmp_path)
    rows = "".join(f"00000000d3a02bcc: 00000002 00000000 00010000 0001 01 1386984 {name}\n" for name in names)
    header = "Num       RefCount Protocol Flags    Type St Inode Path\n"
    (tmp_path / "unix").write_text(header + rows, errors="surrogateescape")
    assert facts._is_running() is running


class Listed:
    """Lists what it is given, whatever that is."""

    def __init__(self, **listed: list[Json]) -> None:
        self._listed = listed

    def read(self, kind: str, described: Json | None = None) -> list[Json]:
        if described is None:
            return self._listed[kind]
        if described["name"] not in self._listed:
            raise KernelError("no such thing")
        return [entry for entry in self._listed[described["name"]] if kind == "chain" or kind in entry]


INPUT = {"family": "ip", "table": "filter", "name": "input", "type": "filter", "hook": "input", "prio": 0}


def read_others(**listed: list[Json]) -> Ruleset:
    ruleset = facts._read_others(cast(NftablesKernel, Listed(**listed)))
    assert ruleset is not None
    return ruleset


@pytest.mark.parametrize("spoiled", [{"prio": "filter"}, {"hook": []}, {"family": 5}, {"name": None}, {"policy": 5}])
def test_a_chain_that_is_listed_in_an_unknown_way_is_passed_over(spoiled: Json) -> None:
    chains: list[Json] = [{"chain": INPUT | spoiled}, {"chain": INPUT}, {"chain": {}}]
    assert [base.name for base in read_others(chains=chains).bases] == ["input"]


def test_rules_and_sets_that_are_listed_in_an_unknown_way_are_passed_over() -> None:
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": "@ports"}}
    good = {"chain": "input", "handle": 7, "expr": [port, {"accept": None}]}
    spoiled: list[Json] = [{}, {"expr": 5}, {"expr": [5]}, {"chain": []}, {"handle": None}]
    rules: list[Json] = [{"rule": good | found if found else {}} for found in spoiled]
    found = read_others(chains=[{"chain": INPUT}], input=[*rules, {"rule": good}], ports=[{"set": {"elem": 5}}])
    place = Table("ip", "filter")
    assert found.rules == {ChainId(place, "input"): [good]}
    assert found.sets == {ChainId(place, "ports"): []}


def test_a_missing_library_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "nfpkd.verifier.queue", raising=False)
    monkeypatch.setitem(sys.modules, "netfilterqueue", None)
    monkeypatch.setitem(sys.modules, "nftables", None)
    gathered = facts.gather(tmp_path, 0, None)
    found = list(checks.check_libraries(gathered.missing))
    assert ["nftables" in found[0].what, "NetfilterQueue" in found[1].what] == [True, True]
    assert gathered.others is None
