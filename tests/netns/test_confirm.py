"""A change that is not confirmed undoes itself, whatever becomes of who made it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import (
    CLIENT4,
    SERVER4,
    Actions,
    Network,
    eventually,
    listen_tcp,
    outcome,
    rule,
    run_options,
    running,
)

PORT = 2222


@pytest.fixture(autouse=True)
def door(network: Network, actions: Actions) -> Iterator[None]:
    actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), listen_tcp(network.server, 3333):
        yield


def apply(network: Network, actions: Actions, *options: str) -> str:
    done = network.nfpkd("apply", "--actions", str(actions.path), *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def is_open(network: Network, port: int, source: str = "") -> bool:
    return outcome(network.client, SERVER4, port, source) == "open"


def test_what_is_not_confirmed_goes_back_to_nothing(network: Network, actions: Actions) -> None:
    before = network.nft("list", "ruleset")
    assert "unless you run: nfpkd confirm" in apply(network, actions, "--confirm", "2")
    assert not is_open(network, PORT)
    assert eventually(lambda: network.nft("list", "ruleset") == before)
    assert is_open(network, PORT)
    late = network.nfpkd("confirm")
    assert late.returncode == 3
    assert "nothing waits to be confirmed" in late.stderr


def test_what_is_not_confirmed_goes_back_to_the_guard_of_before_with_its_grants(
    network: Network, actions: Actions
) -> None:
    apply(network, actions)
    network.nfpkd("grant", "door", CLIENT4, "--for", "600", "--actions", str(actions.path))
    actions.write("door.json", rule("other", 3333))
    apply(network, actions, "--confirm", "2")
    assert is_open(network, PORT)
    assert not is_open(network, 3333)
    assert eventually(lambda: is_open(network, 3333))
    assert not is_open(network, PORT, "192.0.2.3")
    assert is_open(network, PORT, CLIENT4)
    state = network.state()
    assert state.intact
    assert [(grant.rule, grant.timeout) for grant in state.grants] == [("door", 600)]


def test_what_is_confirmed_stays(network: Network, actions: Actions) -> None:
    apply(network, actions, "--confirm", "2")
    assert network.nfpkd("confirm").stdout == "confirmed: the change stays\n"
    # The next change is armed after it, so the first one's time is over by the end of the second's.
    actions.write("more.json", rule("more", 3333))
    apply(network, actions, "--confirm", "3")
    assert eventually(lambda: is_open(network, 3333))
    assert not is_open(network, PORT)


def test_one_change_waits_at_a_time(network: Network, actions: Actions) -> None:
    apply(network, actions, "--confirm", "60")
    second = network.nfpkd("apply", "--actions", str(actions.path), "--confirm", "60")
    assert second.returncode == 3
    assert "an earlier change still waits" in second.stderr
    assert network.nfpkd("confirm").returncode == 0


def test_it_goes_back_though_the_terminal_is_gone(network: Network, actions: Actions) -> None:
    # As sshd ends a session: the whole process group of the shell is told to go.
    script = f"{' '.join(NFPKD)} apply --actions {actions.path} --confirm 2; echo done; sleep 60"
    with Followed(network.server, ["setsid", "sh", "-c", script]) as session:
        session.wait_for("done")
        os.killpg(session.process.pid, signal.SIGHUP)
        os.killpg(session.process.pid, signal.SIGKILL)
    assert not is_open(network, PORT)
    assert eventually(lambda: is_open(network, PORT))


@pytest.mark.parametrize("end", [None, signal.SIGKILL])
def test_a_run_that_is_not_confirmed_is_ended(network: Network, actions: Actions, end: signal.Signals | None) -> None:
    command = [*NFPKD, "run", *run_options(actions), "--confirm", "3"]
    with Followed(network.server, command) as run:
        run.wait_for("guarding")
        if end is not None:
            run.stop(end)
        assert not is_open(network, PORT)
        assert eventually(lambda: is_open(network, PORT))
        run.wait()
    assert network.nft("list", "ruleset") == ""


def test_a_run_that_is_confirmed_goes_on(network: Network, actions: Actions) -> None:
    with Followed(network.server, [*NFPKD, "run", *run_options(actions), "--confirm", "60"]) as run:
        run.wait_for("guarding")
        assert network.nfpkd("confirm").returncode == 0
        assert not is_open(network, PORT)
        assert run.process.poll() is None


def test_beside_a_running_nfpkd_it_is_the_wrong_command(network: Network, actions: Actions) -> None:
    with running(network, actions):
        for _ in range(4):
            done = network.nfpkd("apply", "--actions", str(actions.path), "--confirm", "5")
            assert done.returncode == 3
            assert 'use "nfpkd run --confirm"' in done.stderr
