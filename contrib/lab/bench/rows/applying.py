"""From rule files to the kernel, against nft loading the same ruleset."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.stage import apply_rules, make_stage, many_rules, write_rules
from lab.bench.timing import time_command
from lab.hosts import Lab
from nfpkd.demo.process import NFPKD

_APPLY, _CHECK, _NFT = "apply", "check", "nft -f"
_PER_FILE = 100
_LARGE = 10_000


class Apply(Measurement):
    """`nfpkd apply` to an empty host, of rules in files of a hundred; `nfpkd check` of the same files; `nft -f`.

    Every rule has a name, key, tag and port of its own.  nft gets what it lists itself once
    nfpkd has applied the rules, less the rule that queues knocks, which not every kernel takes.
    Times are of whole processes.
    """

    name = "apply"
    title = "rules applied to an empty host"
    figures = (Figure("time", "s"), Figure("memory", "MiB"))

    def __init__(self, scale: Scale) -> None:
        cases = itertools.product(scale.sizes, (_NFT, _APPLY, _CHECK))
        self._cases = {f"{size:,} rules, {what}": (size, what) for size, what in cases}
        self.systems = tuple(self._cases)
        large = [size for size in scale.sizes if size >= _LARGE]
        self.targets = (*map(_at_most_twice_nft, large[:1]), *(_linear(_LARGE, size) for size in large[1:]))

    def run(self, system: str) -> Mapping[str, float]:
        size, what = self._cases[system]
        with make_stage() as lab:
            write_rules(lab.actions.path, many_rules(size), _PER_FILE)
            if what == _NFT:
                timed = time_command(lab.network.server, ["nft", "-f", str(dump_ruleset(lab))])
            else:
                timed = time_command(lab.network.server, [*NFPKD, what, "--actions", str(lab.actions.path)])
        return {"time": timed.seconds, "memory": timed.memory}


def dump_ruleset(lab: Lab) -> Path:
    """Return a file of what the lab's rules come to in nft's language, with nothing in the server's kernel."""
    apply_rules(lab)
    listed = lab.network.nft("list", "table", "inet", "nfpkd")
    lab.network.nft("delete", "table", "inet", "nfpkd")
    file = lab.folder / "ruleset.nft"
    file.write_text("\n".join(line for line in listed.splitlines() if " queue " not in f" {line.strip()} ") + "\n")
    return file


def _at_most_twice_nft(size: int) -> Target:
    case = f"{size:,} rules, {_APPLY}"
    return Target(f"{case}: at most 2 times nft -f", case, "time", at_most=2.0, of=(f"{size:,} rules, {_NFT}",))


def _linear(less: int, more: int) -> Target:
    case = f"{more:,} rules, {_APPLY}"
    text = f"linear: {case}: at most {more / less:.0f} times the time of {less:,}"
    return Target(text, case, "time", at_most=more / less * 1.1, of=(f"{less:,} rules, {_APPLY}",))
