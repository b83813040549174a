"""What the daemon still may do while it reads packets from anybody."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import nfpkd
from nfpkd.demo.process import Followed
from support.network import SERVER4, Actions, Network, knock, rule, run_options, running

PORT = 2222
NET_ADMIN_ALONE = f"{1 << 12:016x}"


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def check_privileges(pid: int, uid: int) -> None:
    status = read_status(pid)
    assert status["CapEff"] == status["CapPrm"] == NET_ADMIN_ALONE
    assert status["CapInh"] == status["CapAmb"] == f"{0:016x}"
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {str(uid)}
    (core,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core")]
    assert core.split()[4:6] == ["0", "0"]


def hand_over(actions: Actions, user: str) -> None:
    """Let the group of *user* read the rules, and give them the state; root keeps the say over rules."""
    state = actions.path.with_name("state")
    state.mkdir(mode=0o700)
    shutil.chown(state, user)
    for file in actions.path.iterdir():
        shutil.chown(file, "root", pwd.getpwnam(user).pw_gid)
        file.chmod(0o640)
    for folder in actions.path.parents[:3]:
        folder.chmod(0o755)


def test_root_keeps_what_nftables_takes_and_nothing_else(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions) as run:
        check_privileges(run.process.pid, 0)
        assert read_status(run.process.pid)["CapBnd"] == NET_ADMIN_ALONE
        # Not dumpable: not even its owner may look into its memory without a capability.
        assert Path(f"/proc/{run.process.pid}/mem").stat().st_uid == 0
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")


@pytest.mark.guest
def test_it_becomes_another_user_and_goes_on_working(network: Network, actions: Actions) -> None:
    file = actions.write("door.json", rule("door", PORT))
    hand_over(actions, "nobody")
    with running(network, actions, "--user", "nobody") as run:
        check_privileges(run.process.pid, pwd.getpwnam("nobody").pw_uid)
        assert read_status(run.process.pid)["CapBnd"] == NET_ADMIN_ALONE
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        file.write_text(file.read_text().replace("2222", "3333"))
        run.wait_for("changed=door")
        run.stop()
        assert run.wait() == 0
    assert network.nft("list", "ruleset") == ""


@pytest.fixture
def readable_nfpkd(tmp_path: Path) -> list[str]:
    """A command for an nfpkd that everybody can read, as an installed one is and one in a tox environment is not."""
    where = tmp_path / "installed"
    unneeded = shutil.ignore_patterns("pip", "setuptools", "hypothesis", "coverage", "mypy*", "*.pth", "__pycache__")
    shutil.copytree(sysconfig.get_path("platlib"), where, ignore=unneeded, dirs_exist_ok=True)
    shutil.copytree(Path(nfpkd.__file__).parent, where / "nfpkd", ignore=unneeded, dirs_exist_ok=True)
    for folder in (where, *tmp_path.parents[:2], tmp_path):
        folder.chmod(0o755)
    return ["env", f"PYTHONPATH={where}", "/usr/bin/python3", "-P", "-m", "nfpkd"]


def test_an_ordinary_user_with_the_capability_can_run_it(
    network: Network, actions: Actions, readable_nfpkd: list[str]
) -> None:
    actions.write("door.json", rule("door", PORT))
    hand_over(actions, "nobody")
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    capable = ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", "--"]
    with Followed(network.server, [*nobody, *capable, *readable_nfpkd, "run", *run_options(actions)]) as run:
        run.wait_for("guarding")
        check_privileges(run.process.pid, pwd.getpwnam("nobody").pw_uid)
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")


def test_the_helper_keeps_what_it_takes_to_run_commands(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT, **{"ext-command": ["/usr/bin/id", "-un"], "ext-user": "daemon"}))
    hand_over(actions, "nobody")
    with running(network, actions, "--user", "nobody") as run:
        knock(network.client, SERVER4)
        assert "output=daemon" in run.wait_for("command open")[-1]


def test_a_user_that_is_not_there_is_named(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    done = network.nfpkd("run", *run_options(actions), "--user", "no-such-user")
    assert done.returncode == 3
    assert "there is no user 'no-such-user'" in done.stderr
    assert os.geteuid() == 0


# Takes the name as anybody could; as root of a user namespace, too, where the kernel lets everybody make one.
SQUATTER = """
import ctypes, os, socket, sys
socket_ = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
if sys.argv[1] == "namespace":
    # CLONE_NEWUSER; Python has no unshare before 3.12.
    if ctypes.CDLL(None).unshare(0x10000000):
        sys.exit("no user namespace")
socket_.bind("\\0nfpkd")
socket_.listen()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["host", "namespace"])
def test_nobody_else_can_keep_it_from_running(network: Network, actions: Actions, where: str) -> None:
    actions.write("door.json", rule("door", PORT))
    squatter = network.server.start(
        [sys.executable, "-c", SQUATTER, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "taken\n"
        with running(network, actions) as run:
            knock(network.client, SERVER4)
            run.wait_for("knock accepted")
            assert any("a process that is no nfpkd has the name of its lock" in line for line in run.lines)
            # The packet queue still tells two of them apart.
            second = network.nfpkd("run", *run_options(actions), "--state-dir", "none")
            assert second.returncode == 3
            assert "queue 0 is used by another process" in second.stderr
        squatter.communicate("")
