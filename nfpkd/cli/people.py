"""The commands about who is let in: grant and revoke."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from nfpkd.cli.completion import complete_granted_address, complete_granted_rule, complete_rule
from nfpkd.cli.shared import actions_option, load, open_firewall, strict_modes_option
from nfpkd.errors import KernelError


@click.command()
@click.argument("rule", shell_complete=complete_rule)
@click.argument("address")
@click.option(
    "--for",
    "seconds",
    type=click.IntRange(1, 365 * 24 * 3600),
    metavar="SECONDS",
    help="For how long; the rule's window if not given.",
)
@actions_option
@strict_modes_option
def grant(rule: str, address: str, seconds: int | None, actions: Path, strict_modes: bool) -> None:
    """Let ADDRESS in as if it had knocked for RULE."""
    from nfpkd.firewall.ruleset import make_grants

    source = _parse_address(address)
    rules = {found.name: found for found in load(actions, strict_modes).rules}
    if rule not in rules:
        raise click.BadParameter(_explain_unknown_rule(rule, rules), param_hint="RULE")
    if not rules[rule].ports:
        raise click.BadParameter(f"rule {rule!r} opens no port", param_hint="RULE")
    firewall = open_firewall()
    if firewall.read_state() is None:
        raise KernelError("nfpkd guards nothing here", "start `nfpkd run`, or `nfpkd apply`, first")
    granted = seconds or rules[rule].window
    firewall.grant(list(make_grants(rules[rule], source, granted)))
    click.echo(f"{source} is let in to {rules[rule].describe_services()} for {granted} s")


@click.command()
@click.argument("rule", required=False, default="", shell_complete=complete_granted_rule)
@click.argument("address", required=False, default="", shell_complete=complete_granted_address)
@click.option("--all", "everything", is_flag=True, help="Take back every grant of every rule.")
def revoke(rule: str, address: str, everything: bool) -> None:
    """Take back what a knock for RULE opened: for ADDRESS, or for everybody.

    Connections that are open go on.
    """
    if everything == bool(rule):
        raise click.UsageError("Name a RULE, or give --all")
    taken = open_firewall().revoke(rule, _parse_address(address) if address else "")
    people = sorted({grant.who for grant in taken})
    click.echo(f"taken back from {', '.join(people)}" if people else "nothing to take back")


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
