"""The commands.  Alone prints, prompts and exits.

Imports stand inside the commands: each loads what it needs, and ``--help``
needs next to nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nfpkd.errors import KernelError, KnockError, NfpkdError, Problem, RulesError, StateError

if TYPE_CHECKING:
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.firewall.ruleset import Options
    from nfpkd.rules.build import PlacedRule
    from nfpkd.rules.loader import Loaded
    from nfpkd.rules.model import Rule, Secret

EXIT_RULES = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3

_EXIT_CODES: dict[type[NfpkdError], int] = {
    RulesError: EXIT_RULES,
    KernelError: EXIT_REFUSED,
    KnockError: EXIT_REFUSED,
    StateError: EXIT_REFUSED,
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
_trust_interface = click.option(
    "--trust-interface",
    "trusted",
    multiple=True,
    envvar="NFPKD_TRUST_INTERFACE",
    show_envvar=True,
    metavar="NAME",
    help="Let in everything that comes by this network interface, for example lo. Repeatable.",
)
_source_limit = click.option(
    "--source-limit",
    type=click.IntRange(1, 1_000_000),
    default=20,
    envvar="NFPKD_SOURCE_LIMIT",
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="How many knock-shaped packets a second one source may send (IPv4 /32, IPv6 /64).",
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
@click.option("--strict", is_flag=True, help="Fail, with exit code 1, if there are warnings.")
def check(actions: Path, strict_modes: bool, strict: bool) -> None:
    """Validate the rule files and print one line for each rule.

    What is allowed but doubtful is warned of: weak keys, ports that nothing listens on, and the like.
    """
    import time

    from nfpkd.describe import describe_rule
    from nfpkd.firewall.sessions import list_listening_services
    from nfpkd.rules.lint import find_smells

    places: list[PlacedRule] = []
    loaded = _load(actions, strict_modes, places)
    smells = sorted(find_smells(places, now=time.time(), listening=list_listening_services()))
    _warn(smells)
    for rule in loaded.rules:
        click.echo(describe_rule(rule))
    if not loaded.rules:
        click.echo(f"no rules in {actions}: nothing would be guarded", err=True)
    warnings = len(loaded.warnings) + len(smells)
    if strict and warnings:
        click.echo(f"nfpkd: {_count(warnings, 'warning')}, which --strict does not allow", err=True)
        sys.exit(EXIT_RULES)


@main.command()
@_actions
@click.option("--name", metavar="N", help="The rule's name; made from the port if not given.")
@click.option("--port", default="22", show_default=True, metavar="P", help="The port: 22, 8000-8100 or 80,443.")
@click.option(
    "--protocol", metavar="X", help="tcp, udp, dccp, sctp, udplite, or several like tcp,udp; any if not given."
)
@click.option("--tag", metavar="T", help="Up to 4 bytes of text, or hex behind 0x; 4 random characters if not given.")
@click.option("--window", type=int, metavar="S", help="For how many seconds a knock opens; 60 if not given.")
@click.option("--host", default="HOST", metavar="H", help="The server, as the client's command line will name it.")
def keygen(
    actions: Path, name: str | None, port: str, protocol: str | None, tag: str | None, window: int | None, host: str
) -> None:
    """Make a random key, inside a rule that is ready for a file of its own.

    The rule goes to standard output, and what to do with it to standard error.
    """
    import json
    import secrets

    from nfpkd.logs import escape

    name = name if name is not None else "ssh" if port == "22" else f"port-{port.replace(',', '-')}"
    tag = tag if tag is not None else _make_tag()
    fields = {
        "name": name,
        "port": _split_option(port),
        "protocol": None if protocol is None else _split_option(protocol),
        "tag": tag,
        "window": window,
        "key": f"0x{secrets.token_hex(32)}",
    }
    text = json.dumps([{field: value for field, value in fields.items() if value is not None}])
    _check_made_rules(text)
    click.echo(f"[\n  {text[1:-1]}\n]")
    for line in _explain_made_rule(name, tag, host, actions):
        click.echo(escape(line), err=True)


@main.command()
@_actions
@_queue
@_trust_interface
@_source_limit
@_strict_modes
@click.option("--dry-run", is_flag=True, help="Print the nft JSON that would be sent, and change nothing.")
def apply(
    actions: Path, queue: int, trusted: tuple[str, ...], source_limit: int, strict_modes: bool, dry_run: bool
) -> None:
    """Guard the ports, in one step, and leave the guard in place.

    Knocks are judged by `nfpkd run`; grants that are live stay.
    """
    from nfpkd.firewall.ruleset import Options
    from nfpkd.verifier.listeners import find_queue_listeners

    rules = _load(actions, strict_modes).rules
    options = Options(queue, _check_interfaces(trusted), source_limit)
    if dry_run:
        _print_plan(actions, rules, options)
        return
    if _open_firewall().apply(rules, options):
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
@_trust_interface
@_source_limit
@_strict_modes
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/nfpkd"),
    envvar="NFPKD_STATE_DIR",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Where knocks are remembered, so that none is good twice, over a restart too; none for nowhere.",
)
@click.option(
    "--user",
    default="",
    envvar="NFPKD_USER",
    show_envvar=True,
    metavar="NAME",
    help="Become this user; rule files and the state directory must be theirs to read and write.",
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
    actions: Path,
    queue: int,
    trusted: tuple[str, ...],
    source_limit: int,
    strict_modes: bool,
    state_dir: Path,
    user: str,
    on_exit: str,
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

    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet contradict each other")
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    set_up_logging(level, log_format)
    settings = Settings(
        actions,
        Options(queue, _check_interfaces(trusted), source_limit),
        None if str(state_dir) == "none" else state_dir,
        keep=on_exit == "keep",
        user=user,
        strict_modes=strict_modes,
        log_level=level,
        log_format=log_format,
    )
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
@click.argument("rule")
@click.argument("address")
@click.option(
    "--for",
    "seconds",
    type=click.IntRange(1, 365 * 24 * 3600),
    metavar="SECONDS",
    help="For how long; the rule's window if not given.",
)
@_actions
@_strict_modes
def grant(rule: str, address: str, seconds: int | None, actions: Path, strict_modes: bool) -> None:
    """Let ADDRESS in as if it had knocked for RULE."""
    from nfpkd.firewall.ruleset import make_grants

    source = _parse_address(address)
    rules = {found.name: found for found in _load(actions, strict_modes).rules}
    if rule not in rules:
        raise click.BadParameter(_explain_unknown_rule(rule, rules), param_hint="RULE")
    if not rules[rule].ports:
        raise click.BadParameter(f"rule {rule!r} opens no port", param_hint="RULE")
    firewall = _open_firewall()
    if firewall.read_state() is None:
        raise KernelError("nfpkd guards nothing here", "start `nfpkd run`, or `nfpkd apply`, first")
    granted = seconds or rules[rule].window
    firewall.grant(list(make_grants(rules[rule], source, granted)))
    click.echo(f"{source} is let in to {rules[rule].describe_services()} for {granted} s")


@main.command()
@click.argument("rule", required=False, default="")
@click.argument("address", required=False, default="")
@click.option("--all", "everything", is_flag=True, help="Take back every grant of every rule.")
def revoke(rule: str, address: str, everything: bool) -> None:
    """Take back what a knock for RULE opened: for ADDRESS, or for everybody.

    Connections that are open go on.
    """
    if everything == bool(rule):
        raise click.UsageError("Name a RULE, or give --all")
    taken = _open_firewall().revoke(rule, _parse_address(address) if address else "")
    people = sorted({grant.who for grant in taken})
    click.echo(f"taken back from {', '.join(people)}" if people else "nothing to take back")


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


def _load(actions: Path, strict_modes: bool, places: list[PlacedRule] | None = None) -> Loaded:
    from nfpkd.rules.loader import load_rules

    loaded = load_rules(actions, strict_modes=strict_modes, places=places)
    _warn(loaded.warnings)
    return loaded


def _warn(warnings: Iterable[Problem]) -> None:
    from nfpkd.logs import escape

    for warning in warnings:
        click.echo(f"warning: {escape(str(warning))}", err=True)


def _split_option(text: str) -> int | str | list[int | str]:
    """Return what a rule file would have for *text*: a number, a text, or a list of both if there are commas."""
    # What has more digits is no port; the schema says so.
    values = [int(part) if re.fullmatch("[0-9]{1,5}", part) else part for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _make_tag() -> str:
    import secrets
    import string

    # No digit in front: 0X would announce hex.
    rest = string.ascii_uppercase + string.digits
    return secrets.choice(string.ascii_uppercase) + "".join(secrets.choice(rest) for _ in range(3))


def _check_made_rules(text: str) -> None:
    """Refuse options that would make a rule with faults, or with warnings."""
    from nfpkd.rules.build import build_rules
    from nfpkd.rules.positions import Document

    try:
        problems = build_rules(Document("the rule", text)).warnings
    except RulesError as error:
        problems = error.problems
    if problems:
        raise click.UsageError("; ".join(problem.message for problem in problems))


def _explain_made_rule(name: str, tag: str, host: str, actions: Path) -> Iterator[str]:
    import shlex

    # The loader passes over names that start with a dot.
    base = name.lstrip(".") or "rule"
    file = shlex.quote(str(actions / f"{base}.json"))
    key_file = f"~/.ssh/{base}.knock"
    yield f"On the server, put the rule into {file}, for root's eyes only, and look at it:"
    yield f"    chmod 600 {file}"
    yield "    nfpkd check"
    yield f'On the client, put its "key" (0x and 64 digits, without the quotes) into {key_file}, and knock:'
    yield f"    chmod 600 {key_file}"
    yield f"    nfpkd knock {shlex.quote(host)} --tag {shlex.quote(tag)} --key-file {key_file}"


def _open_firewall() -> Firewall:
    from nfpkd.firewall.firewall import Firewall
    from nfpkd.firewall.kernel import NftablesKernel
    from nfpkd.firewall.sessions import list_open_sessions

    return Firewall(NftablesKernel(), list_open_sessions)


def _print_plan(actions: Path, rules: tuple[Rule, ...], options: Options) -> None:
    """Print what `apply` would send; without the privilege to ask the kernel, what it would send to an empty one."""
    from nfpkd.firewall.kernel import has_net_admin
    from nfpkd.firewall.ruleset import compile_ruleset, transaction_to

    if has_net_admin():
        transaction = _open_firewall().plan(rules, options)
        click.echo(f"checked by the kernel, not applied: {_count(len(rules), 'rule')} from {actions}", err=True)
    else:
        transaction = transaction_to(compile_ruleset(rules, options), None)
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


def _check_interfaces(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r'[^\s/:@"*\\]{1,15}', name):
            raise click.BadParameter(f"{name!r} is not the name of an interface", param_hint="--trust-interface")
    return names


def _parse_address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an IP address", param_hint="ADDRESS") from None


def _explain_unknown_rule(name: str, rules: Iterable[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, rules, n=1)
    return f"there is no rule {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
