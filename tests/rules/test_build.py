"""From a parsed rule file to rules: defaults, what a schema cannot say, and contradictions between rules."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import json_values

from nfpkd.errors import Problem, RulesError
from nfpkd.rules.build import ANY_PROTOCOL, BuiltFile, build_rules, find_conflicts
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, Secret
from nfpkd.rules.positions import Document

SSH = {"name": "ssh", "key": "k", "port": 22}


def build(*rules: dict[str, object], name: str = "rules.json") -> BuiltFile:
    return build_rules(Document(name, json.dumps(rules)))


def build_one(**fields: object) -> Rule:
    ((placed,), _) = build({**SSH, **fields})
    return placed.rule


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(RulesError) as caught:
        build_rules(Document("rules.json", text))
    return caught.value.problems


def conflicts(*rules: dict[str, object]) -> list[Problem]:
    return list(find_conflicts(build(*rules).rules))


def test_a_minimal_rule_gets_the_defaults() -> None:
    assert build_one() == Rule(
        name="ssh",
        key=Secret(b"k".ljust(40, b"\0")),
        tag=b"PKD0",
        ports=(PortRange(22, 22),),
        protocols=(Protocol.TCP, Protocol.UDP, Protocol.DCCP, Protocol.SCTP, Protocol.UDPLITE),
        window=60,
        skew=10,
        reject=Reject.DROP,
        old=False,
        description="",
    )


def test_every_field_arrives() -> None:
    fields = {
        "name": "web",
        "key": "0xabcd",
        "tag": "0x01",
        "port": 80,
        "protocol": "udp",
        "window": 5,
        "skew": 3,
        "reject": "reset",
        "old": True,
        "description": "the web, née gopher",
    }
    assert build_one(**fields) == Rule(
        name="web",
        key=Secret(b"\xab\xcd".ljust(40, b"\0")),
        tag=b"\1\0\0\0",
        ports=(PortRange(80, 80),),
        protocols=(Protocol.UDP,),
        window=5,
        skew=3,
        reject=Reject.RESET,
        old=True,
        description="the web, née gopher",
    )


@pytest.mark.parametrize(("written", "meant"), [(-1, None), (0, 10), (1, 1), (3600, 3600)])
def test_skew(written: int, meant: int | None) -> None:
    assert build_one(skew=written).skew == meant


@pytest.mark.parametrize(
    ("written", "meant"), [("any", ANY_PROTOCOL), ("tcp", (Protocol.TCP,)), ("udp", (Protocol.UDP,))]
)
def test_protocol(written: str, meant: tuple[Protocol, ...]) -> None:
    assert build_one(protocol=written).protocols == meant


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, Reject.DROP),
        ({"reject": "drop"}, Reject.DROP),
        ({"reject": "reset"}, Reject.RESET),
        ({"reset": True}, Reject.RESET),
        ({"reset": False}, Reject.DROP),
    ],
)
def test_the_way_to_reject(fields: dict[str, object], meant: Reject) -> None:
    assert build_one(**fields).reject is meant


@pytest.mark.parametrize(("reject", "reset"), [("drop", False), ("reset", True), ("drop", True)])
def test_reject_and_reset_exclude_each_other(reject: str, reset: bool) -> None:
    text = json.dumps([{**SSH, "reject": reject, "reset": reset}])
    (problem,) = problems_of(text)
    assert problem.column == text.index('"reset":') + len('"reset": ') + 1
    assert problem.message == '"reset" is an older spelling of "reject"; give one of the two'


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("k3y" * 14, "is 42 bytes long; at most 40 fit"),
        ("0xk3y", "must go on with hex digits only"),
        ("0x", "must go on with hex digits only"),
    ],
)
def test_a_bad_key_is_placed_and_not_shown(key: str, words: str) -> None:
    (problem,) = problems_of(f'[{{"name": "ssh", "port": 22,\n  "key": "{key}"}}]')
    assert (problem.line, problem.column) == (2, 10)
    assert problem.message.startswith('"key" ')
    assert words in problem.message
    assert "k3y" not in str(problem)


def test_a_bad_tag_is_placed() -> None:
    (problem,) = problems_of('[{"name": "ssh", "port": 22, "key": "k",\n"tag": "PKD00"}]')
    assert problem == Problem("rules.json", 2, 8, '"tag" is 5 bytes long; at most 4 fit')


@pytest.mark.parametrize("field", ["key", "tag"])
def test_odd_hex_is_read_and_warned_of(field: str) -> None:
    built = build({**SSH, field: "0xabc"})
    rule = built.rules[0].rule
    assert {"key": rule.key.reveal(), "tag": rule.tag}[field].startswith(b"\xab\xc0\0")
    (warning,) = built.warnings
    assert warning.message == f'"{field}" has an odd number of hex digits; its last byte is read with a 0 behind'
    assert warning.line == 1
    assert warning.column > 1


def test_even_hex_and_text_are_no_reason_for_warnings() -> None:
    assert build({**SSH, "key": "0xab", "tag": "abc"}).warnings == ()


def test_all_faults_of_a_file_are_reported_in_its_order() -> None:
    rules = [
        {**SSH, "name": "a", "tag": "too long", "key": "0xz"},
        {**SSH, "name": "b"},
        {**SSH, "name": "c", "reset": True, "reject": "drop"},
    ]
    problems = problems_of(json.dumps(rules, indent=1))
    assert [problem.message.split()[0] for problem in problems] == ['"key"', '"tag"', '"reset"']
    assert all(before < after for before, after in pairwise(problems))


def test_the_schemas_faults_come_alone_and_sorted() -> None:
    text = '[{"port": 0, "key": "0xz", "name": "ssh"},\n{"name": "b", "kee": "x", "port": 1}]'
    problems = problems_of(text)
    assert [(problem.line, problem.column) for problem in problems] == [(1, 11), (2, 1), (2, 15)]
    assert 'did you mean "key"' in problems[2].message


def test_rules_keep_their_order_and_know_their_place() -> None:
    document = Document("rules.json", '[\n{"name": "b", "key": "k", "port": 1},\n{"port": 2, "key": "k", "name": "a"}]')
    rules = build_rules(document).rules
    assert [placed.rule.name for placed in rules] == ["b", "a"]
    assert [placed.where() for placed in rules] == ["rules.json:2", "rules.json:3"]
    assert rules[1].problem("port", "wrong") == Problem("rules.json", 3, 10, "wrong")


@pytest.mark.parametrize("template", ["%s", '[{"name": %s, "key": "k", "port": 1}]', '[{"key": %s}]'])
@pytest.mark.parametrize(("opening", "inner", "closing"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_a_file_nested_at_any_depth_is_refused_and_not_a_crash(
    template: str, opening: str, inner: str, closing: str
) -> None:
    """The parser's limit depends on how deep the stack is when it is called; no depth may lie between two limits."""
    for depth in (*range(3, 40), *range(700, 1100)):
        (problem, *_) = problems_of(template % (opening * depth + inner + closing * depth))
        assert problem.line == 1


@given(st.lists(st.dictionaries(st.sampled_from(["name", "key", "tag", "port", "reset", "reject"]), json_values)))
def test_any_list_of_objects_is_built_or_refused(rules: list[dict[str, object]]) -> None:
    problems: tuple[Problem, ...] = ()
    built: BuiltFile | None = None
    try:
        built = build(*rules)
    except RulesError as error:
        problems = error.problems
    assert list(problems) == sorted(problems)
    assert bool(problems) is (built is None)
    assert built is None or len(built.rules) == len(rules)


def test_rules_that_share_nothing_or_agree_do_not_conflict() -> None:
    assert (
        conflicts(
            {**SSH, "name": "a", "reject": "reset"},
            {**SSH, "name": "b", "reset": True},
            {**SSH, "name": "c", "port": 23},
        )
        == []
    )


def test_a_name_used_twice_is_a_conflict_at_the_second() -> None:
    (problem,) = conflicts(SSH, {"port": 23, "key": "k", "name": "ssh"})
    assert problem.message == 'the name "ssh" is already used at rules.json:1'
    assert problem.column > 50


def test_a_name_used_thrice_is_two_conflicts_with_the_first() -> None:
    text = "[" + ",\n".join(json.dumps({**SSH, "port": port}) for port in (1, 2, 3)) + "]"
    found = list(find_conflicts(build_rules(Document("rules.json", text)).rules))
    assert [problem.line for problem in found] == [2, 3]
    assert all(problem.message.endswith("rules.json:1") for problem in found)


def test_rules_that_share_a_port_must_agree_on_how_to_reject() -> None:
    (problem,) = conflicts({**SSH, "name": "a"}, {**SSH, "name": "b", "reject": "reset"})
    assert problem.message == (
        'rule "b" rejects 22/tcp with "reset", but rule "a" (rules.json:1) with "drop"; '
        "rules that share a port must agree"
    )


@pytest.mark.parametrize(
    ("first", "second", "contradict"),
    [("tcp", "udp", False), ("tcp", "any", True), ("any", "udp", True), ("udp", "udp", True)],
)
def test_protocols_decide_whether_a_port_is_shared(first: str, second: str, contradict: bool) -> None:
    found = conflicts(
        {**SSH, "name": "a", "protocol": first},
        {**SSH, "name": "b", "protocol": second, "reject": "reset"},
    )
    assert bool(found) is contradict


def test_conflicts_between_files_name_both() -> None:
    rules = [*build(SSH, name="a.json").rules, *build(SSH, name="b.json").rules]
    (problem,) = find_conflicts(rules)
    assert problem.path == "b.json"
    assert "a.json:1" in problem.message
