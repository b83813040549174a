"""Hostile input: each of the fuzzer's targets for so many inputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.torture.result import Result

# Target, what it reads, and how many inputs it gets in the long form.
_TARGETS = (
    ("packet", "the packet decoder", 10_000_000),
    ("wire", "the wire codec", 10_000_000),
    ("rules", "the rule loader", 1_000_000),
    ("state", "what reads our own state", 1_000_000),
)
_SHORT = 10_000


def try_inputs(*, long: bool) -> Iterator[Result]:
    """Yield what came of each target's inputs."""
    for target, what, inputs in _TARGETS:
        with tempfile.TemporaryDirectory() as artifacts:
            yield _try(target, what, inputs if long else _SHORT, Path(artifacts))


def _try(target: str, what: str, inputs: int, artifacts: Path) -> Result:
    command = [sys.executable, "-m", "lab.fuzz", target, "--runs", str(inputs), "--artifacts", str(artifacts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    name = f"hostile input to {what}"
    if done.returncode:
        found = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return Result(name, f"up to {inputs:,} inputs", f"it failed: {found[0]}", "no crash", good=False)
    told = json.loads(lines[-1])
    seen = f"no crash; {told['inputs_per_second']:,.0f} inputs a second"
    return Result(name, f"{told['inputs']:,} inputs", seen, "no crash", told["inputs"] >= inputs)
