"""From the knock to the connection: idle, and with the connection right behind the knock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.opening import Client, Sample, clients, summarise
from lab.bench.peers import FWKNOP_PCAP, FWKNOP_UDP, KNOCKERS, NF_PKD, NFPKD_ITSELF, WARM_UP, Knocker
from lab.bench.stage import make_stage

LATENCY = (Figure("p50", "ms"), Figure("p99", "ms"), Figure("lost", "knocks"))
# Well under the second after which the client's kernel would send the SYN again.
_SYN_PATIENCE_SECONDS = 0.2
_GAPS = {"0 us": 0.0, "50 us": 50e-6, "100 us": 100e-6}


class KnockToConnected(Measurement):
    """One knock and one connection at a time, each from an address that never knocked before, to an idle host.

    See lab.bench.opening for what the clock covers, lab.bench.peers for how each is set up.
    """

    name = "connect"
    title = "knock to connected, idle"
    systems = tuple(knocker.name for knocker in KNOCKERS)
    figures = LATENCY
    reference = NFPKD_ITSELF.name
    chart = "p50"
    targets = (
        Target("p50 at most 1.5 times nf-pkd's", "nfpkd", "p50", at_most=1.5, of=(NF_PKD.name,)),
        Target(
            "p50 at least 50 times faster than fwknop's best",
            "nfpkd",
            "p50",
            at_most=1 / 50,
            of=(FWKNOP_UDP.name, FWKNOP_PCAP.name),
        ),
    )

    def __init__(self, scale: Scale) -> None:
        self._samples = scale.samples

    def missing(self) -> Mapping[str, str]:
        return missing_knockers(KNOCKERS)

    def run(self, system: str) -> Mapping[str, float]:
        knocker = find_knocker(system)
        count = min(self._samples, knocker.most_samples)
        with make_stage() as lab, knocker.running(lab) as door, clients(lab, door) as client:
            warm_up(client, knocker)
            return summarise([client.open_door(retry=not knocker.keeps_first_syn) for _ in range(count)])


class FirstSyn(Measurement):
    """One SYN, sent so many microseconds after the knock, and no other: is it the one that gets through?"""

    name = "first-syn"
    title = "first SYN accepted, when sent 0, 50 and 100 us after the knock"
    systems = tuple(knocker.name for knocker in KNOCKERS)
    figures = tuple(Figure(gap, "%") for gap in _GAPS)
    targets = tuple(Target(f"100% at {gap}", "nfpkd", gap, at_least=100.0) for gap in _GAPS)

    def __init__(self, scale: Scale) -> None:
        self._samples = scale.samples

    def missing(self) -> Mapping[str, str]:
        return missing_knockers(KNOCKERS)

    def run(self, system: str) -> Mapping[str, float]:
        knocker = find_knocker(system)
        most = self._samples if knocker.keeps_first_syn else max(1, self._samples // 10)
        count = min(most, knocker.most_samples // len(_GAPS))
        with make_stage() as lab, knocker.running(lab) as door, clients(lab, door) as client:
            warm_up(client, knocker)
            return {
                gap: _share([client.open_door(gap=seconds, patience=_SYN_PATIENCE_SECONDS) for _ in range(count)])
                for gap, seconds in _GAPS.items()
            }


def find_knocker(name: str) -> Knocker:
    return next(knocker for knocker in KNOCKERS if knocker.name == name)


def missing_knockers(knockers: Sequence[Knocker]) -> dict[str, str]:
    return {knocker.name: why for knocker in knockers if (why := knocker.missing())}


def warm_up(client: Client, knocker: Knocker) -> None:
    """Open a few doors before any is counted, and make sure that they open at all."""
    opened = [client.open_door(retry=not knocker.keeps_first_syn) for _ in range(WARM_UP)]
    if not any(opened):
        raise RuntimeError("nobody gets in")


def _share(samples: Sequence[Sample]) -> float:
    return 100 * sum(sample is not None for sample in samples) / len(samples)
