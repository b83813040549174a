"""nfpkd's commands, run in the test's own process."""

from __future__ import annotations

import inspect
from typing import Any

import click
from click.testing import CliRunner, Result

from nfpkd import cli

_CONTEXT = click.Context(cli.main)
COMMANDS = {
    name: command for name in cli.main.list_commands(_CONTEXT) if (command := cli.main.get_command(_CONTEXT, name))
}


def invoke(*arguments: object, **options: Any) -> Result:
    """Run ``nfpkd`` with *arguments*; the result has standard output and standard error apart."""
    # click 8.2 always keeps them apart; before, it mixed them unless it was told not to.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(cli.main, [*map(str, arguments)], prog_name="nfpkd", **options)
