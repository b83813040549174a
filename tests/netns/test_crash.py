"""Killed at any moment, nfpkd leaves the old state or the new one, and lets nothing through."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator

import pytest

from nfpkd.demo.process import NFPKD, Followed
from nfpkd.firewall.state import State
from support.network import SERVER4, Actions, Network, open_udp, rule, run_options
from support.probes import PROBES, count_segments

PORT = 2222
KILLS = 40

OLD = [rule("door", PORT, protocol="any")]
NEW = [rule("door", PORT, protocol="any", description="changed", reject="reset"), rule("more", "3000-3999")]


@pytest.fixture
def probed(network: Network, actions: Actions) -> Iterator[None]:
    """A guarded port that is probed all the while; nothing may have got through at the end."""
    actions.write("door.json", *OLD)
    network.nfpkd("apply", "--actions", str(actions.path))
    with (
        open_udp(network.server, PORT) as server,
        Followed(network.client, [sys.executable, "-c", PROBES, SERVER4, str(PORT)]) as prober,
    ):
        prober.wait_for("probing")
        yield
        prober.stop()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(64)
    assert count_segments(network) == 0
    assert network.state().counters["refused"].packets > 0


def kill_at_random(network: Network, command: list[str], longest: float) -> None:
    """Start *command* and kill it at a random moment of its life: there is no condition to wait for."""
    with Followed(network.server, [*NFPKD, *command]) as process:
        time.sleep(random.uniform(0.1, longest))
        process.process.kill()
        process.wait()


def services(state: State) -> set[int]:
    return {service.port for service in state.gated}


@pytest.mark.usefixtures("probed")
def test_an_apply_that_is_killed_leaves_the_old_state_or_the_new_one(network: Network, actions: Actions) -> None:
    either = [{PORT}, {PORT, *range(3000, 4000)}]
    for turn in range(KILLS):
        actions.write("door.json", *(NEW if turn % 2 else OLD))
        kill_at_random(network, ["apply", "--actions", str(actions.path)], 0.5)
        state = network.state()
        assert state.intact
        assert services(state) in either
        assert len(state.rejects) in (0, 5 if services(state) == either[1] else 0)


@pytest.mark.usefixtures("probed")
def test_a_run_that_is_killed_leaves_the_guard_up_and_the_next_one_adopts_it(
    network: Network, actions: Actions
) -> None:
    for turn in range(KILLS // 4):
        actions.write("door.json", *(NEW if turn % 2 else OLD))
        kill_at_random(network, ["run", *run_options(actions)], 0.8)
        assert network.state().intact
    with Followed(network.server, [*NFPKD, "run", *run_options(actions), "--on-exit", "keep"]) as run:
        run.wait_for("guarding")
    assert network.state().intact


def test_a_teardown_that_is_killed_removes_everything_or_nothing(network: Network, actions: Actions) -> None:
    actions.write("door.json", *NEW)
    for _ in range(KILLS // 4):
        network.nfpkd("apply", "--actions", str(actions.path))
        kill_at_random(network, ["teardown"], 0.4)
        with network.server.entered():
            state = network.firewall().read_state()
        assert state is None or (state.intact and len(state.gated) == 1005)
