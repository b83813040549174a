"""nf-pkd's rule files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nfpkd.importing.kinds import Kind, merge, read_all
from nfpkd.rules.model import parse_key
from support.importing import MADE_KEY, Outcome, import_text, load_merged

RULE = {"name": "ssh", "port": 22, "protocol": "tcp", "tag": "SSHK", "key": "open sesame", "window": 30}


def nf_pkd(*rules: object) -> Outcome:
    """Import a file with each rule on a line of its own, from the second on."""
    return import_text(Kind.NF_PKD, "[\n" + ",\n".join(map(json.dumps, rules)) + "\n]\n")


def test_a_rule_stays_as_it_is() -> None:
    outcome = nf_pkd(RULE)
    rule = outcome.rules["ssh"]
    assert (rule.describe_services(), rule.window, rule.tag) == ("22/tcp", 30, b"SSHK")
    assert rule.keys[0].secret == parse_key("open sesame")
    assert outcome.remarks == ()


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"skew": -5}, "skew", 10),
        ({"skew": -1}, "skew", None),
        ({"protocol": "UDP"}, "protocols", (17,)),
        ({"protocol": ""}, "protocols", (6, 17, 33, 132, 136)),
        ({"window": 0}, "window", 60),
        ({"window": None}, "window", 60),
        ({"tag": "SSHKEY"}, "tag", b"SSHK"),
        ({"tag": "0X12"}, "tag", b"0X12"),
        ({"name": "the door!"}, "name", "the-door"),
        ({"name": ""}, "name", "port-22"),
        ({"name": 7}, "name", "7"),
        # Behind a bracket that is missing there may be a key.
        ({"name": {"key": "open sesame"}}, "name", "port-22"),
        ({"name": [["open sesame"]], "port": [22]}, "name", "port-none"),
        ({"name": 5}, "name", "5"),
        ({"reset": True, "Port": 23}, "ports", ((23, 23),)),
    ],
)
def test_a_rule_means_what_it_means_to_nf_pkd(changes: dict[str, Any], field: str, value: object) -> None:
    outcome = nf_pkd(RULE | changes)
    (rule,) = outcome.rules.values()
    assert getattr(rule, field) == value
    assert outcome.lost() == set()


def test_a_long_key_is_cut_and_a_capital_prefix_is_text() -> None:
    outcome = nf_pkd(RULE | {"key": "x" * 41}, RULE | {"name": "b", "key": "0X12"})
    assert outcome.rules["ssh"].keys[0].secret == parse_key("x" * 40)
    assert outcome.rules["b"].keys[0].secret == parse_key("0x" + b"0X12".hex())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obo": True}, '"obo" left out'),
        ({"action": "service apache restart"}, '"action" left out'),
        ({"port": 0, "ext-command": "/usr/bin/true"}, '"port" is 0'),
        ({"extaction": "service apache restart"}, "absolute path"),
    ],
)
def test_a_field_without_counterpart_is_named_and_left_out(changes: dict[str, Any], said: str) -> None:
    outcome = nf_pkd(RULE | changes)
    assert len(outcome.rules) == 1
    assert any(said in text for text in outcome.said(2))
    assert outcome.lost() == {2}


def test_a_false_obo_is_nothing_to_speak_of() -> None:
    assert nf_pkd(RULE | {"OBO": False}).remarks == ()


def test_a_command_that_nf_pkd_only_planned_is_run_here_and_that_is_said() -> None:
    outcome = nf_pkd(RULE | {"ExtAction": "/usr/bin/true now", "ExtUser": "daemon"})
    assert outcome.rules["ssh"].trigger.command == ("/usr/bin/true", "now")
    assert outcome.rules["ssh"].trigger.user == "daemon"
    assert "never ran it" in outcome.said(2)[0]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (7, "not a rule"),
        (RULE | {"key": ""}, 'needs one of "key" and "keys"'),
        (RULE | {"key": 12345}, '"key" must be a string'),
        (RULE | {"port": 70000}, '"port" must be'),
        (RULE | {"protocol": "icmp"}, '"protocol" must be'),
        (RULE | {"ext-command": ["true"]}, "absolute path"),
    ],
)
def test_a_rule_that_the_loader_refuses_is_left_out_with_its_reason(rule: object, said: str) -> None:
    outcome = nf_pkd(RULE | {"name": "good"}, rule)
    assert list(outcome.rules) == ["good"]
    assert said in "".join(outcome.said(3))
    assert outcome.lost() == {3}
    assert "12345" not in str(outcome.remarks)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{'name': 'a'}]", "double quotes"),
        ('{"name": "a"}', "put [ and ] around it"),
        ('[{"name": "a", "name": "b"}]', "given twice"),
        ("", "empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text: str, said: str) -> None:
    outcome = import_text(Kind.NF_PKD, text)
    assert not outcome.rules
    assert said in outcome.said(1)[0]


def import_files(*rules: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    files = [(f"{number}.json", json.dumps([rule])) for number, rule in enumerate(rules)]
    merged = merge(read_all(Kind.NF_PKD, files, lambda: MADE_KEY))
    said: dict[str, list[str]] = {}
    for file, remark in merged.remarks:
        said.setdefault(file, []).append(remark.text)
        assert not remark.left_out
    return load_merged(merged), said


def test_names_that_clash_between_files_are_changed() -> None:
    rules, said = import_files(RULE, RULE | {"tag": "B"}, RULE | {"tag": "C"})
    assert list(rules) == ["ssh", "ssh-2", "ssh-3"]
    assert said == {
        "1.json": ['the name "ssh" is already used at 0.json:1: here "ssh-2"'],
        "2.json": ['the name "ssh" is already used at 0.json:1: here "ssh-3"'],
    }


def test_rules_that_share_a_tag_were_one_to_nf_pkd() -> None:
    rules, said = import_files(RULE, RULE | {"name": "web", "port": 80})
    assert list(rules) == ["ssh", "web"]
    assert "has the tag of 0.json:1" in said["1.json"][0]


def test_rules_that_share_a_port_are_made_to_refuse_it_in_one_way() -> None:
    rules, said = import_files(RULE | {"reset": True}, RULE | {"name": "b", "tag": "B", "reset": False})
    assert {rule.reject.value for rule in rules.values()} == {"reset"}
    assert '"reject" is "reset"' in said["1.json"][0]
