"""Logging into a real journal: systemd-journald in a mount namespace of its own, if this host has one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from nfpkd.demo.process import NFPKD, Followed
from support.network import SERVER4, Actions, Network, eventually, knock, rule, run_options, send_udp
from support.required import find_program

JOURNALD = "/usr/lib/systemd/systemd-journald"

# $1 is where the journal is kept; the rest runs as a service does, until SIGTERM.  journald asks for
# its control group, and `ip netns exec` has mounted another /sys.
SERVICE = r"""
mount -t tmpfs tmpfs /run/systemd && mount --bind "$1" /run/log && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit
mkdir -p /run/systemd/journald.conf.d /run/systemd/journal
printf '[Journal]\nAudit=\nReadKMsg=no\nRateLimitIntervalSec=0\n' > /run/systemd/journald.conf.d/test.conf
/usr/lib/systemd/systemd-journald &
journald=$!
until [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
shift
"$@" &
service=$!
trap 'kill $service' TERM
wait $service
wait $service
kill $journald
wait $journald
"""

# What systemd does with StandardError=journal; the header is that of sd_journal_stream_fd(3).
CONNECT = """
import os, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"nfpkd\\n\\n6\\n0\\n0\\n0\\n0\\n")
info = os.fstat(stream.fileno())
os.environ["JOURNAL_STREAM"] = f"{info.st_dev}:{info.st_ino}"
os.dup2(stream.fileno(), 2)
os.execv(sys.argv[1], sys.argv[1:])
"""


def read_journal(folder: Path, *matches: str) -> list[dict[str, str]]:
    machine = next((folder / "journal").iterdir())
    command = ["journalctl", "--directory", str(machine), "--output=json", "--all", *matches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_events_are_found_by_their_fields(network: Network, actions: Actions, tmp_path: Path) -> None:
    find_program(JOURNALD)
    journal = tmp_path / "log"
    journal.mkdir()
    (tmp_path / "service").write_text(SERVICE)
    actions.write("door.json", rule("door", 2222), rule("bell", 3333, tag="BELL", **{"ext-command": "/bin/echo ding"}))
    nfpkd = [*NFPKD, "run", *run_options(actions)]
    service = ["unshare", "--mount", "sh", str(tmp_path / "service"), str(journal)]
    with Followed(network.server, [*service, sys.executable, "-c", textwrap.dedent(CONNECT), *nfpkd]) as run:

        def holds(*matches: str) -> bool:
            return any((journal / "journal").glob("*/*.journal")) and bool(read_journal(journal, *matches))

        assert eventually(lambda: holds("NFPKD_EVENT=started"), 30), run.lines
        payload = knock(network.client, SERVER4)
        knock(network.client, SERVER4, tag="BELL")
        send_udp(network.client, payload, SERVER4, 4711)
        assert eventually(lambda: holds("NFPKD_EVENT=trigger_ended") and holds("NFPKD_EVENT=knock_refused"), 30)
    (accepted,) = read_journal(journal, "NFPKD_EVENT=knock_accepted", "NFPKD_RULE=door")
    assert accepted["MESSAGE"] == "knock accepted rule=door source=192.0.2.2 opens=2222/tcp seconds=60"
    assert (accepted["PRIORITY"], accepted["SYSLOG_IDENTIFIER"]) == ("6", "nfpkd")
    assert (accepted["NFPKD_SOURCE"], accepted["_TRANSPORT"]) == ("192.0.2.2", "journal")
    (refused,) = read_journal(journal, "NFPKD_EVENT=knock_refused")
    assert (refused["PRIORITY"], refused["NFPKD_REASON"]) == ("4", "replayed")
    (ended,) = read_journal(journal, "NFPKD_EVENT=trigger_ended")
    assert ended["NFPKD_OUTPUT"] == "ding"
    assert read_journal(journal, "NFPKD_EVENT=stopped")
    # Nothing took the way of lines.
    assert not read_journal(journal, "_TRANSPORT=stdout")
