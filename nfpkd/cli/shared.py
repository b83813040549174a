"""What several commands share: options, and the way to rules and firewall."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nfpkd.cli.completion import complete_interface
from nfpkd.cli.progress import progress
from nfpkd.text import Role

if TYPE_CHECKING:
    from nfpkd.errors import Problem
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.rules.build import PlacedRule
    from nfpkd.rules.loader import Loaded

_F = TypeVar("_F", bound=Callable[..., Any])

_STYLES: dict[Role, dict[str, Any]] = {
    Role.HEADING: {"bold": True},
    Role.ERROR: {"fg": "red"},
    Role.WARNING: {"fg": "yellow"},
    Role.GOOD: {"fg": "green"},
    Role.NEW: {"fg": "green"},
    Role.GONE: {"fg": "red"},
    Role.ASIDE: {"dim": True},
}

# Those of all commands; see make_format_option for those of one.
_FORMATS = ("text", "json", "prometheus")

EXIT_RULES = 1
EXIT_REFUSED = 3

actions_option = click.option(
    "--actions",
    type=click.Path(path_type=Path),
    default=Path("/etc/nfpkd/actions.d"),
    envvar="NFPKD_ACTIONS",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Where the rule files are: every *.json in it and below.",
)
queue_option = click.option(
    "--queue",
    type=click.IntRange(0, 65535),
    default=0,
    envvar="NFPKD_QUEUE",
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="The number of the packet queue that knocks are judged from.",
)
trust_interface_option = click.option(
    "--trust-interface",
    "trusted",
    multiple=True,
    shell_complete=complete_interface,
    envvar="NFPKD_TRUST_INTERFACE",
    show_envvar=True,
    metavar="NAME",
    help="Let in everything that comes by this network interface, for example lo. Repeatable.",
)
source_limit_option = click.option(
    "--source-limit",
    type=click.IntRange(1, 1_000_000),
    default=20,
    envvar="NFPKD_SOURCE_LIMIT",
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="How many packets a second one source may have judged or held back (IPv4 /32, IPv6 /64).",
)
strict_modes_option = click.option(
    "--strict-modes/--no-strict-modes",
    default=True,
    envvar="NFPKD_STRICT_MODES",
    show_envvar=True,
    help="Refuse rule files that others can read or change (default), or do not.",
)
state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/nfpkd"),
    envvar="NFPKD_STATE_DIR",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Where knocks are remembered, so that none is good twice, over a restart too; none for nowhere.",
)


class _FormatOption(click.Option):
    """Passes over what the environment asks of other commands alone; a misspelling is an error."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        asked = super().resolve_envvar_value(ctx)
        forms = self.type.choices if isinstance(self.type, click.Choice) else ()
        return asked if asked not in _FORMATS or asked in forms else None


def make_format_option(*forms: str) -> Callable[[_F], _F]:
    return click.option(
        "--format",
        "form",
        cls=_FormatOption,
        type=click.Choice(forms),
        default=forms[0],
        envvar="NFPKD_FORMAT",
        show_default=True,
        show_envvar=True,
        help="For people, or for programs.",
    )


format_option = make_format_option("text", "json")


def paint(role: Role, text: str) -> str:
    """Return *text* in the colours of *role*; `click.echo` takes them away where there is no terminal."""
    return click.style(text, **_STYLES[role])


def may_use_colours() -> bool:
    """Tell whether this user's terminals may be coloured at all; see https://no-color.org."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def load(actions: Path, strict_modes: bool, places: list[PlacedRule] | None = None) -> Loaded:
    from nfpkd.rules.loader import load_rules

    click.get_current_context().with_resource(_no_collections())
    with progress("reading the rule files"):
        loaded = load_rules(actions, strict_modes=strict_modes, places=places)
    warn(loaded.warnings)
    return loaded


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Have nothing searched for garbage: what rules become stays, and of 100,000 it took a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def warn(warnings: Iterable[Problem]) -> None:
    from nfpkd.logs import escape

    for warning in warnings:
        click.echo(f"{paint(Role.WARNING, 'warning:')} {escape(str(warning))}", err=True)


def open_firewall() -> Firewall:
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.firewall.kernel import NftablesKernel
    from nfpkd.firewall.sessions import list_open_sessions

    return Firewall(NftablesKernel(), list_open_sessions)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def make_key() -> str:
    """Return a random key of 256 bits, as a rule file has it."""
    import secrets

    return f"0x{secrets.token_hex(32)}"
