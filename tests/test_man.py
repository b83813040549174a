"""The man pages in contrib/man say what there is: options, environment variables, fields, events."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import nfpkd
from nfpkd.knock import profiles
from nfpkd.rules.model import format_tag
from nfpkd.rules.schema import load_schema
from nfpkd.verifier.judge import Outcome
from support.commands import COMMANDS
from support.required import find_program

FOLDER = Path(__file__).parents[1] / "contrib" / "man"
PAGES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
SOURCES = [ast.parse(path.read_text()) for path in sorted(Path(nfpkd.__file__).parent.rglob("*.py"))]
VISIBLE = {name: command for name, command in COMMANDS.items() if not command.hidden}
SHARED = ["--help", "-h"]


def split(page: str, macro: str) -> dict[str, str]:
    """Return the sections of *page* that *macro* begins, by their titles; a subsection ends with its section."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in page.splitlines():
        if line.startswith((f".{macro} ", ".Sh ")):
            title = line[4:] if line.startswith(f".{macro} ") else ""
        found.setdefault(title, []).append(line)
    return {title: "\n".join(lines) for title, lines in found.items() if title}


def items(text: str) -> dict[str, str]:
    """Return the items of the lists in *text* by what stands behind ``.It``."""
    parts = re.split(r"^\.It (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(text: str, macro: str) -> set[str]:
    """Return what *text* marks with *macro*; ``Cm a , b`` marks both."""
    calls: list[str] = re.findall(rf"\b{macro} (\S+(?: , [a-z_]\S*)*)", text)
    return {name for call in calls for name in call.split(" , ")}


def options_in(text: str) -> set[str]:
    return {f"-{name}" for name in named(text, "Fl")}


def options_of(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def page_of(command: str) -> str:
    """Return what the man pages say of *command*."""
    own = f"nfpkd-{command}.1"
    return PAGES[own] if own in PAGES else split(PAGES["nfpkd.8"], "Ss")[command]


def words(text: str) -> set[str]:
    return {word.strip(".,;:()") for word in text.split()}


def constants(pattern: str) -> set[str]:
    nodes = (node for tree in SOURCES for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in nodes if isinstance(node.value, str) and re.fullmatch(pattern, node.value)}


def calls(name: str) -> Iterator[ast.Call]:
    for tree in SOURCES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield node


def test_every_command_is_there_and_no_other() -> None:
    assert set(split(PAGES["nfpkd.8"], "Ss")) == VISIBLE.keys()


@pytest.mark.parametrize("command", VISIBLE)
def test_options_are_those_of_the_command(command: str) -> None:
    assert options_in(page_of(command)) - set(SHARED) == options_of(VISIBLE[command])


@pytest.mark.parametrize("command", VISIBLE)
def test_every_option_is_explained(command: str) -> None:
    explained = {option for title in items(page_of(command)) for option in options_in(f".{title}")}
    shared = {option for title in items(PAGES["nfpkd.8"]) for option in options_in(title)}
    assert options_of(VISIBLE[command]) <= explained | shared


@pytest.mark.parametrize("command", VISIBLE)
def test_choices_and_defaults_are_told(command: str) -> None:
    told = page_of(command) + split(PAGES["nfpkd.8"], "Sh")["SHARED OPTIONS"]
    for option in VISIBLE[command].params:
        if isinstance(option, click.Option):
            if isinstance(option.type, click.Choice):
                assert set(option.type.choices) <= named(told, "Cm")
            if option.show_default and not option.is_flag:
                # In place of a default, there may be words about it.
                shown = option.show_default if isinstance(option.show_default, str) else str(option.default)
                assert shown in words(told)


def test_options_outside_of_commands_are_real() -> None:
    everywhere = {option for command in VISIBLE.values() for option in options_of(command)}
    # A group's own version option is made by click.
    known = everywhere | {"--version"} | set(SHARED)
    for page in PAGES.values():
        assert options_in(page) <= known


def test_every_environment_variable_is_there_and_no_other() -> None:
    read = {
        node.args[0].value
        for name in ("os.environ.get", "os.getenv", "environment.pop")
        for node in calls(name)
        if isinstance(node.args[0], ast.Constant)
    }
    # Those that a rule's command is given.
    made = {"HOME", "LANG", "LOGNAME", "PATH", "USER"}
    marked = {name for page in PAGES.values() for name in named(page, "Ev")}
    assert marked == constants(r"NFPKD_[A-Z_]*[A-Z]") | read | made


def test_a_variable_stands_for_its_option() -> None:
    for command in VISIBLE:
        page = PAGES[f"nfpkd-{command}.1"] if f"nfpkd-{command}.1" in PAGES else PAGES["nfpkd.8"]
        told = items(split(page, "Sh")["ENVIRONMENT"])
        for option in VISIBLE[command].params:
            if option.envvar:
                assert options_in(told[f"Ev {option.envvar}"]) <= set(option.opts)


def fields() -> dict[str, str]:
    return items(split(PAGES["nfpkd-rules.5"], "Sh")["FIELDS"])


def profile_fields() -> dict[str, str]:
    return items(split(PAGES["nfpkd-knock.1"], "Sh")["PROFILES"])


def test_every_field_of_a_rule_is_there_and_no_other() -> None:
    assert fields().keys() == {f"Cm {name}" for name in load_schema()["$defs"]["rule"]["properties"]}


def test_what_a_field_may_be_is_told() -> None:
    for name, schema in load_schema()["$defs"]["rule"]["properties"].items():
        told = words(fields()[f"Cm {name}"])
        if not isinstance(schema.get("default", True), bool):
            assert str(schema["default"]) in told, name
        assert set(schema.get("enum", ())) <= told, name
        for inner in schema.get("properties", ()):
            assert inner in fields()[f"Cm {name}"], name


def test_every_field_of_a_profile_is_there_and_no_other() -> None:
    assert profile_fields().keys() == {f"Cm {name}" for name in profiles._FIELDS}


def test_the_defaults_of_a_profile_are_told() -> None:
    default = profiles.Profile("")
    assert format_tag(default.tag) in words(profile_fields()["Cm tag"])
    assert str(default.old).lower() in words(profile_fields()["Cm old"])


def test_the_profiles_shown_are_profiles() -> None:
    page = split(PAGES["nfpkd-knock.1"], "Sh")["PROFILES"]
    shown = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", page, flags=re.MULTILINE)
    assert [set(profiles.parse_profiles(text, Path("knock.toml"))) for text in shown] == [
        {"saturn", "backup.example.org"}
    ]


def test_every_event_is_there_and_no_other() -> None:
    logged = {ast.literal_eval(call.args[1]) for call in calls("log_event")}
    told = {
        name
        for title in items(split(PAGES["nfpkd.8"], "Sh")["LOGS"])
        for name in named(title, "Cm")
        if title.startswith("Cm ")
    }
    assert told == logged | {"message", "log_lost"}


def test_every_reason_for_a_refusal_is_there_and_no_other() -> None:
    told = named(items(split(PAGES["nfpkd.8"], "Sh")["LOGS"])["Cm knock_refused"], "Cm")
    assert told == {outcome.value for outcome in Outcome} - {Outcome.ACCEPTED.value} | {"not_kept", "port_translated"}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "command",
    [["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-mandoc", "-Tutf8", "-ww", "-z"]],
    ids=lambda c: c[0],
)
def test_it_renders_without_warnings(page: str, command: list[str]) -> None:
    program = find_program(command[0])
    done = subprocess.run([program, *command[1:], FOLDER / page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
