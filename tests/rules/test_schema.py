"""What the schema has against a rule file, in plain words and without the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.rules import model
from nfpkd.rules.schema import Finding, find_faults, load_schema
from support.strategies import json_values

SSH = {"name": "ssh", "key": "k", "port": 22}
FIELDS = load_schema()["$defs"]["rule"]["properties"]
INTEGERS = ("port", "window", "skew", "knock-port", "ext-timeout")
KEYS = ("key", "keys")


def faults_of(**fields: object) -> list[Finding]:
    return list(find_faults([{**SSH, **fields}]))


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())


def test_the_schemas_defaults_and_limits_are_the_models() -> None:
    assert FIELDS["tag"]["default"] == model.DEFAULT_TAG
    assert FIELDS["window"]["default"] == model.DEFAULT_WINDOW
    assert FIELDS["window"]["maximum"] == model.MAX_WINDOW
    assert FIELDS["skew"]["default"] == model.DEFAULT_SKEW
    assert defaults_inside("rate") == model.DEFAULT_RATE._asdict()
    assert defaults_inside("grant") == model.ONE_ADDRESS._asdict()
    assert FIELDS["ext-user"]["default"] == model.NO_TRIGGER.user
    assert FIELDS["ext-timeout"]["default"] == model.NO_TRIGGER.timeout
    assert str(model.MAX_PORTS_PER_RULE) in FIELDS["port"]["description"]
    assert set(load_schema()["$defs"]["protocol"]["enum"]) == {protocol.label for protocol in model.Protocol}
    assert FIELDS["reject"]["enum"] == [way.value for way in model.Reject]


def defaults_inside(field: str) -> dict[str, object]:
    return {name: found["default"] for name, found in FIELDS[field]["properties"].items()}


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
        ("protocol", "sctp"),
        ("protocol", "dccp"),
        ("protocol", "udplite"),
        ("protocol", ["tcp", "sctp", "tcp"]),
        ("reject", "reset"),
        ("reject", "icmp"),
        ("reject", "icmp-admin"),
        ("reset", False),
        ("old", True),
        ("description", ""),
        ("port", "8000-8100"),
        ("port", ["1-1", 22, "60000-65535"]),
        ("knock-port", 65535),
        ("knock-port", [1, "2-3"]),
        ("keys", ["k"]),
        ("keys", [{"key": "k"}, "l", {"key": "m", "not-before": "", "not-after": ""}]),
        ("keys", ["k"] * 16),
        ("not-before", "2027-01-31T12:00:00Z"),
        ("not-after", "2027-01-31T12:00:00Z"),
        ("interfaces", ["eth0", "wg-home.7", "a" * 15]),
        ("from", ["192.0.2.7", "2001:db8::/32"]),
        ("grant", {"ipv4": 8}),
        ("grant", {"ipv4": 32, "ipv6": 16}),
        ("grant", {"ipv6": 128}),
        ("extend", True),
        ("once", False),
        ("rate", {}),
        ("rate", {"knocks": 1, "per": 86400}),
        ("rate", {"burst": 86400}),
        ("ext-command", "/bin/true"),
        ("ext-command", ["/bin/echo", ""]),
        ("close-command", ["/bin/true"]),
        ("ext-user", "www-data"),
        ("ext-user", "_" + "a" * 31),
        ("ext-timeout", 1),
        ("ext-timeout", 3600),
    ],
)
def test_good_values_pass(field: str, value: object) -> None:
    assert faults_of(**{field: value}) == []


def test_every_field_has_words_for_its_faults() -> None:
    assert all(FIELDS[field]["errorMessage"] and FIELDS[field]["description"] for field in FIELDS)


# What the schema lets through of the values below; text with a meaning is read later.
ACCEPTED: dict[str, list[object]] = {
    "name": ["text"],
    "key": ["text"],
    "keys": [["x"]],
    "not-before": ["", "text"],
    "not-after": ["", "text"],
    "tag": ["text"],
    "port": [7],
    "knock-port": [7],
    "interfaces": [["x"]],
    "window": [7],
    "skew": [7],
    "reset": [True],
    "from": [["x"]],
    "extend": [True],
    "once": [True],
    "rate": [{}],
    "ext-command": ["text", ["x"]],
    "close-command": ["text", ["x"]],
    "ext-user": ["text"],
    "ext-timeout": [7],
    "old": [True],
    "description": ["", "text"],
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, True, 7, 7.5, "", "text", [], ["x"], {}, {"x": 1}], ids=json.dumps)
def test_a_value_of_a_bad_type_is_one_fault_at_its_field(field: str, value: object) -> None:
    if any(type(value) is type(good) and value == good for good in ACCEPTED.get(field, ())):
        assert faults_of(**{field: value}) == []
    elif field in ("rate", "grant") and value == {"x": 1}:
        known = ", ".join(FIELDS[field]["properties"])
        message = f'"x" is not a field of "{field}"; known are {known}'
        assert faults_of(**{field: value}) == [Finding((0, field, "x"), message, at_key=True)]
    else:
        shown = "" if field in KEYS or value == {"x": 1} else f", not {json.dumps(value)}"
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
        ("protocol", "icmp"),
        ("protocol", []),
        ("protocol", ["any"]),
        ("protocol", ["tcp", "TCP"]),
        ("port", []),
        ("port", [0]),
        ("port", [22, [23]]),
        ("port", "22-"),
        ("port", "-22"),
        ("port", "1-2-3"),
        ("port", "1 - 2"),
        ("port", "1-2\n"),
        ("port", "1-200000"),
        ("port", "\uff11-\uff12"),
        ("knock-port", 0),
        ("knock-port", "9"),
        ("keys", []),
        ("keys", ["k"] * 17),
        ("interfaces", []),
        ("from", []),
        ("grant", {}),
        ("ext-command", []),
        ("ext-command", ["/bin/true", 1]),
        ("close-command", ""),
        ("ext-user", "0"),
        ("ext-user", "a b"),
        ("ext-user", "root\n"),
        ("ext-user", "a" * 33),
        ("ext-timeout", 0),
        ("ext-timeout", 3601),
        ("extend", "yes"),
        ("once", 1),
        ("window", 0),
        ("window", 31536001),
        ("skew", -2),
        ("skew", 31536001),
        ("reject", "icmpx"),
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
    assert field in KEYS or len(json.dumps(value)) > 40 or fault.message.endswith(f", not {json.dumps(value)}")


@pytest.mark.parametrize(
    ("field", "value", "path", "shown"),
    [
        ("interfaces", ["eth0", ""], (1,), '""'),
        ("interfaces", ["a" * 16], (0,), f'"{"a" * 16}"'),
        ("interfaces", ["eth 0"], (0,), '"eth 0"'),
        ("interfaces", ["eth0\n"], (0,), '"eth0\\n"'),
        ("interfaces", ["eth*"], (0,), '"eth*"'),
        ("interfaces", ["a/b"], (0,), '"a/b"'),
        ("interfaces", [7], (0,), "7"),
        ("from", ["192.0.2.1", 7], (1,), "7"),
        ("grant", {"ipv4": 7}, ("ipv4",), "7"),
        ("grant", {"ipv4": 33}, ("ipv4",), "33"),
        ("grant", {"ipv6": 15}, ("ipv6",), "15"),
        ("grant", {"ipv6": 129}, ("ipv6",), "129"),
        ("grant", {"ipv6": "64"}, ("ipv6",), '"64"'),
        ("rate", {"knocks": 0}, ("knocks",), "0"),
        ("rate", {"per": 86401}, ("per",), "86401"),
        ("rate", {"burst": 1.5}, ("burst",), "1.5"),
        ("rate", {"burst": True}, ("burst",), "true"),
    ],
)
def test_a_bad_part_of_a_value_is_one_fault_at_that_part(
    field: str, value: object, path: tuple[str | int, ...], shown: str
) -> None:
    message = f'"{field}" {FIELDS[field]["errorMessage"]}, not {shown}'
    assert faults_of(**{field: value}) == [Finding((0, field, *path), message)]


@pytest.mark.parametrize(
    "bad",
    [
        7,
        "",
        None,
        ["s3cr3t"],
        {},
        {"key": ""},
        {"key": ["s3cr3t"]},
        {"kee": "s3cr3t"},
        {"key": "k", "s3cr3t": 1},
        {"key": "s3cr3t", "not-before": 7},
        {"key": "s3cr3t", "tag": "PKD0"},
    ],
    ids=json.dumps,
)
def test_a_bad_entry_of_keys_is_one_fault_at_it_and_not_shown(bad: object) -> None:
    message = f'"keys" {FIELDS["keys"]["errorMessage"]}'
    assert faults_of(keys=["k", bad]) == [Finding((0, "keys", 1), message)]


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: [rule], lambda rule: [22, [{"x": rule}]]])
def test_what_has_fields_is_not_shown(wrap: Callable[[object], object]) -> None:
    """Where a bracket is missing, the next rule is taken for a value, with its key."""
    (found,) = faults_of(port=wrap({"name": "b", "key": "secret"}))
    assert "secret" not in found.message


def test_a_long_value_is_not_shown() -> None:
    (fault,) = faults_of(protocol="x" * 39)
    assert fault.message == f'"protocol" {FIELDS["protocol"]["errorMessage"]}'


def test_a_value_is_shown_escaped() -> None:
    (fault,) = faults_of(protocol="\x1b[31m\u202e")
    assert fault.message.endswith('not "\\u001b[31m\\u202e"')


@pytest.mark.parametrize("field", INTEGERS)
def test_an_integer_has_no_decimal_point(field: str) -> None:
    assert faults_of(**{field: 22.0}) == [Finding((0, field), f'"{field}" must be written without a decimal point')]


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("port", [22, 23.0], (1,)),
        ("knock-port", [9.0], (0,)),
        ("rate", {"per": 5.0}, ("per",)),
        ("grant", {"ipv4": 24.0}, ("ipv4",)),
    ],
)
def test_an_integer_inside_a_value_has_no_decimal_point(field: str, value: object, path: tuple[str | int, ...]) -> None:
    message = f'"{field}" must be written without a decimal point'
    assert faults_of(**{field: value}) == [Finding((0, field, *path), message)]


def test_a_missing_name_is_named_at_the_rule() -> None:
    assert list(find_faults([SSH, {}])) == [Finding((1,), 'the rule has no "name"')]


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
        ("knock_port", "knock-port"),
        ("ports", "port"),
        ("interface", "interfaces"),
        ("ext_command", "ext-command"),
        ("not_after", "not-after"),
        ("close-comand", "close-command"),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_was_meant(unknown: str, meant: str) -> None:
    message = f'"{unknown}" is not a field of the rule; did you mean "{meant}"?'
    assert faults_of(**{unknown: 1}) == [Finding((0, unknown), message, at_key=True)]


def test_a_field_like_no_other_is_answered_with_all_there_are() -> None:
    (fault,) = faults_of(**{"q\n" + "z" * 100: 1})
    assert fault.message.startswith(
        '"q\\n' + "z" * 38 + '" is not a field of the rule; known are name, key, not-before, '
    )
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
    faults = list(find_faults([{**SSH, "port": 0, "old": 1, "x": 1}, 5, {"key": "a"}]))
    assert sorted(fault.path for fault in faults) == [(0, "old"), (0, "port"), (0, "x"), (1,), (2,)]


MARK = "s3cr3t"
anything = json_values | st.lists(json_values) | st.dictionaries(st.sampled_from([*FIELDS, "other"]), json_values)
keys_with_a_mark = st.sampled_from(
    [MARK, "0x" + MARK, [MARK], {MARK: 1}, {"key": MARK}, [[{"a": MARK}]], MARK + "\n", MARK * 1000]
)


@given(st.lists(st.dictionaries(st.sampled_from([*FIELDS, "kee", "other"]), json_values)), keys_with_a_mark)
def test_no_message_repeats_a_key(document: list[dict[str, Any]], key: object) -> None:
    marked = [{**rule, "key": key, "keys": [key, {"key": key}, {"key": "k", MARK: 1}]} for rule in document]
    assert not [fault for fault in find_faults(marked) if MARK in fault.message]


@given(st.lists(anything) | anything)
def test_anything_is_judged_and_every_finding_leads_somewhere(document: object) -> None:
    for path, message, at_key in find_faults(document):
        value: Any = document
        for step in path:
            value = value[step]
        assert message
        assert not at_key or len(path) in (2, 3)
