"""nfpkd's commands, run in the test's own process."""

from __future__ import annotations

import inspect
from typing import Any

from click.testing import CliRunner, Result

from nfpkd import cli


def invoke(*arguments: object, **options: Any) -> Result:
    """Run ``nfpkd`` with *arguments*; the result has standard output and standard error apart."""
    # click 8.2 always keeps them apart; before, it mixed them unless it was told not to.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(cli.main, [*map(str, arguments)], prog_name="nfpkd", **options)
