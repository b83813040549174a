"""The commands about the guard: apply, run, status, teardown and demo."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nfpkd.cli.completion import complete_user
from nfpkd.cli.progress import progress
from nfpkd.cli.shared import (
    EXIT_REFUSED,
    actions_option,
    count,
    load,
    make_format_option,
    open_firewall,
    paint,
    queue_option,
    source_limit_option,
    state_dir_option,
    strict_modes_option,
    trust_interface_option,
)
from nfpkd.errors import KernelError, NfpkdError, RulesError
from nfpkd.text import Role

if TYPE_CHECKING:
    from nfpkd.firewall.ruleset import Options
    from nfpkd.last_good import LastGood
    from nfpkd.rules.model import Rule

confirm_option = click.option(
    "--confirm",
    type=click.IntRange(1, 86400),
    metavar="SECONDS",
    help="Undo it after so many seconds, unless `nfpkd confirm` comes first.",
)


@click.command()
@actions_option
@queue_option
@trust_interface_option
@source_limit_option
@strict_modes_option
@confirm_option
@state_dir_option
@click.option(
    "--last-good",
    is_flag=True,
    help="Keep what was applied, keys and all, in the state directory; where nothing is guarded and this fails, apply"
    " what was kept.",
)
@click.option("--dry-run", is_flag=True, help="Print the nft JSON that would be sent, and change nothing.")
def apply(
    actions: Path,
    queue: int,
    trusted: tuple[str, ...],
    source_limit: int,
    strict_modes: bool,
    confirm: int | None,
    state_dir: Path,
    last_good: bool,
    dry_run: bool,
) -> None:
    """Guard the ports, in one step, and leave the guard in place.

    Prints what changes for ports (+ newly guarded so, - no longer) and for whoever is let in. Knocks are judged by
    `nfpkd run`; grants stay as long as their rules do.
    """
    from nfpkd.firewall.ruleset import Options
    from nfpkd.last_good import LastGood

    if last_good:
        _check_last_good(state_dir, confirm)
    kept = LastGood(state_dir, actions) if last_good and not dry_run else None
    options = Options(queue, _check_interfaces(trusted), source_limit)
    try:
        loaded = load(actions, strict_modes)
        if dry_run:
            _print_plan(actions, loaded.rules, options)
            return
        _apply(actions, loaded.rules, options, confirm)
    except (RulesError, KernelError):
        if kept is not None:
            _fall_back(kept)
        raise
    if kept is not None:
        kept.save(loaded, options)


def _apply(actions: Path, rules: tuple[Rule, ...], options: Options, confirm: int | None) -> None:
    from nfpkd.instance import find_instance
    from nfpkd.status import render_changes
    from nfpkd.verifier.listeners import find_queue_listeners

    if confirm is not None and find_instance() is not None:
        raise KernelError("nfpkd is running here, and follows the rule files by itself", 'use "nfpkd run --confirm"')
    firewall = open_firewall()
    if confirm is not None:
        _arm(confirm)
    # If it fails, what is armed stays so: whatever was done by then is undone, too.
    with progress("guarding"):
        applied = firewall.apply(rules, options)
    for line in render_changes(applied.held, applied.wanted, paint):
        click.echo(line)
    if applied.sent:
        click.echo(f"guarding: {count(len(rules), 'rule')} from {actions}")
    else:
        click.echo(f"nothing to change: {count(len(rules), 'rule')} already in force")
    if rules and options.queue not in find_queue_listeners():
        click.echo(
            f"{paint(Role.WARNING, 'note:')} no verifier listens on queue {options.queue}, so nobody can open anything:"
            " start `nfpkd run`",
            err=True,
        )


def _fall_back(kept: LastGood) -> None:
    """Where nothing is guarded, guard what was guarded last; say what is in force now."""
    try:
        firewall = open_firewall()
        if firewall.read_state() is not None:
            text = "the rules are not applied; what was guarded before stays guarded"
        elif (transaction := kept.load_guard()) is None:
            text = f"the rules are not applied, nothing is guarded, and no last good guard is in {kept.path}"
        else:
            firewall.make_again(transaction)
            text = f"the rules are not applied; the last good guard, from {kept.path}, is in force instead"
    except NfpkdError as error:
        text = f"the rules are not applied, and neither is the last good guard: {error}"
    click.echo(f"nfpkd: {text}", err=True)


@click.command()
@actions_option
@queue_option
@trust_interface_option
@source_limit_option
@strict_modes_option
@confirm_option
@state_dir_option
@click.option(
    "--user",
    default="",
    shell_complete=complete_user,
    envvar="NFPKD_USER",
    show_envvar=True,
    metavar="NAME",
    help="Become this user; rule files and the state directory must be theirs to read and write.",
)
@click.option(
    "--trigger-socket",
    type=click.Path(path_type=Path),
    envvar="NFPKD_TRIGGER_SOCKET",
    show_envvar=True,
    metavar="PATH",
    help="Have rules' commands run by the helper behind this socket, as nfpkd-triggers.socket has it, not by a child.",
)
@click.option(
    "--on-exit",
    type=click.Choice(["teardown", "keep"]),
    default="teardown",
    envvar="NFPKD_ON_EXIT",
    show_default=True,
    show_envvar=True,
    help="What becomes of the guard on SIGTERM and SIGINT; keep is for restarts without a gap.",
)
@click.option(
    "--last-good",
    is_flag=True,
    help="Keep the rules in force, keys and all, in the state directory; where this cannot begin with the rule files,"
    " go on with what was kept until they are corrected.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json", "journal"]),
    default="auto",
    envvar="NFPKD_LOG_FORMAT",
    show_default=True,
    show_envvar=True,
    help="How to log: lines on standard error, or fields to systemd's journal; auto takes the journal where"
    " standard error leads to it, and text elsewhere.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also log packets that look like knocks but are none.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def run(
    actions: Path,
    queue: int,
    trusted: tuple[str, ...],
    source_limit: int,
    strict_modes: bool,
    confirm: int | None,
    state_dir: Path,
    user: str,
    trigger_socket: Path | None,
    on_exit: str,
    last_good: bool,
    log_format: str,
    verbose: bool,
    quiet: bool,
) -> None:
    """Guard the ports, judge knocks and follow the rule files, until SIGTERM or SIGINT.

    SIGHUP reloads the rule files, as every change of them does.
    """
    import asyncio
    import logging

    from nfpkd.daemon import Daemon, Settings
    from nfpkd.firewall.ruleset import Options
    from nfpkd.logs import set_up_logging
    from nfpkd.notify import Notifier

    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet contradict each other")
    if last_good:
        _check_last_good(state_dir, confirm)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    set_up_logging(level, log_format)
    settings = Settings(
        actions,
        Options(queue, _check_interfaces(trusted), source_limit),
        None if str(state_dir) == "none" else state_dir,
        last_good=last_good,
        keep=on_exit == "keep",
        user=user,
        trigger_socket=trigger_socket,
        strict_modes=strict_modes,
        log_level=level,
        log_format=log_format,
    )
    with contextlib.closing(Notifier(os.environ)) as notifier:
        firewall = open_firewall()
        if confirm is not None:
            _arm(confirm)
        asyncio.run(Daemon(firewall, settings, notifier).run())


@click.command()
def confirm() -> None:
    """Let a change stay that was made with --confirm."""
    from nfpkd.confirmation import Confirmation

    if not Confirmation().confirm():
        raise KernelError("nothing waits to be confirmed", "it was never made, or has been undone: see `nfpkd status`")
    click.echo("confirmed: the change stays")


@click.command(hidden=True)
@click.argument("generation")
@click.argument("seconds", type=float)
def rollback(generation: str, seconds: float) -> None:
    """Wait, and undo a change unless it was confirmed meanwhile; started by --confirm."""
    import time

    from nfpkd.confirmation import Confirmation
    from nfpkd.firewall.kernel import NftablesKernel

    confirmation = Confirmation()
    deadline = time.monotonic() + seconds
    # Once confirmed there is nothing to wait for.
    while (left := deadline - time.monotonic()) > 0 and confirmation.is_waiting(generation):
        time.sleep(min(1.0, left))
    confirmation.roll_back(generation, NftablesKernel())


@click.command()
@make_format_option("text", "json", "prometheus")
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
def status(form: str, watch: bool) -> None:
    """Show what is guarded, who is let in and for how long, and the counters, as the kernel has them."""
    import time

    from nfpkd.instance import find_report
    from nfpkd.metrics import render_prometheus
    from nfpkd.status import render_json, render_text
    from nfpkd.verifier.listeners import find_queue_listeners

    firewall = open_firewall()

    def render() -> str:
        state, listeners, report = firewall.read_state(), find_queue_listeners(), find_report()
        if form == "json":
            return render_json(state, listeners, report)
        if form == "prometheus":
            return render_prometheus(state, listeners, report)
        return render_text(state, listeners, report, paint)

    while True:
        shown = render()
        if watch and form == "text":
            click.clear()
        click.echo(shown)
        if not watch:
            return
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            return


@click.command()
def teardown() -> None:
    """Remove nfpkd's table: every port that it guarded is open again."""
    existed = open_firewall().teardown()
    click.echo("removed: the ports are no longer guarded" if existed else "nothing to remove")


@click.command()
def demo() -> None:
    """Show the whole story on two private networks; nothing of this machine's own firewall is touched."""
    from nfpkd.demo.story import tell

    if not tell(click.echo, paint):
        sys.exit(EXIT_REFUSED)


def _arm(seconds: int) -> None:
    from nfpkd.confirmation import Confirmation
    from nfpkd.firewall.kernel import NftablesKernel

    Confirmation().arm(NftablesKernel(), seconds)
    click.echo(f"everything goes back to what it was in {seconds} s, unless you run: nfpkd confirm", err=True)


def _print_plan(actions: Path, rules: tuple[Rule, ...], options: Options) -> None:
    """Print what `apply` would send; without the privilege to ask the kernel, what it would send to an empty one."""
    from nfpkd.firewall.ruleset import compile_ruleset, transaction_to
    from nfpkd.privileges import has_net_admin

    if has_net_admin():
        transaction = open_firewall().plan(rules, options)
        click.echo(f"checked by the kernel, not applied: {count(len(rules), 'rule')} from {actions}", err=True)
    else:
        transaction = transaction_to(compile_ruleset(rules, options), None)
        click.echo(
            "checked by nfpkd alone, as if no guard were in place: asking the kernel takes CAP_NET_ADMIN",
            err=True,
        )
    click.echo(transaction.to_json())


def _check_last_good(state_dir: Path, confirm: int | None) -> None:
    if confirm is not None:
        # What is undone must not have been kept.
        raise click.UsageError("--last-good and --confirm contradict each other")
    if str(state_dir) == "none":
        raise click.UsageError("--last-good takes a --state-dir")


def _check_interfaces(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r'[^\s/:@"*\\]{1,15}', name):
            raise click.BadParameter(f"{name!r} is not the name of an interface", param_hint="--trust-interface")
    return names
