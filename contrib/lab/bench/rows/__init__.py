"""The rows of the table, in its order."""

from __future__ import annotations

from lab.bench.measurement import Measurement, Scale
from lab.bench.rows.applying import Apply
from lab.bench.rows.judging import Judged, SharedTag
from lab.bench.rows.opening import FirstSyn, KnockToConnected
from lab.bench.rows.starting import Commands, Guarded
from lab.load import Load


def make_rows(scale: Scale, load: Load) -> list[Measurement]:
    return [
        KnockToConnected(scale),
        FirstSyn(scale),
        Judged(scale, load),
        SharedTag(scale, load),
        Apply(scale),
        Guarded(),
        Commands(scale),
    ]
