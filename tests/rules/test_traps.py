"""Hostile rule files, from the directory to the refusal."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from nfpkd.errors import RulesError
from nfpkd.rules.loader import MAX_FILE_SIZE, load_rules, stamp_files
from support.traps import TRAPS, Trap

# Room for what may be read at all, and some for what is made of it; the largest would take 1 GiB.
MOST_MEMORY = MAX_FILE_SIZE + (16 << 20)


@pytest.mark.parametrize("trap", [pytest.param(trap, id=trap.name) for trap in TRAPS])
def test_a_trap_is_refused_by_name_and_position_in_little_memory(tmp_path: Path, trap: Trap) -> None:
    good = tmp_path / "good.json"
    good.touch(mode=0o600)
    good.write_text(json.dumps([{"name": "good", "key": "k", "port": 22}]))
    before = load_rules(tmp_path)
    path = tmp_path / trap.name
    trap.set_up(path)
    tracemalloc.start()
    try:
        stamp_files(tmp_path)
        with pytest.raises(RulesError) as caught:
            load_rules(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value) == f"{path}{trap.refusal}"
    assert peak < MOST_MEMORY
    path.rename(tmp_path / ".out-of-the-way")
    assert load_rules(tmp_path) == before
