"""The commands about rule files: check and keygen."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nfpkd.cli.progress import progress
from nfpkd.cli.shared import EXIT_RULES, actions_option, count, load, make_key, paint, strict_modes_option, warn
from nfpkd.errors import RulesError
from nfpkd.text import Role

if TYPE_CHECKING:
    from nfpkd.rules.build import PlacedRule


@click.command()
@actions_option
@strict_modes_option
@click.option("--strict", is_flag=True, help="Fail, with exit code 1, if there are warnings.")
def check(actions: Path, strict_modes: bool, strict: bool) -> None:
    """Validate the rule files and print one line for each rule.

    What is allowed but doubtful is warned of: weak keys, ports that nothing listens on, and the like.
    """
    import time

    from nfpkd.describe import describe_rules
    from nfpkd.firewall.sessions import list_listening_services
    from nfpkd.rules.lint import find_smells

    places: list[PlacedRule] = []
    loaded = load(actions, strict_modes, places)
    with progress("looking for what is doubtful"):
        smells = sorted(find_smells(places, now=time.time(), listening=list_listening_services()))
    warn(smells)
    for line in describe_rules(loaded.rules, paint):
        click.echo(line)
    if not loaded.rules:
        click.echo(f"no rules in {actions}: nothing would be guarded", err=True)
    warnings = len(loaded.warnings) + len(smells)
    if strict and warnings:
        text = f"{count(warnings, 'warning')}, which --strict does not allow"
        click.echo(f"{paint(Role.ERROR, 'nfpkd:')} {text}", err=True)
        sys.exit(EXIT_RULES)


@click.command()
@actions_option
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

    from nfpkd.logs import escape

    name = name if name is not None else "ssh" if port == "22" else f"port-{port.replace(',', '-')}"
    tag = tag if tag is not None else _make_tag()
    fields = {
        "name": name,
        "port": _split_option(port),
        "protocol": None if protocol is None else _split_option(protocol),
        "tag": tag,
        "window": window,
        "key": make_key(),
    }
    text = json.dumps([{field: value for field, value in fields.items() if value is not None}])
    _check_made_rules(text)
    click.echo(f"[\n  {text[1:-1]}\n]")
    for line in _explain_made_rule(name, tag, host, actions):
        click.echo(escape(line), err=True)


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

    from nfpkd.rules.loader import list_mode_commands

    # The loader passes over names that start with a dot.
    base = name.lstrip(".") or "rule"
    file = actions / f"{base}.json"
    key_file = f"~/.ssh/{base}.knock"
    yield f"On the server, as root, put the rule into {shlex.quote(str(file))}, where others cannot read its key:"
    for command in list_mode_commands(file):
        yield f"    {command}"
    yield "    nfpkd check"
    yield f'On the client, put its "key" (0x and 64 digits, without the quotes) into {key_file}, and knock:'
    yield f"    chmod 600 {key_file}"
    yield f"    nfpkd knock {shlex.quote(host)} --tag {shlex.quote(tag)} --key-file {key_file}"
