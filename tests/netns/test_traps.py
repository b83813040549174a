"""Hostile rule files under a running nfpkd: it says what is wrong, and goes on as before."""

from __future__ import annotations

import re
from pathlib import Path

from support.network import CLIENT4, SERVER4, STRANGER4, Actions, Network, knock, listen_tcp, outcome, rule, running
from support.traps import TRAPS

PORT = 2222
# What one of them may take beside what nfpkd takes anyway.
MOST_GROWTH_KB = 16 << 10


def peak_memory_kb(process: int) -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_no_trap_changes_anything(network: Network, actions: Actions) -> None:
    rate = {"knocks": 1000, "per": 1, "burst": 1000}
    actions.write("door.json", rule("door", PORT, rate=rate))
    with listen_tcp(network.server, PORT), running(network, actions) as run:
        before = peak_memory_kb(run.process.pid)
        for trap in TRAPS:
            path = actions.path / trap.name
            trap.set_up(path)
            lines = run.wait_for("the rules of before stay in force")
            assert f"error: {path}{trap.refusal}" in lines
            # The guard stands, and whoever knocks is let in.
            assert outcome(network.client, SERVER4, PORT, STRANGER4) == "silence"
            knock(network.client, SERVER4, source=CLIENT4)
            run.wait_for("knock accepted")
            assert outcome(network.client, SERVER4, PORT, CLIENT4) == "open"
            path.rename(actions.path / f".{trap.name}.gone")
            run.wait_for("rules reloaded; nothing changed")
        assert peak_memory_kb(run.process.pid) - before < MOST_GROWTH_KB
        actions.write("more.json", rule("more", 3333))
        run.wait_for("added=more")
        assert not any("fault of nfpkd's own" in line for line in run.lines)
