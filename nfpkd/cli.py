"""The commands.  Alone prints, prompts and exits.

Imports stand inside the commands: each loads what it needs, and ``--help``
needs next to nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nfpkd.errors import KernelError, KnockError, NfpkdError, RulesError

if TYPE_CHECKING:
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.rules.loader import Loaded
    from nfpkd.rules.model import Secret

EXIT_RULES = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3

_EXIT_CODES: dict[type[NfpkdError], int] = {
    RulesError: EXIT_RULES,
    KernelError: EXIT_REFUSED,
    KnockError: EXIT_REFUSED,
}


class _Commands(click.Group):
    """A group whose commands end with one plain line, and the right exit code, for every expected error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NfpkdError as error:
            _fail(error)


def _fail(error: NfpkdError) -> NoReturn:
    from nfpkd.logs import escape

    for line in str(error).splitlines() or [type(error).__name__]:
        click.echo(f"nfpkd: {escape(line)}", err=True)
    sys.exit(_EXIT_CODES[type(error)])


_actions = click.option(
    "--actions",
    type=click.Path(path_type=Path),
    default=Path("/etc/nfpkd/actions.d"),
    envvar="NFPKD_ACTIONS",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Where the rule files are: every *.json in it and below.",
)
_queue = click.option(
    "--queue",
    type=click.IntRange(0, 65535),
    default=0,
    envvar="NFPKD_QUEUE",
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="The number of the packet queue that knocks are judged from.",
)
_strict_modes = click.option(
    "--strict-modes/--no-strict-modes",
    default=True,
    envvar="NFPKD_STRICT_MODES",
    show_envvar=True,
    help="Refuse rule files that others can read or change (default), or do not.",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nfpkd")
def main() -> None:
    """Closed ports that open for a knock.

    nfpkd closes the ports that its rule files name, and opens them for a while to whoever sends a knock: one
    UDP packet made with the rule's key.

    Exit codes: 0 done, 1 the rules are wrong, 2 wrong usage, 3 the kernel, the network or a missing privilege
    refused.
    """


@main.command()
@_actions
@_strict_modes
def check(actions: Path, strict_modes: bool) -> None:
    """Validate the rule files and print one line for each rule."""
    from nfpkd.rules.model import format_tag

    loaded = _load(actions, strict_modes)
    for rule in loaded.rules:
        clock = "clock ignored" if rule.skew is None else f"clock within {rule.skew} s"
        old = ", old digest too" if rule.old else ""
        click.echo(
            f"{rule.name}: {rule.describe_services()} opens for {rule.window} s to tag {format_tag(rule.tag)}, "
            f"{clock}{old}; others get {rule.reject.value}"
        )
    if not loaded.rules:
        click.echo(f"no rules in {actions}: nothing would be guarded", err=True)


@main.command()
@_actions
@_queue
@_strict_modes
@click.option("--dry-run", is_flag=True, help="Print the nft JSON that would be sent, and change nothing.")
def apply(actions: Path, queue: int, strict_modes: bool, dry_run: bool) -> None:
    """Guard the ports, in one step, and leave the guard in place.

    Knocks are judged by `nfpkd run`; grants that are live stay.
    """
    from nfpkd.verifier.listeners import find_queue_listeners

    rules = _load(actions, strict_modes).rules
    if dry_run:
        _print_plan(actions, rules, queue)
        return
    if _open_firewall().apply(rules, queue):
        click.echo(f"guarding: {_count(len(rules), 'rule')} from {actions}")
    else:
        click.echo(f"nothing to change: {_count(len(rules), 'rule')} already in force")
    if rules and queue not in find_queue_listeners():
        click.echo(
            f"note: no verifier listens on queue {queue}, so nobody can open anything: start `nfpkd run`",
            err=True,
        )


@main.command()
@_actions
@_queue
@_strict_modes
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
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="NFPKD_LOG_FORMAT",
    show_default=True,
    show_envvar=True,
    help="How log lines look, on standard error.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also log packets that look like knocks but are none.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def run(
    actions: Path, queue: int, strict_modes: bool, on_exit: str, log_format: str, verbose: bool, quiet: bool
) -> None:
    """Guard the ports, judge knocks and follow the rule files, until SIGTERM or SIGINT.

    SIGHUP reloads the rule files, as every change of them does.
    """
    import asyncio
    import logging

    from nfpkd.daemon import Daemon, Settings
    from nfpkd.logs import set_up_logging

    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet contradict each other")
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    set_up_logging(level, log_format)
    settings = Settings(actions, queue, keep=on_exit == "keep", strict_modes=strict_modes)
    asyncio.run(Daemon(_open_firewall(), settings).run())


@main.command()
@click.argument("host", required=False, metavar="[HOST]")
@click.option("--host", "host_option", metavar="HOST", help="The same as the argument HOST.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="P",
    help="The UDP port to knock at; a random one if not given.",
)
@click.option(
    "--tag",
    default="PKD0",
    envvar="NFPKD_TAG",
    show_default=True,
    show_envvar=True,
    metavar="T",
    help="The rule's tag: up to 4 bytes of text, or hex behind 0x.",
)
@click.option(
    "--key",
    envvar="NFPKD_KEY",
    show_envvar=True,
    metavar="K",
    help="The rule's key. Other users of this machine can see it in the process list; --key-file is safer.",
)
@click.option(
    "--key-file",
    type=click.File("r", encoding="utf-8"),
    envvar="NFPKD_KEY_FILE",
    show_envvar=True,
    metavar="F",
    help="Read the key from the first line of this file; - is standard input.",
)
@click.option("-4", "family", flag_value="4", help="Knock by IPv4 only.")
@click.option("-6", "family", flag_value="6", help="Knock by IPv6 only.")
def knock(
    host: str | None,
    host_option: str | None,
    port: int | None,
    tag: str,
    key: str | None,
    key_file: Any,
    family: str | None,
) -> None:
    """Send one knock to HOST, a name or an address.

    Without --key and --key-file the key is asked for.
    """
    import socket

    from nfpkd.knock.client import send_knock
    from nfpkd.rules.model import format_tag, parse_tag

    if (host is None) == (host_option is None):
        raise click.UsageError("Give the host once: nfpkd knock HOST")
    try:
        tag_bytes = parse_tag(tag)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tag") from None
    families = {None: socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}
    secret = _read_key(key, key_file)
    sent = send_knock(host or host_option or "", secret, tag_bytes, port=port, family=families[family])
    click.echo(f"knock sent to {sent.address} port {sent.port}/udp with tag {format_tag(tag_bytes)}")


@main.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="NFPKD_FORMAT",
    show_default=True,
    show_envvar=True,
    help="For people, or for programs.",
)
def status(form: str) -> None:
    """Show what is guarded, who is let in and for how long, and the counters, as the kernel has them."""
    from nfpkd.status import render_json, render_text
    from nfpkd.verifier.listeners import find_queue_listeners

    state = _open_firewall().read_state()
    render = render_json if form == "json" else render_text
    click.echo(render(state, find_queue_listeners()))


@main.command()
def teardown() -> None:
    """Remove nfpkd's table: every port that it guarded is open again."""
    existed = _open_firewall().teardown()
    click.echo("removed: the ports are no longer guarded" if existed else "nothing to remove")


@main.command()
def demo() -> None:
    """Show the whole story on two private networks; nothing of this machine's own firewall is touched."""
    from nfpkd.demo.story import tell

    if not tell(click.echo):
        sys.exit(EXIT_REFUSED)


def _load(actions: Path, strict_modes: bool) -> Loaded:
    from nfpkd.logs import escape
    from nfpkd.rules.loader import load_rules

    loaded = load_rules(actions, strict_modes=strict_modes)
    for warning in loaded.warnings:
        click.echo(f"warning: {escape(str(warning))}", err=True)
    return loaded


def _open_firewall() -> Firewall:
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.firewall.kernel import NftablesKernel
    from nfpkd.firewall.sessions import list_open_sessions

    return Firewall(NftablesKernel(), list_open_sessions)


def _print_plan(actions: Path, rules: Any, queue: int) -> None:
    """Print what `apply` would send; without the privilege to ask the kernel, what it would send to an empty one."""
    from nfpkd.firewall.kernel import has_net_admin
    from nfpkd.firewall.ruleset import compile_ruleset, transaction_to

    if has_net_admin():
        transaction = _open_firewall().plan(rules, queue)
        click.echo(f"checked by the kernel, not applied: {_count(len(rules), 'rule')} from {actions}", err=True)
    else:
        transaction = transaction_to(compile_ruleset(rules, queue), None)
        click.echo(
            "checked by nfpkd alone, as if no guard were in place: asking the kernel takes CAP_NET_ADMIN",
            err=True,
        )
    click.echo(transaction.to_json())


def _read_key(key: str | None, key_file: Any) -> Secret:
    from nfpkd.rules.model import is_odd_hex, parse_key

    if key is not None and key_file is not None:
        raise click.UsageError("--key and --key-file contradict each other")
    if key_file is not None:
        try:
            text = key_file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise click.BadParameter("cannot be read as text", param_hint="--key-file") from None
    elif key is not None:
        text = key
    else:
        text = click.prompt("Key", hide_input=True, err=True)
    try:
        secret = parse_key(text)
    except ValueError as error:
        raise click.BadParameter(f"the key {error}", param_hint="--key") from None
    if is_odd_hex(text):
        click.echo(
            "warning: the key has an odd number of hex digits; its last byte is read with a 0 behind",
            err=True,
        )
    return secret


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
