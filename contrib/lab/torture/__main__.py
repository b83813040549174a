"""Try what is to be tried, print a table of how it went, and fail if something did not hold."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from lab.torture.crashes import try_crashes
from lab.torture.floods import try_floods
from lab.torture.inputs import try_inputs
from lab.torture.result import Result, render_table
from lab.torture.soak import try_soak

_PARTS: dict[str, Callable[..., Iterator[Result]]] = {
    "floods": try_floods,
    "crashes": try_crashes,
    "inputs": try_inputs,
    "soak": try_soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="contrib/torture", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the whole of it, which takes about an hour")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)}; all of them without one")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - _PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    results = []
    for name in arguments.parts or _PARTS:
        started = time.monotonic()
        for result in _PARTS[name](long=arguments.long):
            results.append(result)
            # It takes long, so what is known is told.
            print(f"{'held' if result.good else 'NOT HELD'}: {result.what}: {result.seen}", flush=True)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    print(render_table(results))
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
