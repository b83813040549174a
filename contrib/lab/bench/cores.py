"""Who runs on which core, the same in every round."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# Clients, servers and floods have one each.  With two cores the flood shares the
# client's: what is measured is the server.
_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE, SERVER_CORE, LOAD_CORE = (_CORES[index % len(_CORES)] for index in range(3))


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep this thread on *core*, and what it starts meanwhile for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
