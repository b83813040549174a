"""The rows of the table, in its order."""

from __future__ import annotations

from lab.bench.measurement import Measurement, Scale
from lab.bench.rows.applying import Apply
from lab.bench.rows.flooding import Flood, Unrelated
from lab.bench.rows.granting import Granted
from lab.bench.rows.judging import Judged, SharedTag
from lab.bench.rows.opening import FirstSyn, KnockToConnected
from lab.bench.rows.passing import Bulk, Connections
from lab.bench.rows.reloading import Reload
from lab.bench.rows.scaling import KnockCost, Memory
from lab.bench.rows.starting import Commands, Guarded
from lab.load import Load


def make_rows(scale: Scale, load: Load) -> list[Measurement]:
    return [
        KnockToConnected(scale),
        Flood(scale, load),
        FirstSyn(scale),
        Connections(scale),
        Bulk(scale),
        Unrelated(scale, load),
        Judged(scale, load),
        SharedTag(scale, load),
        Granted(scale),
        Apply(scale),
        Reload(scale),
        KnockCost(scale),
        Memory(scale),
        Guarded(),
        Commands(scale),
    ]
