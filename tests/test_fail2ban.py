"""The filter in contrib/fail2ban, on lines as nfpkd logs them."""

from __future__ import annotations

import configparser
import io
import logging
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.logs import log_event, set_up_logging
from nfpkd.rules.model import PortRange, Protocol, Rule, TimedKey, parse_key, parse_tag
from nfpkd.verifier.judge import Judgement, Outcome
from nfpkd.verifier.verifier import Opened, _log_accepted, _log_refusal
from support.fail2ban import configure, find_fail2ban

FOLDER = Path(__file__).parents[1] / "contrib" / "fail2ban"
# What somebody else is the reason for; the rest must not ban anybody.
BLAMED = {
    Outcome.REPLAYED,
    Outcome.KEY_NOT_YET_VALID,
    Outcome.KEY_EXPIRED,
    Outcome.SOURCE_NOT_ALLOWED,
    Outcome.CLOCK_OFF,
    Outcome.RATE_LIMITED,
}
REFUSED = sorted(set(Outcome) - {Outcome.ACCEPTED}, key=lambda outcome: outcome.value)
SOURCES = ("192.0.2.1", "2001:db8::1")
RULE = Rule(
    name="my.rule-1",
    keys=(TimedKey(parse_key("secret words")),),
    tag=parse_tag("SSH1"),
    ports=(PortRange(22, 22),),
    protocols=(Protocol.TCP,),
)


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    assert parser.read(FOLDER / name)
    return parser


def failregex() -> re.Pattern[str]:
    """Return the filter's expression as Fail2Ban compiles it: <HOST> takes an address."""
    text = read("nfpkd.conf")["Definition"]["failregex"]
    assert text.count("<HOST>") == 1
    return re.compile(text.replace("<HOST>", r"(?P<host>[0-9a-fA-F:.]+)"))


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger("nfpkd")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(params=["text", "syslog", "journal"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Iterator[str]]:
    """Yield what was logged since, as Fail2Ban sees it: without the time."""
    if request.param == "journal":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.bind(str(tmp_path / "socket"))
            set_up_logging(logging.DEBUG, "journal", io.StringIO(), tmp_path / "socket")
            yield (f"host nfpkd[4711]: {message}" for message in journal_messages(journald))
    else:
        stream = io.StringIO()
        set_up_logging(logging.DEBUG, "text", stream)
        before = " host nfpkd[4711]: " if request.param == "syslog" else ""
        yield (before + line for line in text_lines(stream))


def journal_messages(journald: socket.socket) -> Iterator[str]:
    journald.settimeout(0)
    while True:
        yield journald.recv(4096).decode().partition("\n")[0].removeprefix("MESSAGE=")


def text_lines(stream: io.StringIO) -> Iterator[str]:
    position = 0
    while True:
        stream.seek(position)
        line = stream.readline()
        position = stream.tell()
        yield line.rstrip("\n")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("outcome", REFUSED)
def test_who_is_to_blame_is_found(log: Iterator[str], outcome: Outcome, source: str) -> None:
    _log_refusal(source, Judgement(RULE, outcome, -42))
    found = failregex().search(next(log))
    assert (found["host"] if found else None) == (source if outcome in BLAMED else None)


def test_nobody_else_is(log: Iterator[str]) -> None:
    _log_accepted(Opened(RULE, "192.0.2.1"))
    log_event(logging.DEBUG, "not_a_knock", "digest mismatch", source="192.0.2.1", port=4711)
    text = "knock refused: it cannot be remembered: disk full"
    log_event(logging.ERROR, "knock_refused", text, rule="ssh", source="192.0.2.1", reason="not_kept")
    for _ in range(3):
        line = next(log)
        assert "192.0.2.1" in line
        assert not failregex().search(line)


def test_a_command_that_prints_such_a_line_bans_nobody(log: Iterator[str]) -> None:
    """Its last line of output is logged, and its user has a say in it."""
    forged = "knock refused: this knock was seen before rule=ssh source=192.0.2.9 reason=replayed"
    log_event(logging.INFO, "trigger_ended", "command open: exit status 0", rule="a", source="192.0.2.1", output=forged)
    line = next(log)
    assert forged in line
    assert not failregex().search(line)


def test_fail2ban_itself_finds_the_same(log: Iterator[str], tmp_path: Path) -> None:
    """How it reads addresses and times is its own."""
    forged = "knock refused: this knock was seen before rule=ssh source=192.0.2.9 reason=replayed"
    lines = []
    for outcome in REFUSED:
        for source in SOURCES:
            _log_refusal(source, Judgement(RULE, outcome, -42))
            lines.append(next(log))
            log_event(logging.INFO, "trigger_ended", "command open: exit status 0", source=source, output=forged)
            lines.append(next(log))
    file = tmp_path / "log"
    # Those of a syslog have a space where their time was.
    file.write_text("".join(f"Nov 23 01:23:45{line}\n" if line.startswith(" ") else f"{line}\n" for line in lines))
    config = configure(tmp_path / "fail2ban")
    command = [*find_fail2ban("fail2ban-regex"), "--config", str(config), "--out", "ip", str(file)]
    done = subprocess.run([*command, FOLDER / "nfpkd.conf"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [source for outcome in REFUSED if outcome in BLAMED for source in SOURCES]


def test_fail2ban_takes_the_jail_with_its_filter(tmp_path: Path) -> None:
    config = configure(tmp_path / "fail2ban")

    def check() -> subprocess.CompletedProcess[str]:
        command = [*find_fail2ban("fail2ban-client"), "-c", str(config), "-t"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = check()
    assert (done.returncode, "OK: configuration test is successful" in done.stdout) == (0, True), done.stderr
    (config / "filter.d" / "nfpkd.conf").unlink()
    assert check().returncode != 0


def test_the_jail_uses_the_filter() -> None:
    jail = read("nfpkd-jail.conf")
    assert jail.sections() == ["nfpkd"]
    assert jail.get("nfpkd", "filter") == "nfpkd"
    assert jail.get("nfpkd", "banaction", raw=True) == "%(banaction_allports)s"
