"""`python -m lab.bench`: run the rows and print the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from lab.bench.measurement import Measurement, Scale
from lab.bench.rows import make_rows
from lab.bench.runner import Outcome, run_row
from lab.bench.svg import render_svg
from lab.bench.table import render_json, render_text
from lab.load import build_load

QUICK = Scale(rounds=1, samples=5, seconds=0.3, sizes=(10, 1000), quick=True)
FULL = Scale(rounds=5, samples=100, seconds=2.0, sizes=(10, 1000, 10_000))


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for; return 0 if everything that is installed here could be measured, else 1."""
    options = _parse(arguments)
    scale = _scale(options)
    with build_load() as load:
        rows = make_rows(scale, load)
        if options.list:
            for row in rows:
                print(f"{row.name}: {row.title}")
            return 0
        chosen = _choose(rows, options.only)
        machine = describe_machine(scale)
        print(render_text([], machine), flush=True)
        outcomes = []
        for row in chosen:
            outcomes.append(run_row(row, scale.rounds, _say))
            # It takes long, so what is known is told.
            print(render_text(outcomes[-1:], {}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(render_json(outcomes, machine), indent=1) + "\n")
    if options.svg:
        options.svg.write_text(_draw(outcomes))
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def describe_machine(scale: Scale) -> dict[str, str]:
    """Return what the figures depend on."""
    nft = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "software": f"nfpkd {version('nfpkd')}, Python {platform.python_version()}, {nft}",
        "rounds": f"{scale.rounds}; the median of the rounds, and the least and the most of them",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _scale(options: argparse.Namespace) -> Scale:
    chosen = QUICK if options.quick else FULL
    sizes = (*chosen.sizes, 100_000) if options.long else chosen.sizes
    return replace(chosen, rounds=options.rounds or chosen.rounds, sizes=sizes, long=options.long)


def _choose(rows: Sequence[Measurement], names: str) -> list[Measurement]:
    wanted = names.split(",") if names else [row.name for row in rows]
    known = {row.name: row for row in rows}
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"no such row: {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in wanted]


def _draw(outcomes: Sequence[Outcome]) -> str:
    """Return the chart of the row that has one, fastest first."""
    for outcome in outcomes:
        if figure := outcome.row.chart:
            bars = [(system, found[figure].median) for system, found in outcome.results.items() if figure in found]
            unit = next(known.unit for known in outcome.row.figures if known.name == figure)
            title = f"{outcome.row.title}, {figure}"
            return render_svg(title, sorted(bars, key=lambda bar: bar[1]), unit)
    sys.exit("--svg draws the row that has a chart, which was not chosen")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="nfpkd against its peers and against the floor")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="one short round of everything, for its exit status")
    much.add_argument("--full", action="store_true", help="five rounds of everything, as without it")
    parser.add_argument("--long", action="store_true", help="also 100,000 rules and a million knocks")
    parser.add_argument("--only", default="", metavar="ROW[,ROW]", help="some rows; see --list")
    parser.add_argument("--list", action="store_true", help="name the rows and do nothing")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="5 if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw knock to connected, by system")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
