"""A knock is good for one time, whatever happens to nfpkd in between."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import SERVER4, Actions, Network, knock, make_knock, rule, run_options, running, send_udp

PORT = 2222


@pytest.mark.guest
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_replay_is_refused_over_a_restart(network: Network, actions: Actions, end: signal.Signals) -> None:
    actions.write("door.json", rule("door", PORT, skew=3600))
    with running(network, actions) as run:
        sent = knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        run.stop(end)
    with running(network, actions) as run:
        send_udp(network.client, sent, SERVER4, 4711)
        run.wait_for("this knock was seen before")


def test_a_knock_that_was_refused_is_remembered_too(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT, skew=3600))
    with running(network, actions) as run:
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        limited = knock(network.client, SERVER4)
        run.wait_for("rate-limited")
        run.stop(signal.SIGKILL)
    with running(network, actions) as run:
        send_udp(network.client, limited, SERVER4, 4711)
        run.wait_for("this knock was seen before")


def test_without_a_memory_old_knocks_are_refused_and_that_is_said(network: Network, actions: Actions) -> None:
    actions.write("doors.json", rule("door", PORT, skew=1), rule("forever", 3333, tag="EVER", key="other", skew=-1))
    with running(network, actions, "--state-dir", "none") as run:
        assert any("what was knocked before this start is not known" in line for line in run.lines)
        assert any("refused until the key changes rule=forever" in line for line in run.lines)
        started = time.time()
        send_udp(network.client, make_knock(4711, at=started), SERVER4, 4711)
        run.wait_for("too old to be told from a replay")
        knock(network.client, SERVER4, "other", "EVER")
        assert "rule=forever" in run.wait_for("too old to be told from a replay")[-1]
        # Two seconds into the future of the start, but within the skew by the time it is sent.
        stamp = int(started) + 2
        while time.time() < stamp:
            time.sleep(0.05)
        send_udp(network.client, make_knock(4711, at=stamp), SERVER4, 4711)
        run.wait_for("knock accepted")


def test_a_damaged_memory_is_set_aside_and_distrusted(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("forever", PORT, skew=-1))
    with running(network, actions) as run:
        sent = knock(network.client, SERVER4)
        run.wait_for("knock accepted")
    state = actions.path.with_name("state")
    (state / "replay.db").write_bytes(b"not a database, but long enough to look like something" * 20)
    for _ in range(2):
        # The second start finds a good file, and must not trust its emptiness.
        with running(network, actions) as run:
            send_udp(network.client, sent, SERVER4, 4711)
            run.wait_for("too old to be told from a replay")
    assert list(state.glob("replay.db.damaged-*"))


def test_a_full_disk_refuses_the_knock_and_keeps_what_is_open(
    network: Network, actions: Actions, tmp_path: Path
) -> None:
    doors = [rule(f"door{i}", PORT + i, tag=f"D{i:03}", key=f"key{i}") for i in range(200)]
    actions.write("doors.json", *doors)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=128k none {disk} && exec {' '.join(NFPKD)} run --actions {actions.path}"
    # In a mount namespace of its own, which takes the small disk with it.
    command = ["unshare", "--mount", "sh", "-c", f"{script} --state-dir {disk}/state --source-limit 10000"]
    with Followed(network.server, command) as run:
        run.wait_for("guarding")
        for i in range(200):
            knock(network.client, SERVER4, f"key{i}", f"D{i:03}")
            if "cannot be remembered" in run.wait_for("knock ")[-1]:
                break
        else:
            pytest.fail("the disk never filled up")
        assert "make room on its disk" in run.lines[-1]
        assert len(network.state().grants) == i


def test_two_verifiers_do_not_share_a_memory(network: Network, actions: Actions) -> None:
    actions.write("door.json", rule("door", PORT))
    with running(network, actions), Followed(network.client, [*NFPKD, "run", *run_options(actions)]) as other:
        assert other.wait() == 3
        assert any("is used by another nfpkd" in line for line in other.lines)


def test_a_state_directory_that_cannot_be_made_is_named(network: Network, actions: Actions, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    actions.write("door.json", rule("door", PORT))
    done = network.nfpkd("run", "--actions", str(actions.path), "--state-dir", str(tmp_path / "file" / "state"))
    assert done.returncode == 3
    assert '"--state-dir none" to do without' in done.stderr
    assert network.nft("list", "ruleset") == ""
