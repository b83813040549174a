"""The commands.  Alone prints, prompts and exits.

Imports stand inside the commands: each loads what it needs, and ``--help``
needs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import click

from nfpkd.cli.shared import EXIT_REFUSED, EXIT_RULES, may_use_colours, paint
from nfpkd.errors import KernelError, KnockError, NfpkdError, ProfileError, RulesError, StateError
from nfpkd.text import Role

_EXIT_CODES: dict[type[NfpkdError], int] = {
    RulesError: EXIT_RULES,
    ProfileError: EXIT_RULES,
    KernelError: EXIT_REFUSED,
    KnockError: EXIT_REFUSED,
    StateError: EXIT_REFUSED,
}


# Where each command is: a module here, and what it is called in it.
_COMMANDS = {
    "apply": ("guard", "apply"),
    "check": ("rules", "check"),
    "confirm": ("guard", "confirm"),
    "demo": ("guard", "demo"),
    "doctor": ("doctor", "doctor"),
    "grant": ("people", "grant"),
    "import": ("importing", "import_rules"),
    "keygen": ("rules", "keygen"),
    "knock": ("client", "knock"),
    "revoke": ("people", "revoke"),
    "rollback": ("guard", "rollback"),
    "run": ("guard", "run"),
    "status": ("guard", "status"),
    "teardown": ("guard", "teardown"),
}


class _Commands(click.Group):
    """A group whose commands end with one plain line, and the right exit code, for every expected error."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (as click has it)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (as click has it)
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        found: click.Command = getattr(importlib.import_module(f"nfpkd.cli.{module}"), name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        if not may_use_colours():
            ctx.color = False
        try:
            return super().invoke(ctx)
        except NfpkdError as error:
            _fail(error)


def _fail(error: NfpkdError) -> NoReturn:
    from nfpkd.logs import escape

    for line in str(error).splitlines() or [type(error).__name__]:
        click.echo(f"{paint(Role.ERROR, 'nfpkd:')} {escape(line)}", err=True)
    sys.exit(_EXIT_CODES[type(error)])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nfpkd")
def main() -> None:
    """Closed ports that open for a knock.

    nfpkd closes the ports that its rule files name, and opens them for a while to whoever sends a knock: one
    UDP packet made with the rule's key.

    Exit codes: 0 done, 1 the rules, or the client's profiles, are wrong, 2 wrong usage, 3 the kernel, the network
    or a missing privilege refused.
    """
