"""What a packet costs the verifier, against a listener that looks at none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lab.bench.cores import LOAD_CORE, on_core
from lab.bench.floor import empty_listener, queue_rules
from lab.bench.knocks import make_knocks, send_knocks
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.meter import Judging, measure_judging
from lab.bench.peers import NF_PKD, NF_PKD_TAG
from lab.bench.stage import UNLIMITED, guarding, make_stage, open_rule
from lab.hosts import KNOCK_PORT, PORT, TAG, Lab
from lab.load import Load
from nfpkd.knock.wire import PAYLOAD_LENGTH
from nfpkd.verifier.replay import DEFAULT_CAPACITY
from support.network import KEY, SERVER4

_EMPTY, _GARBAGE, _GENUINE = "empty listener", "nfpkd, garbage", "nfpkd, genuine"
_PEERS_GARBAGE, _PEERS_GENUINE = "nf-pkd, garbage", "nf-pkd, genuine"
FIGURES = (Figure("judged", "packets/CPU s"), Figure("CPU", "us/packet"), Figure("by the clock", "packets/s"))
# Where nfpkd asks its verifier: the later in a packet's way, the less is left for the verdict to pay.
_PLACE: dict[str, Any] = {"hook": "prerouting", "priority": -160}
# More than one core can send in a second.
_KNOCKS_A_SECOND = 150_000
# What nfpkd remembers of one key's knocks is limited.
_MOST_KNOCKS = DEFAULT_CAPACITY - 1000
_RULE_SIZES = (1, 10, 100)


class Judged(Measurement):
    """Knock-shaped packets from one source, more than can be judged, for some seconds; the listener has its own core.

    The empty listener is Python, too, takes its packets as nfpkd does,
    from the same place, and accepts them unseen.  Garbage has the right tag.  Genuine knocks are remembered on
    disk and granted, all to one source; nfpkd logs warnings only (--quiet), and its
    limits are opened.  nf-pkd's cannot be: it judges all knocks and grants one in 5 s.

    "judged" is verdicts in a second of the listener's CPU time, the kernel's part of it
    included; "by the clock" is fewer where packets do not come fast enough to fill the core.
    """

    name = "judged"
    title = "knock-shaped packets judged a second on one core"
    systems = (_EMPTY, _GARBAGE, _GENUINE, _PEERS_GARBAGE, _PEERS_GENUINE)
    figures = FIGURES
    reference = _EMPTY
    targets = (
        Target("garbage: at least 0.85 of the empty listener", _GARBAGE, "judged", at_least=0.85, of=(_EMPTY,)),
        Target("genuine: at least 0.65 of the empty listener", _GENUINE, "judged", at_least=0.65, of=(_EMPTY,)),
        Target("garbage: at least twice nf-pkd", _GARBAGE, "judged", at_least=2.0, of=(_PEERS_GARBAGE,)),
        Target("genuine: at least twice nf-pkd", _GENUINE, "judged", at_least=2.0, of=(_PEERS_GENUINE,)),
    )

    def __init__(self, scale: Scale, load: Load) -> None:
        self._seconds = scale.seconds
        self._load = load

    def missing(self) -> Mapping[str, str]:
        why = NF_PKD.missing()
        return {_PEERS_GARBAGE: why, _PEERS_GENUINE: why} if why else {}

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab, contextlib.ExitStack() as stack:
            tag, port = TAG, KNOCK_PORT
            if system == _EMPTY:
                stack.enter_context(queue_rules(lab.network, udp=True, payload_length=PAYLOAD_LENGTH, **_PLACE))
                stack.enter_context(empty_listener(lab))
            elif system in (_GARBAGE, _GENUINE):
                stack.enter_context(guarding_freely(lab, open_rule()))
            else:
                stack.enter_context(NF_PKD.running(lab))
                tag, port = NF_PKD_TAG, PORT
            if system in (_GENUINE, _PEERS_GENUINE):
                return describe(judge_genuine(lab, self._seconds, tag, port))
            return describe(judge_garbage(lab, self._load, self._seconds, tag))


class SharedTag(Measurement):
    """Garbage with a tag that 1, 10 or 100 rules share, each with a key of its own, all of which are tried."""

    name = "shared-tag"
    title = "garbage with a tag that so many rules share"
    systems = tuple(f"{count} rules" if count > 1 else "1 rule" for count in _RULE_SIZES)
    figures = FIGURES
    reference = systems[0]
    targets = (Target("linear: 100 rules at most 10 times the cost of 10", "100 rules", "CPU", 10.0, of=("10 rules",)),)

    def __init__(self, scale: Scale, load: Load) -> None:
        self._seconds = scale.seconds
        self._load = load

    def run(self, system: str) -> Mapping[str, float]:
        count = int(system.split()[0])
        rules = [open_rule(name=f"rule-{number}", key=f"{KEY} {number}") for number in range(count)]
        with make_stage() as lab, guarding_freely(lab, *rules):
            return describe(judge_garbage(lab, self._load, self._seconds))


@contextlib.contextmanager
def guarding_freely(lab: Lab, *rules: dict[str, object]) -> Iterator[None]:
    """Have nfpkd run without limits, logging warnings only; raises RuntimeError if it refused a knock."""
    lab.actions.write("rules.json", *rules)
    with guarding(lab, *UNLIMITED, "--quiet") as service:
        yield
        if "refused" in (log := service.log.read_text()):
            raise RuntimeError(f"knocks were refused: {log[:200]}")


def judge_garbage(lab: Lab, load: Load, seconds: float, tag: str = TAG) -> Judging:
    with on_core(LOAD_CORE), load.knocks(lab.network.client, SERVER4, KNOCK_PORT, tag=tag, rate=0) as traffic:
        # The first packets find everything cold.
        time.sleep(min(0.2, seconds))
        found = measure_judging(lab.network, lambda: time.sleep(seconds))
        traffic.stop()
        return found


def judge_genuine(lab: Lab, seconds: float, tag: str, port: int) -> Judging:
    knocks = make_knocks(min(int(seconds * _KNOCKS_A_SECOND), _MOST_KNOCKS), tag, port)
    return measure_judging(lab.network, lambda: send_knocks(lab.network, knocks, port, seconds=seconds))


def describe(found: Judging) -> dict[str, float]:
    return {
        "judged": found.packets / found.cpu,
        "CPU": found.cpu / found.packets * 1e6,
        "by the clock": found.packets / found.seconds,
    }
