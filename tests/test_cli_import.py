"""The import command: what goes where, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nfpkd.cli import importing
from nfpkd.importing.kinds import Kind
from nfpkd.rules.loader import load_rules
from support import commands

KNOCKD = "[SSH]\nsequence = 1,2\nstart_command = iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n"
FWKNOP = "SOURCE ANY\nKEY hunter2\nOPEN_PORTS tcp/22\nREQUIRE_USERNAME alice\n"


def invoke(*arguments: object, **options: Any) -> Result:
    return commands.invoke("import", *arguments, **options)


def load(text: str, folder: Path) -> dict[str, Any]:
    actions = folder / "made"
    actions.mkdir()
    file = actions / "rules.json"
    file.touch(mode=0o600)
    file.write_text(text)
    return {rule.name: rule for rule in load_rules(actions).rules}


def test_kinds_are_those_that_can_be_imported() -> None:
    assert list(importing._KINDS) == [kind.value for kind in Kind]


def test_rules_go_to_standard_output_and_the_rest_to_standard_error(tmp_path: Path) -> None:
    file = tmp_path / "knockd.conf"
    file.write_text(KNOCKD)
    result = invoke(file)
    assert result.exit_code == 0
    assert list(load(result.stdout, tmp_path)) == ["SSH"]
    lines = result.stderr.splitlines()
    assert lines[0] == f"{file}: recognized as knockd"
    assert lines[1].startswith(f"{file}:2: a sequence of ports is no key")
    assert lines[2].startswith(f"{file}:3: stays open")
    assert lines[3].startswith("1 rule imported: ")
    assert '"nfpkd doctor"' in lines[4]
    assert json.loads(result.stdout)[0]["key"] not in result.stderr


def test_two_imports_make_two_keys() -> None:
    keys = {json.loads(invoke("-", input=KNOCKD).stdout)[0]["key"] for _ in range(2)}
    assert len(keys) == 2
    assert all(len(key) == 66 for key in keys)


def test_standard_input_is_read_and_a_kind_that_is_named_is_taken(tmp_path: Path) -> None:
    result = invoke("--from", "fwknop", "-", input=FWKNOP)
    assert result.exit_code == 0
    assert list(load(result.stdout, tmp_path)) == ["fwknop-1"]
    assert "recognized" not in result.stderr
    assert "\n-:4: REQUIRE_USERNAME left out" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_directory_is_nf_pkds(tmp_path: Path) -> None:
    actions = tmp_path / "actions.d"
    (actions / "more").mkdir(parents=True)
    rule = {"name": "ssh", "port": 22, "key": "k", "obo": True}
    (actions / "a.json").write_text(json.dumps([rule]))
    (actions / "more" / "b.json").write_text(json.dumps([rule | {"name": "web", "port": 80, "tag": "WEB"}]))
    (actions / "README").write_text("not a rule file")
    result = invoke(actions)
    assert result.exit_code == 0
    assert list(load(result.stdout, tmp_path)) == ["ssh", "web"]
    assert f'{actions}/a.json:1: "obo" left out' in result.stderr
    assert "NFQUEUE" in result.stderr


def test_strict_fails_if_something_was_left_out() -> None:
    assert invoke("--strict", "-", input=KNOCKD).exit_code == 0
    result = invoke("--strict", "-", input=FWKNOP)
    assert result.exit_code == 1
    assert json.loads(result.stdout)
    assert result.stderr.endswith("nfpkd: 1 thing left out, which --strict does not allow\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"hello\n", "cannot tell whose configuration it is"),
        (b"", "cannot tell whose configuration it is"),
        (b"[x]\nsequence=1\n", "holds nothing that could be imported as knockd's"),
        (b"SOURCE ANY\n\xff\n", "-:2:1: is not UTF-8 text"),
    ],
)
def test_nothing_to_import_is_exit_code_1(text: bytes, said: str) -> None:
    result = invoke("-", input=text)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert said in result.stderr


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    result = invoke(tmp_path / "none")
    assert result.exit_code == 1
    assert "no such file" in result.stderr
    (tmp_path / "a.json").symlink_to("nowhere")
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}/a.json: no such file" in result.stderr


def test_a_directory_is_nobody_elses(tmp_path: Path) -> None:
    result = invoke("--from", "knockd", tmp_path)
    assert result.exit_code == 2
    assert "only nf-pkd" in result.stderr


def test_an_empty_directory_is_nothing_to_import(tmp_path: Path) -> None:
    assert invoke(tmp_path).exit_code == 1


def test_a_pipe_may_be_named() -> None:
    reading, writing = os.pipe()
    os.write(writing, KNOCKD.encode())
    os.close(writing)
    try:
        assert invoke(f"/dev/fd/{reading}").exit_code == 0
    finally:
        os.close(reading)


def test_what_names_and_lines_hold_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m.json"
    file.write_text('[{"port": 22, "key": "k", "\\u001bfield": 1}]')
    result = invoke(file)
    assert result.exit_code == 0
    assert "\x1b" not in result.stderr
    assert "\\x1b[31m.json:1:" in result.stderr
