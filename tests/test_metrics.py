from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.firewall.doors import Door
from nfpkd.firewall.state import Grant, Place, Session, State, Traffic
from nfpkd.instance import Report
from nfpkd.metrics import render_prometheus
from nfpkd.rules.model import Protocol, Service
from nfpkd.verifier.listeners import Listener

SSH, DNS = Service(Protocol.TCP, 22), Service(Protocol.UDP, 53)
LISTENERS = {7: Listener(port_id=4711, waiting=2, queue_full=3, socket_full=4)}
REPORT = Report("the last reload failed; guarding by 3 rules from before", stale=True)
STATE = State(
    intact=True,
    source_limit=20,
    queue=7,
    queue_target="nft_queue",
    gated={SSH: "ssh"},
    gated_on={Place("eth0", SSH): "ssh", Place("eth0", DNS): "names"},
    rejects={},
    doors=frozenset(),
    chains={},
    grants=(
        Grant("192.0.2.1", SSH, "ssh", 60, 42),
        Grant("192.0.2.1", DNS, "ssh", 60, 42),
        Grant("2001:db8::", SSH, "ssh", 60, 42, Door(6, 64)),
        Grant("192.0.2.9", DNS, "names", 60, 42),
    ),
    sessions=((Session("2001:db8::1", 50000, SSH), 99),),
    counters={
        name: Traffic(n, 64 * n) for n, name in enumerate(("knocks", "limited", "held", "admitted", "refused"), 1)
    },
)

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9]+(?:\.[0-9]+)?)")
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = frozenset[tuple[str, str]]


def unescape(text: str) -> str:
    return re.sub(r"\\.", lambda found: UNESCAPED[found[0]], text)


def parse(text: str) -> dict[tuple[str, Labels], int]:
    """Read an exposition as Prometheus does, and complain as promtool does."""
    assert not text.endswith("\n")
    samples: dict[tuple[str, Labels], int] = {}
    seen: dict[str, str] = {}
    family = ""
    lines = iter(text.split("\n"))
    for line in lines:
        if line.startswith("#"):
            family, explained = re.fullmatch(rf"# HELP ({NAME}) (.+)", line).groups()  # type: ignore[union-attr]
            assert explained.endswith(".")
            kind = re.fullmatch(rf"# TYPE {family} (counter|gauge)", next(lines))
            assert kind is not None
            assert family not in seen
            assert (kind[1] == "counter") == family.endswith("_total")
            seen[family] = kind[1]
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        assert found[1] == family
        labels = frozenset((name, unescape(value)) for name, value in re.findall(LABEL, found[2] or ""))
        assert (family, labels) not in samples
        samples[family, labels] = int(found[found.lastindex or 0])
    return samples


def flat(state: State | None, listeners: dict[int, Listener] = LISTENERS) -> dict[str, int]:
    """Return the samples by name and the values of their labels."""
    shown = parse(render_prometheus(state, listeners, REPORT))
    return {" ".join([name, *sorted(value for _, value in labels)]): value for (name, labels), value in shown.items()}


def names(state: State) -> set[str]:
    return {name for name, _ in parse(render_prometheus(state, LISTENERS, REPORT))}


def test_the_whole_exposition() -> None:
    assert flat(STATE) == {
        "nfpkd_up": 1,
        "nfpkd_table_present": 1,
        "nfpkd_table_intact": 1,
        "nfpkd_guarded_services": 2,
        "nfpkd_grants names": 1,
        "nfpkd_grants ssh": 3,
        "nfpkd_granted_sources names": 1,
        "nfpkd_granted_sources ssh": 2,
        "nfpkd_sessions": 1,
        "nfpkd_source_limit_packets_per_second": 20,
        "nfpkd_knock_packets_total": 1,
        "nfpkd_knock_bytes_total": 64,
        "nfpkd_limited_packets_total": 2,
        "nfpkd_limited_bytes_total": 128,
        "nfpkd_held_packets_total": 3,
        "nfpkd_held_bytes_total": 192,
        "nfpkd_admitted_packets_total": 4,
        "nfpkd_admitted_bytes_total": 256,
        "nfpkd_refused_packets_total": 5,
        "nfpkd_refused_bytes_total": 320,
        "nfpkd_rules_stale": 1,
        "nfpkd_queue_waiting_packets": 2,
        "nfpkd_queue_lost_packets_total queue": 3,
        "nfpkd_queue_lost_packets_total socket": 4,
    }


def test_the_lines_themselves() -> None:
    assert render_prometheus(STATE, LISTENERS).splitlines()[:3] == [
        "# HELP nfpkd_up Whether a verifier judges knocks: 1 or 0.",
        "# TYPE nfpkd_up gauge",
        "nfpkd_up 1",
    ]
    assert 'nfpkd_grants{rule="ssh"} 3' in render_prometheus(STATE, LISTENERS).splitlines()


def test_without_a_table_nothing_is_guarded() -> None:
    assert flat(None) == {"nfpkd_up": 0, "nfpkd_table_present": 0}


def test_a_verifier_on_another_queue_is_none() -> None:
    shown = flat(STATE, {8: LISTENERS[7]})
    assert shown["nfpkd_up"] == 0
    assert not any(name.startswith(("nfpkd_queue", "nfpkd_rules")) for name in shown)


def test_a_verifier_that_does_not_answer_is_up() -> None:
    shown = render_prometheus(STATE, LISTENERS)
    assert "nfpkd_up 1" in shown
    assert "nfpkd_rules_stale" not in shown


def test_a_table_that_was_changed_is_told() -> None:
    assert flat(replace(STATE, intact=False))["nfpkd_table_intact"] == 0


@given(st.text())
def test_no_rule_name_breaks_its_line(name: str) -> None:
    state = replace(STATE, grants=(Grant("192.0.2.1", SSH, name, 60, 42),))
    shown = parse(render_prometheus(state, {}))
    assert shown["nfpkd_grants", frozenset({("rule", name)})] == 1


# The dashboard

DASHBOARD = Path(__file__).parents[1] / "contrib" / "prometheus" / "grafana-dashboard.json"


def values(value: Any, key: str) -> Iterator[Any]:
    """Yield what stands under *key* anywhere in a document."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from values(part, key)


def test_the_dashboard_asks_for_what_there_is_and_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = " ".join(values(dashboard, "expr"))
    assert set(re.findall(r"\bnfpkd_\w+", asked)) == names(STATE)
    asked_for_labels = set(re.findall(r"by \((\w+)\)|\{\{(\w+)\}\}", json.dumps(dashboard)))
    assert {first or second for first, second in asked_for_labels} == {"rule", "full"}


def test_the_dashboard_has_room_for_each_panel() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & covered
        covered |= cells


@pytest.mark.parametrize("name", sorted(names(STATE)))
def test_names_follow_the_conventions(name: str) -> None:
    assert re.fullmatch(r"nfpkd_[a-z_]+", name)
