"""The log: one line for each event on standard error, as text or JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from copy import copy

__all__ = ["LEVELS", "printable", "set_up_log"]

#: Maximum number of characters in a message. The rest is cut off, because clients choose names that messages contain.
MESSAGE_CHARACTERS_MAX = 8192

#: Python's log level for each of the host's levels.
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


#: The host's names of those levels that Python names differently.
HOST_NAMES = {"WARNING": "WARN", "CRITICAL": "ERROR"}


def set_up_log(level: str, structured: bool) -> None:
    """Send the log to standard error. For an unknown level, use info and log a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if structured else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS.get(level.lower(), logging.INFO))
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if level.lower() not in LEVELS:
        root.warning("log_level: found %r, allowed %s; using info", level[:32], ", ".join(LEVELS))


def _level(record: logging.LogRecord) -> str:
    """Return the host's name of a record's level."""
    return HOST_NAMES.get(record.levelname, record.levelname)


def printable(text: str) -> str:
    """Return the text on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if len(message) <= MESSAGE_CHARACTERS_MAX:
        return message
    return f"{message[:MESSAGE_CHARACTERS_MAX]}... ({len(message)} characters)"


class PlainFormatter(logging.Formatter):
    """A formatter for lines like `2026-01-31T12:00:00.000Z INFO provider: ready`.

    If the record has a caller's traceparent, the line ends with the traceparent.
    """

    def __init__(self) -> None:
        self.converter = time.gmtime
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line. Line breaks are escaped, so that a client's text cannot forge a second line."""
        message = _message(record)
        traceparent = getattr(record, "traceparent", None)
        if traceparent is not None:
            message = f"{message} (traceparent {traceparent})"
        record = copy(record)
        record.msg = printable(message)
        record.args = None
        record.levelname = _level(record)
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """A formatter that writes one JSON object per line, with the same fields as wasmCloud's structured log."""

    def __init__(self) -> None:
        self.converter = time.gmtime
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        fields = {"message": _message(record)}
        traceparent = getattr(record, "traceparent", None)
        if traceparent is not None:
            fields["traceparent"] = traceparent
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        event = {
            "timestamp": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": _level(record),
            "target": record.name,
            "fields": fields,
        }
        return json.dumps(event, ensure_ascii=False)
