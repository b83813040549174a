"""What a shell completes besides commands and options.

Asked while somebody types: it reads no more than it needs, prints nothing, and
where a file or the kernel is not for this user's eyes it offers nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nfpkd.errors import NfpkdError

if TYPE_CHECKING:
    import click

    from nfpkd.firewall.state import Grant

# As much as a shell may wait for: the files of some 50,000 rules.
_MOST_BYTES = 8 * 1024 * 1024


def complete_rule(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the rules in the rule files."""
    return _start_with(incomplete, _read_rule_names(ctx.params.get("actions")))


def complete_granted_rule(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the rules by which somebody is let in."""
    return _start_with(incomplete, (grant.rule for grant in _read_grants()))


def complete_granted_address(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the addresses that are let in, by the rule that was named in front."""
    rule = ctx.params.get("rule")
    return _start_with(incomplete, (grant.source for grant in _read_grants() if grant.rule == rule))


def complete_profile(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the client's profiles."""
    from nfpkd.knock.profiles import list_profile_names

    return _start_with(incomplete, list_profile_names())


def complete_interface(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the network interfaces."""
    import socket

    return _start_with(incomplete, (name for _, name in socket.if_nameindex()))


def complete_user(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the users."""
    import pwd

    return _start_with(incomplete, (entry.pw_name for entry in pwd.getpwall()))


def _start_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _read_rule_names(folder: Path | None) -> Iterator[str]:
    """Yield what stands as a name in the rule files; the schema would take longer to load than all of this."""
    import json

    left = _MOST_BYTES
    for path in _find_files(folder) if folder else ():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            # Opening anything else, a FIFO for one, might wait.
            if not path.is_file() or (left := left - path.stat().st_size) < 0:
                continue
            document = json.loads(path.read_bytes())
            for rule in document if isinstance(document, list) else ():
                if isinstance(rule, dict) and isinstance(rule.get("name"), str):
                    yield rule["name"]


def _find_files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.rglob("*.json"))
    return []


def _read_grants() -> tuple[Grant, ...]:
    with contextlib.suppress(NfpkdError, ImportError, OSError):
        from nfpkd.cli.shared import open_firewall

        state = open_firewall().read_state()
        return state.grants if state else ()
    return ()
