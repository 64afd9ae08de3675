"""The switches of the exports, and the lines that are exported. tests/integration/test_tracing.py exports to a collector."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.observe import exports as module
from keyvalue_provider.observe.export_queue import ExportQueue
from keyvalue_provider.observe.export_settings import GRPC, HTTP, LOGS, ExportSettings
from keyvalue_provider.observe.exports import Exports, exports_of
from keyvalue_provider.observe.log import LogEntry, set_up_log

ALL_ON = {"enable_observability": True}
METRICS = {
    f"wrpc_keyvalue_{entries}_{what}_total" for entries in ("spans", "log_records") for what in ("exported", "dropped")
}


def names(exports: Exports) -> set[str]:
    return {sample.name for family in exports.metrics() for sample in family.samples}


def metrics_of_exports() -> Iterable[Metric]:
    return of(ALL_ON).metrics()


def of(otel_config: Mapping[str, Any]) -> Exports:
    return exports_of(HostData(otel_config=dict(otel_config)), {})


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_each_signal_has_its_own_switch(protocol: str) -> None:
    assert names(of(ALL_ON | {"protocol": protocol})) == METRICS
    assert names(of(ALL_ON | {"enable_logs": False})) == {name for name in METRICS if "span" in name}
    assert of(ALL_ON | {"enable_traces": False}).tracer is None
    for nothing in (of({}), exports_of(None, {})):
        assert (nothing.tracer, names(nothing)) == (None, set())


def test_without_the_extra_one_line_for_each_signal_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    for find_spec in (missing, lambda name: None):
        monkeypatch.setattr(module, "find_spec", find_spec)
        assert names(of(ALL_ON)) == set()
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
        assert caplog.text.count("pip install 'keyvalue-inmemory[otel]'") == 2
        assert "calls are not traced, because" in caplog.text
        assert "the log is not exported, because" in caplog.text
        caplog.clear()
        assert names(exports_of(None, {})) == set()
        assert caplog.text == ""


def test_wrong_settings_are_logged_and_the_signal_is_not_exported(caplog: pytest.LogCaptureFixture) -> None:
    assert names(of({"enable_traces": 1, "enable_logs": True})) == METRICS - {
        "wrpc_keyvalue_spans_exported_total",
        "wrpc_keyvalue_spans_dropped_total",
    }
    assert "otel_config.enable_traces: found a number, expected a boolean; calls are not traced" in caplog.text


def test_lines_are_exported_as_they_are_written(root: logging.Logger) -> None:
    """With the level, the limit for each place and the fields of the JSON log. A queue never takes its own lines."""
    set_up_log("info", False)
    taken: list[LogEntry] = []

    class Queue(ExportQueue[LogEntry]):
        def add(self, entry: LogEntry) -> None:
            taken.append(entry)

    queue = Queue(LOGS, ExportSettings(), lambda: pytest.fail("nothing is exported here"))
    exports = Exports(None, queue)
    root.debug("below the level")
    logging.getLogger("place").warning("number %d", 1, extra={"traceparent": "00-1-2-01"})
    try:
        raise ValueError("why")
    except ValueError:
        root.exception("failed")
    assert [(entry.level, entry.target, entry.message, entry.traceparent) for entry in taken] == [
        ("WARN", "place", "number 1", "00-1-2-01"),
        ("ERROR", "root", "failed", None),
    ]
    assert taken[1].exception is not None
    assert taken[1].exception.endswith("ValueError: why")
    for _ in range(100):
        root.info("a flood")
    assert len(taken) == 2 + 20
    own = threading.Thread(target=root.error, args=("its own failure",))
    queue._thread = own
    own.start()
    own.join()
    exports.close(0.0)
    root.error("after the end")
    assert len(taken) == 2 + 20
