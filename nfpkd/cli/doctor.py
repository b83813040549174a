"""The command about this host: doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nfpkd.cli.shared import EXIT_REFUSED, actions_option, format_option, paint, queue_option, state_dir_option


@click.command()
@actions_option
@queue_option
@state_dir_option
@format_option
def doctor(actions: Path, queue: int, state_dir: Path, form: str) -> None:
    """Look for what keeps this host from working, and say what to do about it.

    Nothing is changed.  The exit code is 3 if there are faults; warnings and notes do not count.
    """
    from nfpkd.doctor.checks import examine, render_json, render_text
    from nfpkd.doctor.facts import gather

    diagnosis = examine(gather(actions, queue, None if str(state_dir) == "none" else state_dir))
    click.echo(render_json(diagnosis) if form == "json" else render_text(diagnosis, paint))
    if not diagnosis.is_healthy:
        sys.exit(EXIT_REFUSED)
