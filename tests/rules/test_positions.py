"""JSON with positions: every value is found where it stands, and what JSON forbids is refused where it stands."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import Problem, RulesError
from nfpkd.rules.positions import MAX_DEPTH, MAX_NUMBER_LENGTH, Document
from support.strategies import WrittenJson, json_values, written_json


def place(text: str, offset: int) -> tuple[int, int]:
    """Return line and column of *offset*, counted in another way than Document does."""
    lines = text[:offset].split("\n")
    return len(lines), len(lines[-1]) + 1


def refusal(text: str) -> Problem:
    with pytest.raises(RulesError) as caught:
        Document("rules.json", text)
    (problem,) = caught.value.problems
    assert problem.path == "rules.json"
    return problem


@given(written_json())
def test_every_value_is_found_where_it_starts(written: WrittenJson) -> None:
    document = Document("rules.json", written.text)
    assert document.value == written.value
    for path, offset in written.values.items():
        expected = Problem("rules.json", *place(written.text, offset), "wrong")
        assert document.problem(path, "wrong") == expected


@given(written_json())
def test_every_key_is_found_where_it_starts(written: WrittenJson) -> None:
    document = Document("rules.json", written.text)
    for path, offset in written.keys.items():
        assert document.problem(path, "", at_key=True)[1:3] == place(written.text, offset)


@given(json_values, st.none() | st.integers(0, 8) | st.sampled_from(["\t", " \t"]), st.booleans())
def test_indentation_does_not_matter(value: object, indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    document = Document("rules.json", text)
    assert document.value == value
    if isinstance(value, list):
        for index, item in enumerate(value):
            _, line, column, _ = document.problem((index,), "")
            rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
            assert json.JSONDecoder().raw_decode(rest)[0] == item


@pytest.mark.parametrize(
    ("path", "at_key", "expected"),
    [
        ((0, "port"), False, (1, 11)),
        ((0, "tag"), False, (1, 3)),
        ((0, "tag"), True, (1, 3)),
        ((0, "port", "deeper", 7), False, (1, 11)),
        ((5, "port"), False, (1, 1)),
    ],
)
def test_what_is_not_there_is_placed_at_its_nearest_parent(
    path: tuple[str | int, ...], at_key: bool, expected: tuple[int, int]
) -> None:
    document = Document("rules.json", '[ {"port":22} ]')
    assert document.problem(path, "", at_key=at_key)[1:3] == expected


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('{"a": 1,\n "a": 2}', 2, 2, '"a" is given twice'),
        ('[{"x": {"a": 1, "b": 2, "a": 3}}]', 1, 25, '"a" is given twice'),
        (r'{"a": 1, "\u0061": 2}', 1, 10, "is given twice"),
        ('[{"a": 1}, {"a": 2}, {"a": 3, "a": 4}]', 1, 31, '"a" is given twice'),
        ("[1,\n  NaN]", 2, 3, "NaN is not a JSON number"),
        ('{"a": Infinity}', 1, 7, "Infinity is not a JSON number"),
        ("[[-Infinity]]", 1, 3, "-Infinity is not a JSON number"),
        ('["NaN", NaN', 1, 9, "NaN is not a JSON number"),
        # The parser stops there, so what follows need not be JSON.
        ("NaNA {", 1, 1, "NaN is not a JSON number"),
        ('[NaN {"a\x18: {}, : "b"', 1, 2, "NaN is not a JSON number"),
        ("[1, -Infinityx]]]}", 1, 5, "-Infinity is not a JSON number"),
        ('{"a": 1, "a": 2}}}]{', 1, 10, '"a" is given twice'),
        (r'["\ud800"]', 1, 2, "lone surrogate"),
        (r'["ok", "\uDFFFx"]', 1, 8, "lone surrogate"),
        (r'{"\ud83d": 1}', 1, 2, "lone surrogate"),
        (r'[{"a": "\ude00\ud83d"}]', 1, 8, "lone surrogate"),
    ],
)
def test_what_pythons_parser_lets_through_is_refused_in_its_place(
    text: str, line: int, column: int, words: str
) -> None:
    problem = refusal(text)
    assert (problem.line, problem.column) == (line, column)
    assert words in problem.message


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("[1,\n 2,\n]", 2, 3, "a comma before ] is one too many"),
        ('{"a": 1,}', 1, 8, "a comma before } is one too many"),
        ('{"a": 1 , }', 1, 9, "a comma before } is one too many"),
        ("['a']", 1, 2, 'double quotes (")'),
        ("{'a': 1}", 1, 2, 'double quotes (")'),
        ("// rules\n[]", 1, 1, 'comments are not allowed; use "description"'),
        ("[\n# rules\n]", 2, 1, 'comments are not allowed; use "description"'),
        ("", 1, 1, "the file is empty; write [] for no rules"),
        (" \n ", 2, 2, "the file is empty; write [] for no rules"),
        ("\ufeff[]", 1, 1, "BOM"),
        ("[1 2]", 1, 4, "',' delimiter"),
        ("[] []", 1, 4, "extra data"),
        ('["a\nb"]', 1, 4, "control character"),
        ("[", 1, 2, "expecting value"),
        ("[\u00a01]", 1, 2, "expecting value"),
        ("[\x0b1]", 1, 2, "expecting value"),
    ],
)
def test_what_is_not_json_is_refused_in_its_place(text: str, line: int, column: int, words: str) -> None:
    problem = refusal(text)
    assert (problem.line, problem.column) == (line, column)
    assert problem.message.startswith("not valid JSON: ")
    assert words in problem.message


@pytest.mark.parametrize("text", [r'["\ud83d\ude00"]', r'["\\ud800"]', r'["\\\\uDFFF", {"\\ud800": "😀"}]'])
def test_surrogate_pairs_and_escaped_backslashes_are_text(text: str) -> None:
    assert Document("rules.json", text).value == json.loads(text)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("[" * 100_000, MAX_DEPTH + 1),
        ("[" * 100_000 + "]" * 100_000, MAX_DEPTH + 1),
        ('{"a":' * 100_000, 5 * MAX_DEPTH + 1),
    ],
)
def test_endless_nesting_is_refused_where_it_gets_too_deep(text: str, column: int) -> None:
    problem = refusal(text)
    assert problem.message == f"brackets are nested more than {MAX_DEPTH} deep"
    assert (problem.line, problem.column) == (1, column)


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_endless_number_is_refused_where_it_stands(sign: str) -> None:
    problem = refusal(f'[1,\n {{"port": {sign}{"9" * 5000}}}]')
    assert (problem.line, problem.column) == (2, 11)
    assert problem.message == f"a number has {5000 + len(sign)} digits"


def test_the_number_that_cannot_be_read_is_blamed_and_not_a_merely_long_one() -> None:
    assert refusal(f"[{'1' * MAX_NUMBER_LENGTH}, {'2' * 5000}]").column == MAX_NUMBER_LENGTH + 4


def test_numbers_in_strings_are_strings() -> None:
    text = json.dumps(["1" * 5000, "NaN", "[" * 100])
    assert Document("rules.json", text).value == json.loads(text)


def test_a_fault_behind_a_long_string_is_found_in_little_memory() -> None:
    """A file may have 64 MiB; the walk may not need gigabytes to say what is wrong in it."""
    text = '[{"description": "' + "x" * 1_000_000 + '", "a": 1, "a": 2}]'
    tracemalloc.start()
    try:
        problem = refusal(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert problem.column == text.rindex('"a"') + 1
    assert peak < 16 * len(text)


@given(st.text(max_size=30) | st.text('[]{},:"\\ntuNaIfyd0123.-eE \n', max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = Document("rules.json", text).value
    except RulesError as error:
        (problem,) = error.problems
        assert problem.line == 0 or 1 <= problem.line <= text.count("\n") + 1
    else:
        assert json.loads(text) == value
