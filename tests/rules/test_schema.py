"""What the schema has against a rule file, in plain words and without the key."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import json_values

from nfpkd.rules import model
from nfpkd.rules.schema import Finding, find_faults, load_schema

SSH = {"name": "ssh", "key": "k", "port": 22}
FIELDS = load_schema()["$defs"]["rule"]["properties"]
INTEGERS = ("port", "window", "skew")


def faults_of(**fields: object) -> list[Finding]:
    return list(find_faults([{**SSH, **fields}]))


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())


def test_the_schemas_defaults_and_limits_are_the_models() -> None:
    assert FIELDS["tag"]["default"] == model.DEFAULT_TAG
    assert FIELDS["window"]["default"] == model.DEFAULT_WINDOW
    assert FIELDS["window"]["maximum"] == model.MAX_WINDOW
    assert FIELDS["skew"]["default"] == model.DEFAULT_SKEW


def test_an_empty_list_and_a_minimal_rule_are_in_order() -> None:
    assert list(find_faults([])) == []
    assert list(find_faults([SSH])) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a" * 64),
        ("name", "A.b_c-9"),
        ("key", "k" * 1000),
        ("tag", "x"),
        ("port", 1),
        ("port", 65535),
        ("protocol", "any"),
        ("protocol", "tcp"),
        ("protocol", "udp"),
        ("window", 1),
        ("window", 31536000),
        ("skew", -1),
        ("skew", 0),
        ("skew", 31536000),
        ("reject", "drop"),
        ("reject", "reset"),
        ("reset", False),
        ("old", True),
        ("description", ""),
    ],
)
def test_good_values_pass(field: str, value: object) -> None:
    assert faults_of(**{field: value}) == []


def test_every_field_has_words_for_its_faults() -> None:
    assert all(FIELDS[field]["errorMessage"] and FIELDS[field]["description"] for field in FIELDS)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, True, 7, 7.5, "", "text", [], ["x"], {}, {"x": 1}], ids=json.dumps)
def test_a_value_of_a_bad_type_is_one_fault_at_its_field(field: str, value: object) -> None:
    good = {"port": 7, "window": 7, "skew": 7, "reset": True, "old": True, "protocol": "tcp", "reject": "drop"}
    wanted = good.get(field, "text")
    if type(value) is type(wanted) and (value == wanted or field == "description"):
        assert faults_of(**{field: value}) == []
    else:
        shown = "" if field == "key" else f", not {json.dumps(value)}"
        message = f'"{field}" {FIELDS[field]["errorMessage"]}{shown}'
        assert faults_of(**{field: value}) == [Finding((0, field), message)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a" * 65),
        ("name", "with space"),
        ("name", "é"),
        ("name", '"'),
        ("name", "a\nb"),
        ("name", "\n"),
        # In Python, the $ of a pattern also matches in front of a last newline.
        ("name", "ssh\n"),
        ("port", 0),
        ("port", -1),
        ("port", 65536),
        ("port", 10**30),
        ("port", "22"),
        ("port", float("inf")),
        ("protocol", "TCP"),
        ("protocol", "sctp"),
        ("window", 0),
        ("window", 31536001),
        ("skew", -2),
        ("skew", 31536001),
        ("reject", "icmp"),
        ("reject", "DROP"),
        ("reset", 0),
        ("old", "true"),
    ],
)
def test_a_value_out_of_its_range_is_one_fault_that_shows_it(field: str, value: object) -> None:
    (fault,) = faults_of(**{field: value})
    assert fault.path == (0, field)
    assert not fault.at_key
    assert fault.message.startswith(f'"{field}" {FIELDS[field]["errorMessage"]}')
    assert len(json.dumps(value)) > 40 or fault.message.endswith(f", not {json.dumps(value)}")


def test_a_long_value_is_not_shown() -> None:
    (fault,) = faults_of(protocol="x" * 39)
    assert fault.message == f'"protocol" {FIELDS["protocol"]["errorMessage"]}'


def test_a_value_is_shown_escaped() -> None:
    (fault,) = faults_of(protocol="\x1b[31m\u202e")
    assert fault.message.endswith('not "\\u001b[31m\\u202e"')


@pytest.mark.parametrize("field", INTEGERS)
def test_an_integer_has_no_decimal_point(field: str) -> None:
    assert faults_of(**{field: 22.0}) == [Finding((0, field), f'"{field}" must be written without a decimal point')]


def test_missing_fields_are_named_once_each_at_the_rule() -> None:
    assert list(find_faults([SSH, {}])) == [
        Finding((1,), f'the rule has no "{field}"') for field in ("name", "key", "port")
    ]


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("protocols", "protocol"),
        ("Port", "port"),
        ("nmae", "name"),
        ("KEY", "key"),
        ("discription", "description"),
        ("windows", "window"),
        ("tags", "tag"),
        ("rejekt", "reject"),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_was_meant(unknown: str, meant: str) -> None:
    message = f'"{unknown}" is not a field of a rule; did you mean "{meant}"?'
    assert faults_of(**{unknown: 1}) == [Finding((0, unknown), message, at_key=True)]


def test_a_field_like_no_other_is_answered_with_all_there_are() -> None:
    (fault,) = faults_of(**{"q\n" + "z" * 100: 1})
    assert fault.message.startswith('"q\\n' + "z" * 38 + '" is not a field of a rule; known are name, key, tag, port, ')
    assert fault.message.endswith("description")


def test_the_editors_schema_field_is_answered_with_the_readme() -> None:
    (fault,) = faults_of(**{"$schema": "nfpkd-rules.schema.json"})
    assert (fault.path, fault.at_key) == ((0, "$schema"), True)
    assert "README" in fault.message


def test_all_unknown_fields_are_found() -> None:
    assert {fault.path[1] for fault in faults_of(aa=1, bb=2, cc=3)} == {"aa", "bb", "cc"}


@pytest.mark.parametrize("document", [None, True, 22, 22.0, "text"])
def test_a_file_is_a_list(document: object) -> None:
    assert list(find_faults(document)) == [Finding((), f"the file {load_schema()['errorMessage']}")]


def test_a_single_rule_needs_brackets() -> None:
    (fault,) = find_faults(SSH)
    assert fault.path == ()
    assert fault.message.startswith("the file must be a list of rules")
    assert fault.message.endswith("; put [ and ] around it")


@pytest.mark.parametrize("entry", [None, 1, "text", [SSH]])
def test_an_entry_is_a_rule(entry: object) -> None:
    expected = load_schema()["$defs"]["rule"]["errorMessage"]
    assert list(find_faults([SSH, entry])) == [Finding((1,), f"each entry of the list {expected}")]


def test_all_faults_of_all_rules_are_found() -> None:
    faults = list(find_faults([{**SSH, "port": 0, "old": 1, "x": 1}, 5, {"name": "a"}]))
    assert sorted(fault.path for fault in faults) == [(0, "old"), (0, "port"), (0, "x"), (1,), (2,), (2,)]


MARK = "s3cr3t"
anything = json_values | st.lists(json_values) | st.dictionaries(st.sampled_from([*FIELDS, "other"]), json_values)
keys_with_a_mark = st.sampled_from(
    [MARK, "0x" + MARK, [MARK], {MARK: 1}, {"key": MARK}, [[{"a": MARK}]], MARK + "\n", MARK * 1000]
)


@given(st.lists(st.dictionaries(st.sampled_from([*FIELDS, "kee", "other"]), json_values)), keys_with_a_mark)
def test_no_message_repeats_a_key(document: list[dict[str, Any]], key: object) -> None:
    marked = [{**rule, "key": key} for rule in document]
    assert not [fault for fault in find_faults(marked) if MARK in fault.message]


@given(st.lists(anything) | anything)
def test_anything_is_judged_and_every_finding_leads_somewhere(document: object) -> None:
    for path, message, at_key in find_faults(document):
        value: Any = document
        for step in path:
            value = value[step]
        assert message
        assert not at_key or len(path) == 2
