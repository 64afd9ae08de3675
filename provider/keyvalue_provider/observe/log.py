"""The log: one line for each event on standard error, as text or JSON, at a limited rate.

Messages from NATS can trigger most lines: links, configurations, health and shutdown requests, calls. So each place in
the code that logs has its own limit, and a flood of messages neither fills a disk nor hides the lines of other places.
Lines that standard error does not take are dropped and counted; see log_writer.py.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from copy import copy
from typing import NamedTuple

from keyvalue_provider.observe.log_writer import LogWriter
from keyvalue_transport.nats.rate_limit import RateLimit

__all__ = ["LEVELS", "LogEntry", "dropped_lines", "export_log", "flush_log", "log_always", "printable", "set_up_log"]

STANDARD_ERROR = 2
#: Time limit for writing the last lines at the end of the process.
FLUSH_TIMEOUT_S = 0.5

#: Maximum number of characters in a message. The rest is cut off, because clients choose names that messages contain.
MESSAGE_CHARACTERS_MAX = 8192

#: Maximum number of lines that one place in the code may log in an interval. Debug lines have no limit.
PLACE_LINES_MAX = 20
PLACE_INTERVAL_S = 10.0

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


class LogEntry(NamedTuple):
    """A line of the log, to be exported.

    :ivar target: the name of the logger
    :ivar traceparent: the trace that the line is about, if any
    :ivar exception: a traceback, if any
    """

    time_ns: int
    level: str
    target: str
    message: str
    traceparent: str | None
    exception: str | None


def set_up_log(level: str, structured: bool) -> None:
    """Send the log to standard error. For an unknown level, use info and log a warning."""
    root = logging.getLogger()
    handler = next(_handlers(), None) or LimitedHandler()
    handler.setFormatter(JsonFormatter() if structured else PlainFormatter())
    root.handlers[:] = [handler]
    root.setLevel(LEVELS.get(level.lower(), logging.INFO))
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if level.lower() not in LEVELS:
        root.warning("log_level: found %r, allowed %s; using info", level[:32], ", ".join(LEVELS))


def export_log(take: Callable[[LogEntry], None] | None) -> None:
    """Give each further line to `take` too. It must neither wait nor log. None to give them to nobody."""
    for handler in _handlers():
        handler.take = take


def flush_log(timeout_s: float = FLUSH_TIMEOUT_S) -> None:
    """Wait until the log is written, up to `timeout_s`."""
    for handler in _handlers():
        handler.writer.flush(timeout_s)


def dropped_lines() -> int:
    """Return the number of lines that were not written, because standard error did not take them."""
    return sum(handler.writer.refused + handler.writer.failed for handler in _handlers())


def log_always(log: logging.Logger, message: str) -> None:
    """Log a line at level INFO, also if the log level is higher."""
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, (), None))


def _handlers() -> Iterator[LimitedHandler]:
    return (handler for handler in logging.getLogger().handlers if isinstance(handler, LimitedHandler))


def _level(record: logging.LogRecord) -> str:
    """Return the host's name of a record's level."""
    return HOST_NAMES.get(record.levelname, record.levelname)


class LimitedHandler(logging.Handler):
    """A handler that writes to standard error, at a limited rate for each place in the code. It never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = LogWriter(STANDARD_ERROR)
        self.take: Callable[[LogEntry], None] | None = None
        self._limits: dict[tuple[str, int], RateLimit] = {}
        self._refused_told = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless its place has written too many. Say how many records were left out before it."""
        if record.levelno > logging.DEBUG:
            place = record.pathname, record.lineno
            limit = self._limits.get(place) or self._limits.setdefault(
                place, RateLimit(PLACE_LINES_MAX, PLACE_INTERVAL_S)
            )
            more = limit.admit(time.monotonic())
            if more is None:
                return
            if more:
                record = copy(record)
                record.msg, record.args = f"{record.getMessage()}{more}", None
        if self.take is not None:
            self.take(_entry_of(record))
        line, refused = self._line(record), self.writer.refused
        if refused > self._refused_told:
            message = f"{refused - self._refused_told} log lines were dropped, because standard error was not read"
            told = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (), None)
            line = self._line(told) + line
        if self.writer.write(line):
            self._refused_told = refused

    def flush(self) -> None:
        """Wait until the log is written. Python calls this at the end of the process."""
        self.writer.flush(FLUSH_TIMEOUT_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")


def printable(text: str) -> str:
    """Return the text on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if len(message) <= MESSAGE_CHARACTERS_MAX:
        return message
    return f"{message[:MESSAGE_CHARACTERS_MAX]}... ({len(message)} characters)"


def _entry_of(record: logging.LogRecord) -> LogEntry:
    exception = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
    trace, time_ns = getattr(record, "traceparent", None), round(record.created * 1e9)
    return LogEntry(time_ns, _level(record), record.name, _message(record), trace, exception)


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
