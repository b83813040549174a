"""What the rows read and write."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from lab.bench.__main__ import FULL, QUICK, main
from lab.bench.measurement import Scale
from lab.bench.meter import count_judged
from lab.bench.opening import summarise
from lab.bench.rows import make_rows
from lab.bench.rows.reloading import message_types
from lab.bench.stage import many_rules, open_rule, write_rules
from lab.load import Load
from nfpkd.rules.loader import load_rules


@pytest.mark.parametrize(
    ("table", "judged"),
    [
        ("", 0),
        # queue, listener, waiting, copy mode, range, queue full, socket full, last number, 1
        ("    0  27503     0 2   512     0     0     1000  1\n", 1000),
        ("    0  27503    12 2   512   700     8     1000  1\n", 980),
    ],
)
def test_what_waits_or_was_dropped_was_not_judged(table: str, judged: int) -> None:
    assert count_judged(table) == judged


def test_lost_knocks_have_no_latency() -> None:
    assert summarise([0.001, 0.003, None, 0.002]) == {"p50": 2.0, "p99": 3.0, "lost": 1.0}


def test_netlink_messages_are_told_apart() -> None:
    def message(kind: int, body: bytes) -> bytes:
        padded = body + bytes(-len(body) % 4)
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + padded

    assert list(message_types(message(2572, b"odd") + message(2575, b"") + message(3, b"12345678"))) == [2572, 2575, 3]
    assert list(message_types(b"")) == []
    assert list(message_types(b"short")) == []
    # A message that says it has no length must not keep the reader for ever.
    assert list(message_types(bytes(32))) == [0, 0]


@pytest.mark.parametrize("count", [1, 7, 250])
def test_rules_by_the_hundred_are_rules(tmp_path: Path, count: int) -> None:
    write_rules(tmp_path / "actions.d", [open_rule(), *many_rules(count - 1)], 100)
    loaded = load_rules(tmp_path / "actions.d", strict_modes=True)
    assert len(loaded.rules) == count
    assert loaded.warnings == ()
    assert len({service for rule in loaded.rules for service in rule.services()}) == count
    assert len(list((tmp_path / "actions.d").iterdir())) == -(-count // 100)


def test_ports_stay_ports_for_a_hundred_thousand_rules() -> None:
    services = {(rule["protocol"], rule["port"]) for rule in many_rules(100_000)}
    assert len(services) == 100_000
    assert all(1 <= int(port) <= 65_535 for _, port in services)


@pytest.mark.parametrize("scale", [QUICK, FULL, replace(FULL, sizes=(*FULL.sizes, 100_000), long=True)])
def test_rows_hang_together(scale: Scale, tmp_path: Path) -> None:
    rows = make_rows(scale, Load(tmp_path))
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        figures = {figure.name for figure in row.figures}
        assert row.reference in {"", *row.systems}
        assert row.chart in {"", *figures}
        for target in row.targets:
            assert {target.system, *target.of} <= set(row.systems), target.text
            assert {target.figure, target.of_figure or target.figure} <= figures, target.text
            assert (target.at_most is None) != (target.at_least is None), target.text


def test_only_rows_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "connect,nonsense"])
    assert "no such row: nonsense; there are: connect, " in str(ended.value)
    assert capsys.readouterr().out == ""
