"""How long a command takes from start to end, and how much memory it takes at most."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from lab.bench.cores import SERVER_CORE, on_core
from nfpkd.demo.namespaces import Namespace

# Small, because what a process has resident counts for what it starts, too, until that is another program.
_LAUNCHER = """
import json, os, sys, time
quiet = os.open(os.devnull, os.O_RDWR)
errors = os.memfd_create("errors")
files = [(os.POSIX_SPAWN_DUP2, quiet, 0), (os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
if sys.argv[1]:
    given = os.open(sys.argv[1], os.O_RDONLY)
    files[0] = (os.POSIX_SPAWN_DUP2, given, 0)
started = time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=files)
_, status, usage = os.wait4(pid, 0)
seconds = time.monotonic() - started
said = os.pread(errors, 2000, 0).decode(errors="replace")
print(json.dumps([seconds, usage.ru_maxrss, os.waitstatus_to_exitcode(status), said]))
"""


class Timed(NamedTuple):
    """*seconds* from start to end, and the most *memory* that it had resident, in MiB."""

    seconds: float
    memory: float


def time_command(host: Namespace, command: Sequence[str], stdin: str = "") -> Timed:
    """Run *command* on *host* to its end, reading the file *stdin* if one is named; raises RuntimeError if it fails."""
    launch = ["ip", "netns", "exec", host.name, sys.executable, "-I", "-S", "-c", _LAUNCHER, stdin, *command]
    with on_core(SERVER_CORE):
        done = subprocess.run(launch, capture_output=True, text=True, check=True)
    seconds, peak, code, said = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command[:6])} failed with exit code {code}: {said[-300:]}")
    return Timed(seconds, peak / 1024)
