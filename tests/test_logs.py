from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.logs import escape, is_logged, log_event, set_up_logging


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger("nfpkd")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def logged(form: str, level: int = logging.INFO) -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(level, form, stream)
    return stream


def test_a_line_for_people_has_its_fields_behind() -> None:
    stream = logged("text")
    log_event(logging.WARNING, "knock_refused", "knock refused", rule="ssh", source="192.0.2.1")
    assert stream.getvalue() == "warning: knock refused rule=ssh source=192.0.2.1\n"


def test_a_line_for_machines_is_one_json_object() -> None:
    stream = logged("json")
    log_event(logging.INFO, "reloaded", "rules reloaded", rules=3)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "event": "reloaded", "message": "rules reloaded", "rules": 3}


@pytest.mark.parametrize("form", ["text", "json"])
def test_less_than_asked_for_is_not_logged(form: str) -> None:
    stream = logged(form, logging.WARNING)
    log_event(logging.INFO, "reloaded", "rules reloaded")
    assert stream.getvalue() == ""
    assert not is_logged(logging.INFO)
    assert is_logged(logging.WARNING)


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_logged_with_its_traceback_on_one_line(form: str) -> None:
    stream = logged(form)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("nfpkd.part").exception("it broke")
    assert stream.getvalue().count("\n") == 1
    assert "it broke" in stream.getvalue()
    assert "ValueError: odd" in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, with spaces", "plain, with spaces"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("right\u202eleft", r"right\u202eleft"),
        ("lone \ud800", r"lone \ud800"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(st.text())
def test_nothing_forges_a_second_line(text: str) -> None:
    assert escape(text).isprintable()
    stream = logged("text")
    log_event(logging.INFO, "event", text, field=text)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue()[:-1].isprintable()
