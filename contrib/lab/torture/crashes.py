"""Killed at any moment, while the guarded port is probed: is the table ever torn, does a probe ever get through?"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab.hosts import PORT, Lab, make_lab
from lab.nursery import Nursery, make_nursery
from lab.torture.result import Result
from nfpkd.demo.process import Followed
from nfpkd.firewall.ruleset import Ruleset, compile_ruleset, transaction_to
from nfpkd.rules.loader import load_rules
from support.network import DEFAULTS, SERVER4, STRANGER4, Actions, open_udp, rule, run_options
from support.probes import PROBES, count_segments

OLD = [rule("door", PORT, protocol="any")]
NEW = [rule("door", PORT, protocol="any", description="changed", reject="reset"), rule("more", "3000-3999")]
# Whoever was let in is to stay in, whatever happens.
GUEST = ["door", STRANGER4, "--for", "86400"]


class TornError(Exception):
    """The table was in a state that nobody asked for."""


def try_crashes(*, long: bool) -> Iterator[Result]:
    """Yield how the table fared when each command was killed, again and again."""
    yield _try("a reload of `nfpkd run`", _kill_reload, 2000 if long else 10)
    yield _try("the start of `nfpkd run`", _kill_start, 1000 if long else 10)
    yield _try("`nfpkd apply`", _kill_apply, 1000 if long else 20)
    yield _try_teardown(500 if long else 10)


class _Stage:
    """A server that guards by the old rules, somebody who was let in, and a nursery of victims."""

    def __init__(self, lab: Lab, nursery: Nursery) -> None:
        self._lab = lab
        self.nursery = nursery
        self.file = lab.actions.write("door.json", *OLD)
        # Not read: its name begins with a dot.
        self.fresh = self.file.with_name(".fresh")
        where = ["--actions", str(lab.actions.path)]
        self.apply = ["apply", *where]
        self.grant = ["grant", *GUEST, *where]
        self.run = ["run", *run_options(lab.actions)]
        self.teardown = ["teardown"]
        self._either = [self._compile(OLD), self._compile(NEW)]
        self.nfpkd(self.apply)
        self.nfpkd(self.grant)

    def write(self, path: Path, index: int) -> None:
        """Write the old rules (0) or the new ones (1) to *path*."""
        self._lab.actions.write(path.name, *(OLD, NEW)[index])

    def nfpkd(self, command: list[str]) -> None:
        done = self._lab.network.nfpkd(*command)
        if done.returncode:
            raise RuntimeError(f"nfpkd {command[0]}: {done.stderr}")

    def find(self) -> int | None:
        """Return which rules the kernel holds, the old (0) or the new (1), None for no table; raises TornError."""
        with self._lab.network.server.entered():
            state = self._lab.network.firewall().read_state()
        if state is None:
            return None
        if not any(grant.source == STRANGER4 for grant in state.grants):
            raise TornError("a grant is lost")
        for index, wanted in enumerate(self._either):
            if not transaction_to(wanted, state):
                return index
        raise TornError(f"neither the old rules nor the new ones: {state}")

    def _compile(self, rules: list[dict[str, Any]]) -> Ruleset:
        folder = Actions(self._lab.folder / f"compiled{len(rules)}")
        folder.write("door.json", *rules)
        return compile_ruleset(load_rules(folder.path).rules, DEFAULTS)


def _kill_apply(stage: _Stage, after: float, wanted: int) -> None:
    stage.write(stage.file, wanted)
    stage.nursery.kill(stage.apply, after)


def _kill_start(stage: _Stage, after: float, wanted: int) -> None:
    stage.write(stage.file, wanted)
    stage.nursery.kill(stage.run, after)


def _kill_reload(stage: _Stage, after: float, wanted: int) -> None:
    stage.write(stage.file, 1 - wanted)
    stage.write(stage.fresh, wanted)
    stage.nursery.kill_in_reload(stage.run, after, replace=(stage.fresh, stage.file))


def _try(what: str, kill: Callable[[_Stage, float, int], None], times: int) -> Result:
    found = [0, 0]
    with make_lab() as lab, make_nursery(lab.network.server) as nursery:
        stage = _Stage(lab, nursery)
        with _probed(lab) as probes:
            aim = _Aim()
            held = 0
            for _ in range(times):
                wanted = 1 - held
                kill(stage, aim.moment(), wanted)
                now = stage.find()
                if now is None:
                    raise TornError("there is no table")
                aim.adjust(too_late=now == wanted)
                found[now == wanted] += 1
                held = now
            sent, through = probes()
    return Result(
        f"SIGKILL at a random moment of {what}",
        f"{times:,} kills, {sent:,} probes",
        f"{found[0]:,} times as before, {found[1]:,} times as wanted, never torn; {through} probes got through",
        "as before or as wanted, grants kept, no probe gets through",
        through == 0,
    )


def _try_teardown(times: int) -> Result:
    # Not probed: what it removes is what keeps probes out.
    found = [0, 0]
    with make_lab() as lab, make_nursery(lab.network.server) as nursery:
        stage = _Stage(lab, nursery)
        aim = _Aim()
        for _ in range(times):
            nursery.kill(stage.teardown, aim.moment())
            gone = stage.find() is None
            aim.adjust(too_late=gone)
            found[gone] += 1
            if gone:
                stage.nfpkd(stage.apply)
                stage.nfpkd(stage.grant)
    return Result(
        "SIGKILL at a random moment of `nfpkd teardown`",
        f"{times:,} kills",
        f"{found[0]:,} times everything was left, {found[1]:,} times nothing, never torn",
        "everything or nothing",
        good=True,
    )


class _Aim:
    """Random moments, so spread that half of them come too late."""

    def __init__(self) -> None:
        self._longest = 0.1

    def moment(self) -> float:
        """Return seconds."""
        return random.uniform(0, self._longest)

    def adjust(self, *, too_late: bool) -> None:
        self._longest *= 0.85 if too_late else 1.2


@contextlib.contextmanager
def _probed(lab: Lab) -> Iterator[Callable[[], tuple[int, int]]]:
    """Have the guarded port probed by datagrams and segments; what is yielded ends it, and counts those sent and those
    that got through."""
    command = [sys.executable, "-c", PROBES, SERVER4, str(PORT)]
    network = lab.network
    with open_udp(network.server, PORT) as server, Followed(network.client, command) as prober:
        prober.wait_for("probing")

        def end() -> tuple[int, int]:
            (line,) = prober.stop()
            server.setblocking(False)
            through = count_segments(network)
            with contextlib.suppress(BlockingIOError):
                while server.recv(64):
                    through += 1
            return int(line.removeprefix("sent ")), through

        yield end
