"""The log: its two formats, its levels, one line per event."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator

import pytest

from keyvalue_provider.observe.log import (
    LEVELS,
    MESSAGE_CHARACTERS_MAX,
    PLACE_INTERVAL_S,
    PLACE_LINES_MAX,
    JsonFormatter,
    PlainFormatter,
    flush_log,
    set_up_log,
)

#: Everything that Python treats as the end of a line. JSON escapes only the first two.
LINE_ENDS = "[\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]"
MOMENT_S = 1_767_225_599.0049  # 2025-12-31T23:59:59.004Z


def record(
    message: str, *arguments: object, level: int = logging.INFO, error: BaseException | None = None
) -> logging.LogRecord:
    trace = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("provider", level, __file__, 1, message, arguments, trace)
    made.created = MOMENT_S
    made.msecs = 4.9
    return made


def raised() -> ZeroDivisionError:
    try:
        1 / 0  # noqa: B018 # for the traceback
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def test_a_plain_line() -> None:
    """Keep names in any script."""
    line = PlainFormatter().format(record("%d links: %s", 3, "ключ 键 \U0001f511"))
    assert line == "2025-12-31T23:59:59.004Z INFO provider: 3 links: ключ 键 \U0001f511"


def written(capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what was written to standard output and to standard error."""
    flush_log()
    return capfd.readouterr()


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_line_contains_the_callers_trace() -> None:
    traced = record("failed: %s", "why", level=logging.ERROR)
    traced.traceparent = TRACEPARENT
    line = "2025-12-31T23:59:59.004Z ERROR provider: failed: why"
    assert PlainFormatter().format(traced) == f"{line} (traceparent {TRACEPARENT})"
    traced = record("failed: %s", "why", level=logging.ERROR)
    traced.traceparent = f"{TRACEPARENT}\nforged"
    assert PlainFormatter().format(traced) == f"{line} (traceparent {TRACEPARENT}\\nforged)"
    fields = json.loads(JsonFormatter().format(traced))["fields"]
    assert fields == {"message": "failed: why", "traceparent": f"{TRACEPARENT}\nforged"}


@pytest.mark.parametrize("formatter", [PlainFormatter(), JsonFormatter()])
def test_a_line_has_a_limit(formatter: logging.Formatter) -> None:
    line = formatter.format(record("link put: %s", "x" * 1_000_000))
    assert len(line) < MESSAGE_CHARACTERS_MAX + 200
    assert "... (1000010 characters)" in line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("formatter", [PlainFormatter(), JsonFormatter()])
def test_a_name_cannot_begin_a_line(formatter: logging.Formatter, end: str) -> None:
    line = formatter.format(record("link put: %s", f"a{end}2026-01-01T00:00:00.000Z ERROR provider: forged"))
    assert len(re.split("[\r\n]" if isinstance(formatter, JsonFormatter) else LINE_ENDS, line)) == 1


def test_a_structured_line() -> None:
    assert json.loads(JsonFormatter().format(record('"%s"', "a\nb", level=logging.WARNING))) == {
        "timestamp": "2025-12-31T23:59:59.004Z",
        "level": "WARN",
        "target": "provider",
        "fields": {"message": '"a\nb"'},
    }


def test_tracebacks() -> None:
    """A plain line is followed by its traceback; a structured line contains it."""
    failed = record("failed", level=logging.ERROR, error=raised())
    lines = PlainFormatter().format(failed).splitlines()
    assert lines[0] == "2025-12-31T23:59:59.004Z ERROR provider: failed"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    line = JsonFormatter().format(failed)
    assert "\n" not in line
    assert json.loads(line)["fields"].keys() == {"message", "exception"}
    assert "ZeroDivisionError: division by zero" in json.loads(line)["fields"]["exception"]


def test_levels(root: logging.Logger) -> None:
    assert LEVELS.keys() == {"trace", "debug", "info", "warn", "warning", "error", "critical"}
    for name in (*LEVELS, "INFO"):
        set_up_log(name, structured=False)
        expected = {"trace": "DEBUG", "warn": "WARNING"}.get(name, name.upper())
        assert root.level == logging.getLevelName(expected), name


def test_it_goes_to_standard_error_once(root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    set_up_log("info", structured=True)
    set_up_log("info", structured=False)
    logging.getLogger("provider").info("said once")
    logging.getLogger("provider").debug("not said")
    out, err = written(capfd)
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO provider: said once\n", err)


@pytest.mark.parametrize("level", ["", "loud", "l" * 1000])
def test_an_unknown_level_is_info(root: logging.Logger, capfd: pytest.CaptureFixture[str], level: str) -> None:
    set_up_log(level, structured=False)
    assert root.level == logging.INFO
    err = written(capfd)[1]
    assert f"WARN root: log_level: found {level[:32]!r}, allowed trace, debug, info, warn," in err
    assert sys.stderr is not None


def test_asyncio_is_quiet_at_debug(root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    set_up_log("debug", structured=False)
    logging.getLogger("asyncio").debug("Using selector")
    logging.getLogger("keyvalue_transport.nats.server").debug("of ours")
    assert "Using selector" not in (err := written(capfd)[1])
    assert "of ours" in err


@pytest.fixture
def kept_root() -> Iterator[None]:
    """Keep the handlers and the level of the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("kept_root")
def test_each_place_in_the_code_has_a_limit(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A new configuration of the log does not reset the limits."""
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    log = logging.getLogger("limited")
    for moment_s, level in ((0.0, "info"), (1.0, "debug"), (PLACE_INTERVAL_S, "info")):
        now_s[0] = moment_s
        set_up_log(level, False)
        log.error("another place")
        for number in range(PLACE_LINES_MAX):
            log.warning("flood %d", number)
    lines = [line.rpartition(": ")[2] for line in written(capfd)[1].splitlines()]
    flood = [f"flood {number}" for number in range(PLACE_LINES_MAX)]
    more = f"flood 0 ({PLACE_LINES_MAX} more like it were not logged)"
    assert lines == ["another place", *flood, "another place", "another place", more, *flood[1:]]
