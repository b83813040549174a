"""What is tried inside the booted guest of try-deb: the installed service, as an administrator uses it.

Run by a unit at each of the two boots, as root; prints a line for each thing that was
seen, to the console, and PASSED or FAILED at the end.  With the argument "rules" it prints the
rules of the first boot.  Nothing here is nfpkd's own code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
SERVER, CLIENT, STRANGER = "192.0.2.1", "192.0.2.2", "192.0.2.3"
KEY = "0x" + "5b" * 32
PORT, LATER, UNGUARDED = 2222, 3333, 4444
RULES = Path("/etc/nfpkd/actions.d/try.json")
SPOOL = Path("/run/try")
# Everything is many times slower than on a machine of its own.
PATIENCE = 120.0
SILENCE = 3.0

Rule = dict[str, object]
DOOR: Rule = {"name": "door", "port": PORT, "protocol": "tcp", "tag": "DOOR", "key": KEY, "window": 3600}
BOTH: Rule = DOOR | {"port": [PORT, LATER]}
# Its interface is looked up by its number, in the sandbox, at each knock.
TOUCH: Rule = {"name": "touch", "tag": "TOUC", "key": KEY, "ext-user": "daemon", "interfaces": ["cable"]}
TOUCH |= {"ext-command": f"/usr/bin/touch {SPOOL}/as-daemon"}
START: Rule = {"name": "start", "tag": "STAR", "key": KEY, "ext-user": "root"}
START |= {"ext-command": "/usr/bin/systemctl start try-started.target"}


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    return done.stdout.strip()


def show(unit: str, name: str) -> str:
    return run("systemctl", "show", "--value", "-p", name, unit)


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for: {what}")
        time.sleep(0.5)


def expect(what: str, found: object, wanted: object = True) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")
    print(f"ok: {what}", flush=True)


def write_rules(*rules: Rule, text: str | None = None) -> None:
    fresh = RULES.with_suffix(".new")
    fresh.write_text(json.dumps(rules) if text is None else text)
    # The directory's set-group-id bit gives it the service's group.
    fresh.chmod(0o640)
    fresh.rename(RULES)


def make_client() -> None:
    """A host on a cable, as a network namespace of its own, with two addresses."""
    run("ip", "netns", "add", "client")
    run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "eth0", "netns", "client")
    run("ip", "address", "add", f"{SERVER}/24", "dev", "cable")
    run("ip", "link", "set", "cable", "up")
    for address in (CLIENT, STRANGER):
        run("ip", "-n", "client", "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "-n", "client", "link", "set", "eth0", "up")


def serve_echo(port: int) -> None:
    """Answer whatever comes to *port*, for good."""
    listener = socket.create_server(("", port))

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


class Session:
    """A connection from the client, held by a process in its namespace."""

    CODE = """
import socket, sys
server, port, source, patience = sys.argv[1:]
sock = socket.create_connection((server, int(port)), timeout=float(patience), source_address=(source, 0))
print("open", flush=True)
for line in sys.stdin:
    sock.settimeout(60)
    sock.sendall(line.encode())
    print(sock.recv(100).decode().strip(), flush=True)
"""

    def __init__(self, port: int, source: str) -> None:
        words = ["ip", "netns", "exec", "client", sys.executable, "-c", self.CODE, SERVER, str(port), source]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*words, str(SILENCE)], text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        self.is_open = self._read() == "open\n"

    def answers(self) -> bool:
        with contextlib.suppress(BrokenPipeError):
            print("are you there?", file=self._process.stdin, flush=True)
        return self._read() == "are you there?\n"

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None  # noqa: S101  (this tells mypy)
        return self._process.stdout.readline()


def is_open(port: int, source: str) -> bool:
    session = Session(port, source)
    session.close()
    return session.is_open


def knock(tag: str) -> None:
    key = HERE / "key"
    key.touch(mode=0o600)
    key.write_text(KEY)
    run("ip", "netns", "exec", "client", "nfpkd", "knock", SERVER, "--tag", tag, "--key-file", str(key))


def main_pid() -> int:
    return int(show("nfpkd.service", "MainPID"))


def journal(*options: str) -> str:
    return run("journalctl", "--no-pager", "--output=cat", "--boot", *options)


def is_guarding() -> bool:
    return "table inet nfpkd" in run("nft", "list", "tables")


def check_boot() -> None:
    expect("the guard is active", show("nfpkd-guard.service", "ActiveState"), "active")
    moments = [
        int(show(unit, "ActiveEnterTimestampMonotonic"))
        for unit in ("nftables.service", "nfpkd-guard.service", "network-pre.target")
    ]
    expect("nftables, then the guard, then the network", moments == sorted(moments) and 0 not in moments)
    wait_for("nfpkd.service to guard", lambda: show("nfpkd.service", "ActiveState") == "active")
    expect("its status is told", show("nfpkd.service", "StatusText"), "guarding by 3 rules")


def check_confinement() -> None:
    pid = main_pid()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    uid = run("id", "-u", "nfpkd")
    expect("it runs as nfpkd", set(status["Uid"].split()), {uid})
    expect("with CAP_NET_ADMIN alone", {status[name] for name in ("CapPrm", "CapEff", "CapBnd")}, {f"{1 << 12:016x}"})
    expect("without a way to gain more", (status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
    label = Path(f"/proc/{pid}/attr/current").read_text().strip()
    expect("inside its AppArmor profile", label, "nfpkd (enforce)")
    for what, code in (
        ("read /etc/shadow", "open('/etc/shadow')"),
        ("use the network", "import socket; socket.socket(socket.AF_INET)"),
        ("use the IPv6 network", "import socket; socket.socket(socket.AF_INET6)"),
    ):
        # As root, so that nothing but the profile is in the way.
        confined = run("aa-exec", "-p", "nfpkd", "--", "/usr/bin/python3", "-c", code, check=False)
        expect(f"the profile lets nobody {what}", "Permission" in confined.splitlines()[-1])
        expect(f"... which anybody else may: {what}", run("/usr/bin/python3", "-c", code), "")
    expect("the state is its own", {path.owner() for path in Path("/var/lib/nfpkd").iterdir()}, {"nfpkd"})


def check_knock() -> Session:
    expect("an unguarded port is open", is_open(UNGUARDED, STRANGER))
    expect("the guarded one is closed", is_open(PORT, CLIENT), False)
    knock("DOOR")
    session = Session(PORT, CLIENT)
    expect("a knock opens it", session.is_open and session.answers())
    expect("... to who knocked, and nobody else", is_open(PORT, STRANGER), False)
    return session


def check_commands() -> None:
    knock("TOUC")
    made = SPOOL / "as-daemon"
    wait_for("the command of another user", made.exists)
    expect("a command runs as its user", made.owner(), "daemon")
    knock("STAR")
    wait_for("root's command", lambda: show("try-started.target", "ActiveState") == "active")
    expect("root's command runs, and the daemon is not root", Path(f"/proc/{main_pid()}").owner(), "nfpkd")
    wait_for("the helper's log", lambda: "command open: exit status 0" in journal())
    expect("one helper serves them", run("systemctl", "list-units", "--plain", "nfpkd-triggers@*").count("running"), 1)


def check_reload(session: Session) -> None:
    write_rules(BOTH, TOUCH, START)
    run("systemctl", "reload", "nfpkd.service")
    wait_for("the new port to close", lambda: not is_open(LATER, STRANGER))
    expect("a reload keeps who is in", session.answers() and is_open(PORT, CLIENT))
    write_rules(text="[{]")
    run("systemctl", "reload", "nfpkd.service")
    wanted = "the last reload failed; guarding by 3 rules from before"
    wait_for("the failed reload's status", lambda: show("nfpkd.service", "StatusText") == wanted)
    expect("a failed reload opens nothing", is_open(LATER, STRANGER), False)
    expect("... and ends nothing", show("nfpkd.service", "ActiveState"), "active")
    write_rules(BOTH, TOUCH, START)
    run("systemctl", "reload", "nfpkd.service")
    wait_for("the mended rules", lambda: show("nfpkd.service", "StatusText") == "guarding by 3 rules")


def check_restart(session: Session) -> None:
    before = main_pid()
    opened: list[bool] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            opened.append(is_open(PORT, STRANGER))

    prober = threading.Thread(target=probe)
    prober.start()
    run("systemctl", "restart", "nfpkd.service")
    stop.set()
    prober.join()
    expect("a restart is another process", main_pid() not in (0, before))
    expect("... and opens nothing meanwhile", bool(opened) and not any(opened))
    expect("the open session goes on", session.answers())
    expect("... and who was in stays in", is_open(PORT, CLIENT))
    # The helper ended with the daemon that it belonged to; the next one has its own.
    (SPOOL / "as-daemon").unlink()
    knock("TOUC")
    wait_for("a command behind the restart", (SPOOL / "as-daemon").exists)


def check_watchdog() -> None:
    drop_in = Path("/run/systemd/system/nfpkd.service.d/try.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=15\nTimeoutAbortSec=3\nRestartSec=1\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "nfpkd.service")
    before = main_pid()
    time.sleep(40)
    expect("who turns is left alone", main_pid(), before)
    os.kill(before, signal.SIGSTOP)
    wait_for("the watchdog", lambda: main_pid() not in (0, before))
    wait_for("it to guard again", lambda: show("nfpkd.service", "ActiveState") == "active")
    expect("who hangs is replaced, and the port stays closed", is_open(PORT, STRANGER), False)
    drop_in.unlink()
    run("systemctl", "daemon-reload")


def check_upgrade(session: Session) -> None:
    (newer,) = HERE.glob("nfpkd_*.deb")
    before = main_pid()
    guarded_since = show("nfpkd-guard.service", "ActiveEnterTimestampMonotonic")
    run("dpkg", "--install", str(newer))
    expect("the upgrade is installed", run("dpkg-query", "-W", "-f", "${Version}", "nfpkd").endswith("nfpkd2"))
    wait_for("it to guard again", lambda: show("nfpkd.service", "ActiveState") == "active")
    expect("it is another process", main_pid() not in (0, before))
    expect("the guard stood", show("nfpkd-guard.service", "ActiveEnterTimestampMonotonic"), guarded_since)
    expect("the open session goes on", session.answers())
    expect("who was in stays in", is_open(PORT, CLIENT))
    expect("strangers stay out", is_open(PORT, STRANGER), False)


def check_commands_of_root() -> None:
    expect("root reads the service's rules", run("nfpkd", "check").count("opens for"), 1)
    state = json.loads(run("nfpkd", "status", "--format", "json"))
    expect("status knows who is in", {grant["source"] for grant in state["grants"]}, {CLIENT})
    findings = json.loads(run("nfpkd", "doctor", "--format", "json", check=False))["findings"]
    expect("doctor finds no fault", [found["what"] for found in findings if found["severity"] == "fault"], [])


def check_fail2ban() -> None:
    run("systemctl", "start", "fail2ban.service")
    wait_for("the jail", lambda: "Banned IP list" in run("fail2ban-client", "status", "nfpkd", check=False))
    # In parallel: one after the other they would not come too often here.
    too_often = f"for i in 1 2 3 4 5 6; do nfpkd knock {SERVER} --tag DOOR --key-file {HERE}/key & done; wait"

    def is_banned() -> bool:
        run("ip", "netns", "exec", "client", "sh", "-c", too_often)
        time.sleep(3)
        return CLIENT in run("fail2ban-client", "status", "nfpkd")

    wait_for("the ban", is_banned)
    expect("Fail2Ban bans who knocks too often", is_open(UNGUARDED, CLIENT), False)
    expect("... and nobody else", is_open(UNGUARDED, STRANGER))
    run("systemctl", "stop", "fail2ban.service")
    expect("... until it ends", is_open(UNGUARDED, CLIENT))


def check_denials() -> None:
    # What was tried above by aa-exec was python3's.
    denied = r'apparmor="DENIED".* profile="nfpkd".* comm="nfpkd"'
    expect("AppArmor denied the service nothing", re.findall(denied, journal("--dmesg")), [])


def check_stop() -> None:
    run("systemctl", "stop", "nfpkd.service")
    expect("stopped, it leaves the guard", is_guarding() and not is_open(PORT, STRANGER))
    expect("... and whoever is in", is_open(PORT, CLIENT))
    run("systemctl", "start", "nfpkd.service")
    run("systemctl", "stop", "nfpkd-guard.service")
    expect("the guard's end is nfpkd's, too", show("nfpkd.service", "ActiveState"), "inactive")
    expect("... and opens the ports", is_open(PORT, STRANGER) and not is_guarding())
    run("systemctl", "start", "nfpkd.service")
    expect("a start closes them", is_open(PORT, STRANGER), False)


def first_boot() -> None:
    check_boot()
    check_confinement()
    session = check_knock()
    check_commands()
    check_reload(session)
    check_restart(session)
    check_watchdog()
    check_upgrade(session)
    check_commands_of_root()
    check_fail2ban()
    check_denials()
    check_stop()
    write_rules(text="[{]")


def second_boot() -> None:
    """The rules have an error since before the boot."""
    wait_for("the guard's failure", lambda: show("nfpkd-guard.service", "ActiveState") == "failed")
    said = "the last good guard, from /var/lib/nfpkd/last-good, is in force"
    expect("a boot with broken rules is said", said in journal("--unit=nfpkd-guard.service"))
    expect("... and guards what was guarded last", is_open(PORT, STRANGER) or is_open(LATER, STRANGER), False)
    expect("... and nothing else", is_open(UNGUARDED, STRANGER))
    wait_for("nfpkd.service to judge", lambda: show("nfpkd.service", "ActiveState") == "active")
    told = "the rule files are refused; the last good rules are in force: guarding by 3 rules"
    expect("... by the last good rules", show("nfpkd.service", "StatusText"), told)
    expect("... which status tells root", told in run("nfpkd", "status"))
    faults = journal("--unit=nfpkd.service", "NFPKD_EVENT=rules_refused")
    expect("... and the log, with the place", f"{RULES}:1:3: not valid JSON" in faults)
    knock("DOOR")
    expect("a knock opens all the same", is_open(PORT, CLIENT) and is_open(LATER, CLIENT))
    expect("... to nobody else", is_open(PORT, STRANGER), False)
    kept = Path("/var/lib/nfpkd/last-good")
    expect("what is kept is the service's alone", (kept.owner(), oct(kept.stat().st_mode)), ("nfpkd", "0o100600"))
    write_rules(DOOR, TOUCH, START)
    wait_for("the mended rules", lambda: show("nfpkd.service", "StatusText") == "guarding by 3 rules")
    expect("mended rules are in force by themselves", is_open(LATER, STRANGER))
    expect("... and keep who is in", is_open(PORT, CLIENT))
    run("systemctl", "start", "nfpkd-guard.service")
    expect("the guard's failure can be cleared", show("nfpkd-guard.service", "ActiveState"), "active")
    check_denials()
    run("dpkg", "--remove", "nfpkd")
    expect("removed, it leaves no guard", is_open(PORT, STRANGER) and not is_guarding())
    expect("... but its memory", Path("/var/lib/nfpkd/replay.db").exists())
    run("dpkg", "--purge", "nfpkd")
    expect("purged, it leaves no memory", Path("/var/lib/nfpkd").exists(), False)
    expect("... but the administrator's rules", RULES.exists())


def main(arguments: list[str]) -> None:
    if arguments == ["rules"]:
        print(json.dumps([DOOR, TOUCH, START]))
        return
    try:
        make_client()
        for port in (PORT, LATER, UNGUARDED):
            serve_echo(port)
        SPOOL.mkdir(exist_ok=True)
        run("chown", "daemon", str(SPOOL))
        again = HERE / "second-boot"
        if again.exists():
            second_boot()
        else:
            again.touch()
            first_boot()
    except Exception:  # noqa: BLE001  (whatever it is, it is told and the guest ends)
        traceback.print_exc(file=sys.stdout)
        print(run("systemctl", "status", "--no-pager", "nfpkd*", check=False))
        print(journal("--lines=80"))
        print("FAILED", flush=True)
    else:
        print("PASSED", flush=True)
    os.sync()


if __name__ == "__main__":
    main(sys.argv[1:])
