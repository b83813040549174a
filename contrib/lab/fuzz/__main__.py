"""The command: try many inputs under atheris, or single ones again without it.

Of many, the last line of its output is a JSON object: how many were tried, in how much time, what
became of them (``tried``), how much of nfpkd they reached (``coverage``: what libFuzzer counts;
``corpus``: how many inputs that takes), and the files with those that found a fault.

Exit codes: 0 nothing was found, 1 something was, 2 wrong usage, 3 it could not be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from lab.fuzz.seeds import CORPUS, table
from lab.fuzz.targets import NAMES, make_target

# Beyond the largest seed of each there is nothing new, but longer runs.
_MAX_LENGTH = {"packet": 2048, "wire": 256, "rules": 4096, "state": 16384}
# How many changes are made at once, at most.  Ours are several by themselves.
_MUTATE_DEPTH = {"packet": 5, "wire": 5, "rules": 2, "state": 2}
# One input; the slowest takes a tenth of a second.
_TIMEOUT_SECONDS = 30
_MEMORY_MB = 2048
# As libFuzzer says how far it is: "#4096 NEW cov: 61 ft: 100 corp: 12/1234b lim: 43 exec/s: 4096 rss: 54Mb".
_PROGRESS = re.compile(r"^#(\d+)\s.*\bcov: (\d+) ft: \d+ corp: (\d+)/", re.MULTILINE)
_DONE = re.compile(r"^Done (\d+) ", re.MULTILINE)
_FAULT = re.compile(r"Test unit written to (\S+)")
_SHOWN_OF_FAULTS = 6000


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.fuzz", description="Fuzz what reads hostile input.")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="try these inputs again, and nothing else")
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="how many inputs (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="repeat a run; 0 is another one each time")
    parser.add_argument(
        "--artifacts", type=Path, default=Path(), metavar="DIR", help="where inputs go that find faults"
    )
    parser.add_argument("--verbose", action="store_true", help="show what libFuzzer says")
    given = parser.parse_args(arguments)
    if given.files:
        return 1 if sum(_try_again(given.target, file) for file in given.files) else 0
    if importlib.util.find_spec("atheris") is None:
        print('atheris is missing: run "pip install atheris"', file=sys.stderr)
        return 3
    return _fuzz(given.target, given.runs, given.seed, given.artifacts.resolve(), verbose=given.verbose)


def _try_again(name: str, file: Path) -> bool:
    """Tell whether the input in *file* finds a fault."""
    data = file.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        target = make_target(name, Path(scratch))
        try:
            target(data)
        except Exception:  # noqa: BLE001  (whatever it is, it is what was looked for)
            traceback.print_exc()
            print(f"{file}: a fault")
            return True
    print(f"{file}: as it should be")
    return False


def _fuzz(name: str, runs: int, seed: int, artifacts: Path, *, verbose: bool) -> int:
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        report, log, grown = (Path(scratch) / part for part in ("report", "log", "corpus"))
        grown.mkdir()
        if name == "state":
            (grown / "table").write_bytes(b"listing\n" + table())
        options = {
            # Not -runs: that ends the process before it can say what it has done.
            "atheris_runs": runs,
            "seed": seed,
            "max_len": _MAX_LENGTH[name],
            "timeout": _TIMEOUT_SECONDS,
            "rss_limit_mb": _MEMORY_MB,
            "mutate_depth": _MUTATE_DEPTH[name],
            "artifact_prefix": f"{artifacts}/{name}-",
        }
        command = [sys.executable, "-P", "-m", "lab.fuzz.worker", name, str(report)]
        command += [f"-{option}={value}" for option, value in options.items()]
        # New inputs go into the first directory: the repository's own is only read.
        command += [str(grown), str(CORPUS / name)]
        started = time.monotonic()
        with log.open("wb") as said:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False).returncode
        seconds = time.monotonic() - started
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = log.read_text(errors="replace")
        tried = json.loads(report.read_text()) if report.exists() else {}
    faults = _FAULT.findall(text)
    if verbose or code != 0:
        print(text if verbose else text[-_SHOWN_OF_FAULTS:], file=sys.stderr)
    if code != 0 and not faults:
        print(f"atheris ended with {code}, and not by an input", file=sys.stderr)
        return 3
    for fault in faults:
        print(f"a fault; to see it again: python -m lab.fuzz {name} {fault}", file=sys.stderr)
    seen, coverage, corpus = map(int, (_PROGRESS.findall(text) or ["000"])[-1])
    done = _DONE.search(text)
    inputs = int(done[1]) if done else seen
    result = {
        "target": name,
        "inputs": inputs,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1),
        "inputs_per_second": round(inputs / seconds),
        "coverage": coverage,
        "corpus": corpus,
        "tried": tried,
        "faults": faults,
    }
    print(json.dumps(result))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
