from __future__ import annotations

import io
import json
import logging
import os
import socket
import string
import struct
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd import logs
from nfpkd.cli import guard
from nfpkd.journal import encode_entry, leads_to_journal
from nfpkd.logs import log_event, set_up_logging


def decode(entry: bytes) -> dict[str, str]:
    """Read an entry as journald does, and complain as it does not."""
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if is_short:
            entry = rest
        else:
            (length,) = struct.unpack_from("<Q", rest)
            value, end = rest[8 : 8 + length], rest[8 + length : 9 + length]
            assert end == b"\n"
            entry = rest[9 + length :]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


NAMES = st.text(string.ascii_uppercase + "_", min_size=1, max_size=20).filter(lambda name: name[0] != "_")


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ({"A": "1", "B_2": "x=y"}, b"A=1\nB_2=x=y\n"),
        ({"A": ""}, b"A=\n"),
        ({"A": "two\nlines"}, b"A\n\x09\0\0\0\0\0\0\0two\nlines\n"),
        ({"A": "\n"}, b"A\n\x01\0\0\0\0\0\0\0\n\n"),
        ({"A": "naïve"}, "A=naïve\n".encode()),
        ({"A": "\ud800"}, b"A=\\ud800\n"),
    ],
)
def test_encode_entry(fields: dict[str, str], entry: bytes) -> None:
    assert encode_entry(fields) == entry


@given(st.dictionaries(NAMES, st.text()))
def test_no_value_forges_a_field(fields: dict[str, str]) -> None:
    readable = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in fields.items()}
    assert decode(encode_entry(fields)) == readable


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger("nfpkd")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """The journal's socket, and nobody yet who reads it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.setblocking(False)
        yield sock


def log_to(journald: socket.socket, form: str = "journal") -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(logging.INFO, form, stream, Path(journald.getsockname()))
    return stream


def read(journald: socket.socket) -> dict[str, str]:
    return decode(journald.recv(1 << 20))


def test_an_event_has_its_fields(journald: socket.socket) -> None:
    stream = log_to(journald)
    log_event(logging.INFO, "knock_accepted", "knock accepted", rule="ssh", source="192.0.2.1", seconds=60)
    assert read(journald) == {
        "MESSAGE": "knock accepted rule=ssh source=192.0.2.1 seconds=60",
        "PRIORITY": "6",
        "SYSLOG_FACILITY": "3",
        "SYSLOG_IDENTIFIER": "nfpkd",
        "NFPKD_EVENT": "knock_accepted",
        "NFPKD_RULE": "ssh",
        "NFPKD_SOURCE": "192.0.2.1",
        "NFPKD_SECONDS": "60",
    }
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"), (logging.CRITICAL, "2")]
)
def test_levels_are_those_of_syslog(journald: socket.socket, level: int, priority: str) -> None:
    log_to(journald)
    log_event(level, "event", "text")
    assert read(journald)["PRIORITY"] == priority


def test_less_than_asked_for_is_not_sent(journald: socket.socket) -> None:
    log_to(journald)
    log_event(logging.DEBUG, "not_a_knock", "digest mismatch")
    with pytest.raises(BlockingIOError):
        journald.recv(1)


def test_a_message_stays_on_its_line_and_a_field_is_as_it_was(journald: socket.socket) -> None:
    log_to(journald)
    log_event(logging.ERROR, "trigger_ended", "ended", output="red \x1b[31m\nMESSAGE=forged")
    fields = read(journald)
    assert fields["MESSAGE"] == r"ended output=red \x1b[31m\nMESSAGE=forged"
    assert fields["NFPKD_OUTPUT"] == "red \x1b[31m\nMESSAGE=forged"


def test_a_traceback_keeps_its_lines(journald: socket.socket) -> None:
    log_to(journald)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("nfpkd.part").exception("it broke")
    fields = read(journald)
    first, *rest = fields["MESSAGE"].splitlines()
    assert first == "it broke"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: odd"
    assert fields["NFPKD_EVENT"] == "message"


def test_what_does_not_fit_goes_to_standard_error(journald: socket.socket) -> None:
    stream = log_to(journald)
    log_event(logging.WARNING, "rules_warning", "long", seen="x" * (1 << 20))
    assert stream.getvalue().startswith("warning: long seen=xxx")
    log_event(logging.INFO, "stopped", "short")
    assert read(journald)["MESSAGE"] == "short"


def test_a_full_journal_is_not_waited_for(journald: socket.socket) -> None:
    stream = log_to(journald)
    before = 0
    while not stream.getvalue():
        log_event(logging.INFO, "event", f"line {before}")
        before += 1
    assert stream.getvalue() == f"info: line {before - 1}\n"
    for number in range(before - 1):
        assert read(journald)["MESSAGE"] == f"line {number}"
    log_event(logging.INFO, "event", "again")
    assert read(journald)["MESSAGE"] == "again"


def test_a_journal_that_was_restarted_is_found_again(tmp_path: Path, journald: socket.socket) -> None:
    stream = log_to(journald)
    (tmp_path / "socket").unlink()
    log_event(logging.INFO, "event", "meanwhile")
    assert stream.getvalue() == "info: meanwhile\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        log_event(logging.INFO, "event", "and after")
        assert read(again)["MESSAGE"] == "and after"


def test_what_nobody_takes_is_counted_and_told(tmp_path: Path, journald: socket.socket) -> None:
    """Neither is read: the journal, and standard error that leads to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("w") as stream:
        ours.settimeout(10)
        (tmp_path / "socket").rename(tmp_path / "gone")
        set_up_logging(logging.INFO, "journal", stream, tmp_path / "socket")
        for number in range(5000):
            log_event(logging.INFO, "event", f"line {number} " + "x" * 1000)
        (tmp_path / "gone").rename(tmp_path / "socket")
        log_event(logging.INFO, "event", "back")
        assert read(journald)["MESSAGE"] == "back"
        told = read(journald)
        log_event(logging.INFO, "event", "told once")
        assert read(journald)["MESSAGE"] == "told once"
        with pytest.raises(BlockingIOError):
            read(journald)
        theirs.shutdown(socket.SHUT_WR)
        written = sum(1 for _ in ours.makefile())
    assert 0 < written < 5000
    assert told["MESSAGE"] == f"{5000 - written} log lines were lost: the journal did not take them"
    assert (told["PRIORITY"], told["NFPKD_EVENT"]) == ("4", "log_lost")


def connected(file: io.TextIOWrapper) -> str:
    info = os.fstat(file.fileno())
    return f"{info.st_dev}:{info.st_ino}"


def test_auto_takes_the_journal_where_standard_error_leads_to_it(
    tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w+") as stream, (tmp_path / "elsewhere").open("w") as other:
        journal = tmp_path / "socket"
        monkeypatch.setenv("JOURNAL_STREAM", connected(stream))
        assert leads_to_journal(stream.fileno())
        set_up_logging(logging.INFO, "auto", stream, journal)
        log_event(logging.INFO, "event", "to the journal")
        assert read(journald)["MESSAGE"] == "to the journal"
        # Inherited by a shell in a unit, say, whose standard error goes elsewhere.
        monkeypatch.setenv("JOURNAL_STREAM", connected(other))
        assert not leads_to_journal(stream.fileno())
        set_up_logging(logging.INFO, "auto", stream, journal)
        log_event(logging.INFO, "event", "to the file")
        stream.seek(0)
        assert stream.read() == "info: to the file\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_who_asks_for_lines_gets_lines(
    tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with (tmp_path / "stderr").open("w+") as stream:
        monkeypatch.setenv("JOURNAL_STREAM", connected(stream))
        set_up_logging(logging.INFO, form, stream, tmp_path / "socket")
        log_event(logging.INFO, "event", "a line")
        stream.seek(0)
        line = stream.read()
        assert line == "info: a line\n" if form == "text" else json.loads(line)["message"] == "a line"
        with pytest.raises(BlockingIOError):
            journald.recv(1)


def test_a_stream_that_is_no_file_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert not leads_to_journal(-1)
    stream = io.StringIO()
    set_up_logging(logging.INFO, "auto", stream)
    log_event(logging.INFO, "event", "text")
    assert stream.getvalue() == "info: text\n"


def test_the_command_knows_the_formats() -> None:
    (option,) = [parameter for parameter in guard.run.params if parameter.name == "log_format"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == logs.FORMATS
