"""Log lines: for people by default, JSON for machines.

Nothing reaches a terminal or a file unescaped: rule files, host names and
packets may hold control characters that would forge lines or move cursors.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_log = logging.getLogger("nfpkd")


def log_event(level: int, event: str, text: str, **fields: object) -> None:
    """Log *event* (a stable name for machines) as *text* (for people) with its *fields*."""
    if _log.isEnabledFor(level):
        _log.log(level, "%s", text, extra={"event": event, "fields": fields})


def is_logged(level: int) -> bool:
    """Tell whether *level* is logged at all: for callers whose fields cost something to make."""
    return _log.isEnabledFor(level)


def set_up_logging(level: int, form: str, stream: TextIO | None = None) -> None:
    """Send what is logged at *level* and above to standard error, as ``text`` or ``json`` lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    _log.handlers[:] = [handler]
    _log.setLevel(level)
    _log.propagate = False


def escape(text: str) -> str:
    """Return *text* with everything that is not printable as an escape, on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        parts = [record.getMessage(), *(f"{name}={value}" for name, value in fields.items())]
        text = " ".join(parts)
        if record.exc_info:
            text += ": " + self.formatException(record.exc_info)
        return f"{record.levelname.lower()}: {escape(text)}"


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
