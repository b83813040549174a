"""The knockers that are measured, each set up as its own documentation has it, to let somebody in to a closed port.

Every knocker guards a port of a server that has nothing else to guard.  fwknopd and
knockd have iptables accept what is established and drop the rest; nf-pkd is asked
about every UDP packet and every SYN, as its README says.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lab.bench.floor import queue_rules
from lab.bench.opening import Door, Knocking
from lab.bench.stage import guarding, open_rule, serving
from lab.hosts import KNOCK_PORT, PORT, Lab
from nfpkd.verifier.listeners import find_queue_listeners
from support.network import KEY, SERVER4, eventually, make_knock

FWKNOP_PORT = 62201
_KNOCKD_SEQUENCE = (7000, 8000, 9000)
# nf-pkd takes one knock in 5 s for a rule, so that every sample has a rule of its own.
_NF_PKD_RULES = 120
NF_PKD_TAG = "T000"
_SERVED = range(PORT, PORT + _NF_PKD_RULES)


# The first knock finds caches empty and code unread; so many are not counted.
WARM_UP = 3


@dataclass(frozen=True)
class Knocker:
    """A system, the *programs* it takes, how it is put to work, and where floods meet it."""

    name: str
    programs: tuple[str, ...]
    running: Callable[[Lab], AbstractContextManager[Door]]
    flooded_port: int = KNOCK_PORT
    # Whether it means to let the packet in that comes right behind the knock.
    keeps_first_syn: bool = False
    # A round takes no more samples than this of what takes long to open.
    most_samples: int = 1_000_000

    def missing(self) -> str:
        """Return what is not installed of it, in a sentence, or nothing."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        return f"no {' and no '.join(absent)} on the path" if absent else ""


@contextlib.contextmanager
def _run_nfpkd(lab: Lab, *options: str) -> Iterator[Door]:
    lab.actions.write("rules.json", open_rule())
    with guarding(lab, *options):
        yield knock_at_nfpkd()


def knock_at_nfpkd() -> Door:
    return Door(lambda _number, _source: Knocking(PORT, [(make_knock(KNOCK_PORT), KNOCK_PORT)]), [PORT])


@contextlib.contextmanager
def _run_nfpkd_without_disk(lab: Lab) -> Iterator[Door]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as state, _run_nfpkd(lab, "--state-dir", state) as door:
        yield door


def _close_port(lab: Lab) -> None:
    server = lab.network.server
    server.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
    server.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP")


def _interface(lab: Lab) -> str:
    shown = json.loads(lab.network.server.run("ip", "-json", "link", "show", "type", "veth"))
    return str(shown[0]["ifname"])


@contextlib.contextmanager
def _run_fwknopd(lab: Lab, ready: str, *options: str) -> Iterator[Door]:
    _close_port(lab)
    folder = lab.folder / "fwknop"
    folder.mkdir(mode=0o700)
    key, hmac_key = (base64.b64encode(secrets.token_bytes(size)).decode() for size in (32, 64))
    keys = f"KEY_BASE64 {key}\nHMAC_KEY_BASE64 {hmac_key}\n"
    access = _write(folder / "access.conf", f"SOURCE ANY\nREQUIRE_SOURCE_ADDRESS Y\n{keys}")
    config = _write(folder / "fwknopd.conf", f"PCAP_INTF {_interface(lab)};\n")
    _write(folder / "client.rc", f"[default]\nSPA_SERVER {SERVER4}\nACCESS tcp/{PORT}\nUSE_HMAC Y\n{keys}")
    command = ["fwknopd", "-f", "-c", config, "-a", access, "-r", str(folder), *options]
    with serving(lab.network.server, command, lab.folder / "fwknopd.log", ready):
        # It is ready to be knocked at a moment after it says so.
        time.sleep(0.2)
        yield Door(lambda _number, source: _make_spa(folder, source), [PORT])


def _make_spa(folder: Path, source: str) -> Knocking:
    """Have fwknop's own client write the packet that it would send."""
    file = folder / "packet"
    command = ["fwknop", "--rc-file", str(folder / "client.rc"), "-a", source, "--test", "-B", str(file)]
    command += ["--no-home-dir", "--no-save-args", "-E", str(folder / "arguments")]
    subprocess.run(command, check=True, capture_output=True)
    packet = file.read_bytes().strip()
    file.unlink()
    return Knocking(PORT, [(packet, FWKNOP_PORT)])


@contextlib.contextmanager
def _run_knockd(lab: Lab) -> Iterator[Door]:
    _close_port(lab)
    sequence = ",".join(f"{port}:udp" for port in _KNOCKD_SEQUENCE)
    command = f"{shutil.which('iptables')} -I INPUT -s %IP% -p tcp --dport {PORT} -j ACCEPT"
    text = f"[options]\n\n[open]\n\tsequence = {sequence}\n\tseq_timeout = 5\n\tcommand = {command}\n"
    config = _write(lab.folder / "knockd.conf", text)
    arguments = ["-i", _interface(lab), "-c", config, "-p", str(lab.folder / "knockd.pid"), "-v"]
    with serving(lab.network.server, ["knockd", *arguments], lab.folder / "knockd.log", "listening on"):
        yield Door(lambda _number, _source: Knocking(PORT, [(b"", port) for port in _KNOCKD_SEQUENCE]), [PORT])


@contextlib.contextmanager
def _run_nf_pkd(lab: Lab) -> Iterator[Door]:
    rules = [
        {"name": f"rule{number}", "key": KEY, "tag": f"T{number:03}", "port": port, "protocol": "tcp", "window": 60}
        | {"skew": 10}
        for number, port in enumerate(_SERVED)
    ]
    lab.actions.write("rules.json", *rules)
    command = ["nf-pkd", "--queue", "0", "--actions", str(lab.actions.path)]
    with (
        queue_rules(lab.network, udp=True, tcp_ports=_SERVED),
        serving(lab.network.server, command, lab.folder / "nf-pkd.log"),
    ):
        with lab.network.server.entered():
            if not eventually(lambda: bool(find_queue_listeners())):
                raise TimeoutError("nf-pkd does not listen on its queue")
        yield Door(_knock_at_nf_pkd, _SERVED)


def _knock_at_nf_pkd(number: int, _source: str) -> Knocking:
    # Some versions of it hash the rule's own port instead of the one that is knocked at.
    port = _SERVED[number]
    return Knocking(port, [(make_knock(port, tag=f"T{number:03}"), port)])


def _write(file: Path, text: str) -> str:
    file.touch(mode=0o600)
    file.write_text(text)
    return str(file)


NFPKD_ITSELF = Knocker("nfpkd", (), _run_nfpkd, keeps_first_syn=True)
# How much of nfpkd's time is the disk's, which has to have a knock before it opens anything.
NFPKD_DISKLESS = Knocker("nfpkd, state in RAM", (), _run_nfpkd_without_disk, keeps_first_syn=True)
NF_PKD = Knocker("nf-pkd", ("nf-pkd",), _run_nf_pkd, keeps_first_syn=True, most_samples=_NF_PKD_RULES - WARM_UP)
FWKNOP_UDP = Knocker(
    "fwknopd, UDP",
    ("fwknopd", "fwknop", "iptables"),
    lambda lab: _run_fwknopd(lab, "Kicking off UDP server", "--udp-server"),
    FWKNOP_PORT,
    most_samples=60,
)
FWKNOP_PCAP = Knocker(
    "fwknopd, pcap",
    FWKNOP_UDP.programs,
    lambda lab: _run_fwknopd(lab, "Starting fwknopd main event loop"),
    FWKNOP_PORT,
    most_samples=30,
)
KNOCKD = Knocker("knockd", ("knockd", "iptables"), _run_knockd, _KNOCKD_SEQUENCE[0], most_samples=60)
KNOCKERS = (NFPKD_ITSELF, NFPKD_DISKLESS, NF_PKD, FWKNOP_UDP, FWKNOP_PCAP, KNOCKD)
