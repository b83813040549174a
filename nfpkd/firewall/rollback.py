"""Going back to the table that was there before a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Transaction
from nfpkd.firewall.ruleset import delete_table
from nfpkd.firewall.state import parse_state

# What refers to something else comes behind it.
_ORDER = ("counter", "chain", "set", "map", "rule")


def restore_table(listing: Iterable[Json] | None) -> Transaction:
    """Return the transaction that makes our table what it was when *listing* was made; None is no table.

    Everything comes back as it was listed, grants with the time they had left then.
    """
    if listing is None:
        return delete_table()
    found = list(listing)
    queue = parse_state(found).queue
    return Transaction(
        (
            nft.add_table(TABLE),
            nft.delete_table(TABLE),
            nft.add_table(TABLE),
            *(command for kind in _ORDER for command in _add_again(found, kind, queue)),
        )
    )


def _add_again(listing: list[Json], kind: str, queue: int | None) -> Iterator[Json]:
    for entry in listing:
        if kind not in entry:
            continue
        described = {name: value for name, value in entry[kind].items() if name != "handle"}
        if kind == "rule" and described.get("chain") == layout.VERIFY and queue is not None:
            # Through nft_compat it is listed in a form that cannot be added again.
            yield nft.add(layout.queue_rule(queue))
        else:
            if isinstance(described.get("elem"), list):
                described["elem"] = [element for element in described["elem"] if not _has_run_out(element)]
            yield {"add": {kind: described}}


def _has_run_out(element: Any) -> bool:
    """Tell whether an element was in its last second: to add it with no time left would give it all its time again."""
    match element:
        case {"elem": {"expires": 0}}:
            return True
    return False
