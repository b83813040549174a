"""Log lines: for people by default, JSON for machines, fields for systemd's journal.

Nothing reaches a terminal or a file unescaped: rule files, host names and
packets may hold control characters that would forge lines or move cursors.
"""

from __future__ import annotations

import json
import logging
import select
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from nfpkd.journal import JOURNAL, Journal, leads_to_journal

# "auto" is the journal where standard error leads to it, and text elsewhere.
FORMATS = ("auto", "text", "json", "journal")

# syslog(3)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_FACILITY_DAEMON = 3

_log = logging.getLogger("nfpkd")


def log_event(level: int, event: str, text: str, **fields: object) -> None:
    """Log *event* (a stable name for machines) as *text* (for people) with its *fields*."""
    if _log.isEnabledFor(level):
        _log.log(level, "%s", text, extra={"event": event, "fields": fields})


def is_logged(level: int) -> bool:
    """Tell whether *level* is logged at all: for callers whose fields cost something to make."""
    return _log.isEnabledFor(level)


def set_up_logging(level: int, form: str, stream: TextIO | None = None, journal: Path = JOURNAL) -> None:
    """Send what is logged at *level* and above to standard error or the journal; *form* is one of `FORMATS`."""
    stream = stream or sys.stderr
    lines = logging.StreamHandler(stream)
    lines.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    handler: logging.Handler = lines
    if form == "journal" or (form == "auto" and leads_to_journal(_descriptor(stream))):
        handler = _JournalHandler(Journal(journal), lines)
    for before in _log.handlers:
        before.close()
    _log.handlers[:] = [handler]
    _log.setLevel(level)
    _log.propagate = False


def escape(text: str) -> str:
    """Return *text* with everything that is not printable as an escape, on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _describe(record: logging.LogRecord) -> str:
    """Return what *record* says, for people, with its fields behind."""
    fields = getattr(record, "fields", {})
    return escape(" ".join([record.getMessage(), *(f"{name}={value}" for name, value in fields.items())]))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _describe(record)
        if record.exc_info:
            text += ": " + escape(self.formatException(record.exc_info))
        return f"{record.levelname.lower()}: {text}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _JournalHandler(logging.Handler):
    """Sends records to *journal*, and as *lines* what it does not take; what neither takes is counted."""

    def __init__(self, journal: Journal, lines: logging.StreamHandler[TextIO]) -> None:
        super().__init__()
        self._journal = journal
        self._lines = lines
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._journal.send(_journal_fields(record)):
                self._tell_lost()
            elif _has_room(self._lines.stream):
                self._lines.emit(record)
            else:
                self._lost += 1
        except Exception:  # noqa: BLE001  (as every handler of logging does: a log line must not end the program)
            self.handleError(record)

    def close(self) -> None:
        self._journal.close()
        super().close()

    def _tell_lost(self) -> None:
        if self._lost:
            text = f"{self._lost} log lines were lost: the journal did not take them"
            record = logging.LogRecord(_log.name, logging.WARNING, "", 0, text, None, None)
            record.event = "log_lost"
            if self._journal.send(_journal_fields(record)):
                self._lost = 0


def _journal_fields(record: logging.LogRecord) -> dict[str, str]:
    message = _describe(record)
    if record.exc_info:
        message += "\n" + "\n".join(map(escape, logging.Formatter().formatException(record.exc_info).splitlines()))
    return {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_FACILITY": str(_FACILITY_DAEMON),
        "SYSLOG_IDENTIFIER": "nfpkd",
        "NFPKD_EVENT": getattr(record, "event", "message"),
        **{f"NFPKD_{name.upper()}": str(value) for name, value in getattr(record, "fields", {}).items()},
    }


def _has_room(stream: TextIO) -> bool:
    """Tell whether a line can be written to *stream* at once: whoever judges packets must not wait for a reader."""
    descriptor = _descriptor(stream)
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1
