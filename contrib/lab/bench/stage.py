"""The two hosts of a measurement, and nfpkd on one of them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.bench.cores import SERVER_CORE, on_core
from lab.bench.timing import time_command
from lab.hosts import ANY_RATE, PORT, Lab
from nfpkd.demo.namespaces import Namespace
from nfpkd.demo.process import NFPKD
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.layout import TABLE
from support.network import KEY, eventually, make_network

# A start with 100,000 rules takes its time.
PATIENCE_SECONDS = 300.0

# What a daemon is given that is to judge whatever comes: the most that --source-limit takes.
UNLIMITED = ("--source-limit", "1000000")

# The first port of rules by the thousand.
FIRST_PORT = 10_000


@contextlib.contextmanager
def make_stage() -> Iterator[Lab]:
    """Yield two hosts whose files are on a real disk: /tmp is often memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="nfpkd-bench-") as folder, make_network() as network:
        yield Lab(network, Path(folder))


class Service:
    """A daemon whose output goes to a file, as a log does: reading it along would take time from the clients."""

    def __init__(self, host: Namespace, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stream, on_core(SERVER_CORE):
            self.process = host.start(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, text: str, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until *text* is logged; raises TimeoutError, with what came instead."""
        deadline = time.monotonic() + patience
        while text not in (seen := self.log.read_text(errors="replace")):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError(f'waited for "{text}" and saw: {seen[-500:] or "nothing"}')
            time.sleep(0.005)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(host: Namespace, command: Sequence[str], log: Path, ready: str = "") -> Iterator[Service]:
    """Have *command* run on *host*, from when it has logged *ready*."""
    service = Service(host, command, log)
    try:
        if ready:
            service.wait_for(ready)
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def guarding(lab: Lab, *options: str) -> Iterator[Service]:
    """Have `nfpkd run` guard by the lab's rule files, remembering knocks on disk as it is shipped."""
    quiet = "--quiet" in options
    log = lab.folder / "nfpkd.log"
    with serving(lab.network.server, lab.run_command(*options), log, "" if quiet else "guarding") as service:
        if quiet and not eventually(lambda: _guards(lab), PATIENCE_SECONDS):
            raise TimeoutError(f"nfpkd guards nothing: {log.read_text()}")
        yield service


def _guards(lab: Lab) -> bool:
    with lab.network.server.entered():
        return NftablesKernel().list(TABLE) is not None


def open_rule(**fields: Any) -> dict[str, Any]:
    """Return a rule for PORT whose knocks are accepted as often as they come."""
    return {"name": "opened", "key": KEY, "port": PORT, "protocol": "tcp", "rate": ANY_RATE} | fields


def many_rules(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return *count* rules with names, ports, tags and keys of their own, from number *first* on."""
    return [
        {
            "name": f"rule-{number}",
            "key": f"0x{number + 1:064x}",
            "tag": f"0x{0x52000000 + number:08x}",
            "port": 1 + (FIRST_PORT + number // 2) % 65_535,
            "protocol": "udp" if number % 2 else "tcp",
        }
        for number in range(first, first + count)
    ]


def apply_rules(lab: Lab) -> None:
    """Apply the lab's rule files and leave the guard; raises RuntimeError if nfpkd refuses."""
    time_command(lab.network.server, [*NFPKD, "apply", "--actions", str(lab.actions.path)])


def write_rules(folder: Path, rules: Sequence[dict[str, Any]], per_file: int = 1000) -> None:
    """Write *rules* to files in *folder*, so many to one."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for start in range(0, len(rules), per_file):
        file = folder / f"rules-{start // per_file:04}.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(rules[start : start + per_file]))
