"""The command about other port knockers' configuration: import."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nfpkd.cli.shared import EXIT_RULES, count, make_key
from nfpkd.errors import Problem, RulesError, reason_of

if TYPE_CHECKING:
    from nfpkd.importing.kinds import Kind

_KINDS = ("nf-pkd", "iptables", "knockd", "fwknop")


@click.command("import")
@click.option("--from", "source", type=click.Choice(_KINDS), help="Whose configuration it is; recognized if not given.")
@click.option("--strict", is_flag=True, help="Fail, with exit code 1, if something was left out.")
@click.argument("path", type=click.Path(path_type=Path))
def import_rules(source: str | None, strict: bool, path: Path) -> None:
    """Make rules of another port knocker's configuration, as far as it can be expressed.

    PATH is a directory of nf-pkd, what iptables-save prints, knockd.conf, or fwknop's access.conf; - is standard
    input. The rules go to standard output, as one rule file. What was left out or changed is said on standard error,
    line by line.
    """
    import json

    from nfpkd.importing import kinds
    from nfpkd.logs import escape

    if path.is_dir() and source not in (None, "nf-pkd"):
        raise click.UsageError(f"{path} is a directory, which only nf-pkd has; give the file")
    texts = list(_read_texts(path))
    kind = kinds.Kind(source) if source else kinds.Kind.NF_PKD if path.is_dir() else _recognize(path, texts)
    merged = kinds.merge(kinds.read_all(kind, texts, make_key))
    for name, remark in merged.remarks:
        click.echo(f"{escape(name)}:{remark.line}: {escape(remark.text)}", err=True)
    if not merged.rules:
        raise RulesError([Problem(str(path), 0, 0, f"holds nothing that could be imported as {kind.value}'s")])
    lines = ",\n  ".join(json.dumps(fields) for fields in merged.rules)
    click.echo(f"[\n  {lines}\n]")
    click.echo(
        f"{count(len(merged.rules), 'rule')} imported: put them into a file of their own, for root's eyes only, "
        'and look at them with "nfpkd check"',
        err=True,
    )
    click.echo(f"then {kinds.ADVICE[kind]}", err=True)
    lost = sum(remark.left_out for _, remark in merged.remarks)
    if strict and lost:
        click.echo(f"nfpkd: {count(lost, 'thing')} left out, which --strict does not allow", err=True)
        sys.exit(EXIT_RULES)


def _read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each file that *path* leads to; raises RulesError."""
    from nfpkd.rules.loader import MAX_FILE_SIZE, decode_text, find_rule_files

    if str(path) == "-":
        yield "-", decode_text("-", sys.stdin.buffer.read(MAX_FILE_SIZE + 1))
        return
    problems: list[Problem] = []
    for file in find_rule_files(path, problems, strict_modes=False) if path.is_dir() else [path]:
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_FILE_SIZE + 1)
        except OSError as error:
            problems.append(Problem(str(file), 0, 0, reason_of(error)))
            continue
        yield str(file), decode_text(str(file), data)
    if problems:
        raise RulesError(problems)


def _recognize(path: Path, texts: list[tuple[str, str]]) -> Kind:
    from nfpkd.importing.kinds import recognize
    from nfpkd.logs import escape

    kind = recognize("\n".join(text for _, text in texts))
    if kind is None:
        names = ", ".join(_KINDS)
        raise RulesError(
            [Problem(str(path), 0, 0, f"cannot tell whose configuration it is: say so with --from ({names})")]
        )
    click.echo(f"{escape(str(path))}: recognized as {kind.value}", err=True)
    return kind
