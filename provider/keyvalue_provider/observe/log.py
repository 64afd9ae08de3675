"""The log: one line an event on standard error, plain or JSON, as the host asks."""

from __future__ import annotations

import json
import logging
import sys
import time
from copy import copy

__all__ = ["LEVELS", "printable", "set_up_log"]

#: Of an event, so much is logged: names that others have chosen stand in it.
MESSAGE_CHARACTERS_MAX = 8192

#: A host's names of levels, and Python's.
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def set_up_log(level: str, structured: bool) -> None:
    """Send the log to standard error. An unknown level is taken as info, and warned of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if structured else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS.get(level.lower(), logging.INFO))
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if level.lower() not in LEVELS:
        root.warning("log_level: found %r, allowed %s; info it is", level[:32], ", ".join(LEVELS))


def printable(text: str) -> str:
    """The text on one line, with escapes for what can't be printed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if len(message) <= MESSAGE_CHARACTERS_MAX:
        return message
    return f"{message[:MESSAGE_CHARACTERS_MAX]}... ({len(message)} characters)"


class PlainFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO provider: ready`; behind it, where a record has one, the caller's traceparent."""

    def __init__(self) -> None:
        self.converter = time.gmtime
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line; what others may have named cannot make a second one of it."""
        message = _message(record)
        traceparent = getattr(record, "traceparent", None)
        if traceparent is not None:
            message = f"{message} (traceparent {traceparent})"
        record = copy(record)
        record.msg = printable(message)
        record.args = None
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the fields that wasmCloud's own structured log has."""

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
            "level": record.levelname,
            "target": record.name,
            "fields": fields,
        }
        return json.dumps(event, ensure_ascii=False)
