"""What a packet costs the verifier, against a listener that looks at none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lab.bench.floor import empty_listener, queue_rules
from lab.bench.knocks import make_knocks, send_knocks
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.meter import Judging, measure_judging
from lab.bench.stage import LOAD_CORE, UNLIMITED, Service, guarding, make_stage, on_core, open_rule
from lab.hosts import KNOCK_PORT, TAG, Lab
from lab.load import Load
from nfpkd.knock.wire import PAYLOAD_LENGTH
from support.network import KEY, SERVER4

_EMPTY, _GARBAGE, _GENUINE = "empty listener", "nfpkd, garbage", "nfpkd, genuine"
FIGURES = (Figure("judged", "packets/CPU s"), Figure("CPU", "us/packet"), Figure("by the clock", "packets/s"))
# More than one core can send in a second.
_KNOCKS_A_SECOND = 150_000
_RULE_SIZES = (1, 10, 100)


class Judged(Measurement):
    """Knock-shaped packets from one source, more than can be judged, for some seconds; the listener has its own core.

    The empty listener is Python, too, takes its packets from the kernel as nfpkd does,
    and accepts them unseen.  Garbage has the right tag.  Genuine knocks are remembered on
    disk and granted, all to one source; nfpkd logs warnings only (--quiet), and its
    limits are opened.

    "judged" is verdicts in a second of the listener's CPU time, the kernel's part of it
    included; "by the clock" is fewer where packets do not come fast enough to fill the core.
    """

    name = "judged"
    title = "knock-shaped packets judged a second on one core"
    systems = (_EMPTY, _GARBAGE, _GENUINE)
    figures = FIGURES
    reference = _EMPTY
    targets = (
        Target("garbage: at least 0.85 of the empty listener", _GARBAGE, "judged", at_least=0.85, of=(_EMPTY,)),
        Target("genuine: at least 0.65 of the empty listener", _GENUINE, "judged", at_least=0.65, of=(_EMPTY,)),
    )

    def __init__(self, scale: Scale, load: Load) -> None:
        self._seconds = scale.seconds
        self._load = load

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab:
            if system == _EMPTY:
                with queue_rules(lab.network, udp=True, payload_length=PAYLOAD_LENGTH), empty_listener(lab) as service:
                    return describe(judge_garbage(lab, self._load, service, self._seconds))
            with guarding_freely(lab, open_rule()) as service:
                if system == _GARBAGE:
                    return describe(judge_garbage(lab, self._load, service, self._seconds))
                return describe(judge_genuine(lab, service, self._seconds))


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
        with make_stage() as lab, guarding_freely(lab, *rules) as service:
            return describe(judge_garbage(lab, self._load, service, self._seconds))


@contextmanager
def guarding_freely(lab: Lab, *rules: dict[str, object]) -> Iterator[Service]:
    """Have nfpkd run without limits, logging warnings only; raises RuntimeError if it refused a knock."""
    lab.actions.write("rules.json", *rules)
    with guarding(lab, *UNLIMITED, "--quiet") as service:
        yield service
        if "refused" in (log := service.log.read_text()):
            raise RuntimeError(f"knocks were refused: {log[:200]}")


def judge_garbage(lab: Lab, load: Load, service: Service, seconds: float) -> Judging:
    with on_core(LOAD_CORE), load.knocks(lab.network.client, SERVER4, KNOCK_PORT, tag=TAG, rate=0) as traffic:
        # The first packets find everything cold.
        time.sleep(min(0.2, seconds))
        found = measure_judging(lab.network, service.pid, lambda: time.sleep(seconds))
        traffic.stop()
        return found


def judge_genuine(lab: Lab, service: Service, seconds: float) -> Judging:
    knocks = make_knocks(int(seconds * _KNOCKS_A_SECOND))
    return measure_judging(lab.network, service.pid, lambda: send_knocks(lab.network, knocks, seconds=seconds))


def describe(found: Judging) -> dict[str, float]:
    return {
        "judged": found.packets / found.cpu,
        "CPU": found.cpu / found.packets * 1e6,
        "by the clock": found.packets / found.seconds,
    }
