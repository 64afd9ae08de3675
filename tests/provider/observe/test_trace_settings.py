"""Where the settings of tracing come from, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from keyvalue_provider.observe.trace_settings import GRPC, HTTP, TraceSettings, trace_settings
from tests.conftest import HOST_CAPTURE

ON: dict[str, Any] = {"enable_observability": True}
PREFIX = "OTEL_EXPORTER_OTLP_"
ENDPOINT = {f"{PREFIX}ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("config", "environment", "is_on"),
    [
        ({}, {}, False),
        (HOST_CAPTURE["host_data"]["otel_config"], {}, False),
        (ON, {}, True),
        (ON | {"enable_traces": False}, {}, False),
        (ON | {"enable_traces": None}, {}, True),
        ({"enable_observability": False, "enable_traces": True}, {}, True),
        ({"enable_observability": False}, ENDPOINT, False),
        ({"protocol": "Http"}, ENDPOINT, True),
        ({}, {f"{PREFIX}TRACES_ENDPOINT": "http://collector/v1/traces"}, True),
        ({}, {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({}, {"OTEL_TRACES_EXPORTER": ""}, False),
        (ON, ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ON, ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, False),
        (ON, {"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_the_host_decides_and_then_the_variables(
    config: Mapping[str, Any], environment: Mapping[str, str], is_on: bool
) -> None:
    assert (trace_settings(config, environment) is not None) is is_on


@pytest.mark.parametrize(
    ("config", "environment", "protocol", "endpoint"),
    [
        ({}, {}, HTTP, None),
        ({"protocol": "Http"}, {f"{PREFIX}PROTOCOL": "grpc"}, HTTP, None),
        ({"protocol": "grpc"}, {}, GRPC, None),
        ({}, {f"{PREFIX}PROTOCOL": "grpc"}, GRPC, None),
        ({}, {f"{PREFIX}PROTOCOL": "grpc", f"{PREFIX}TRACES_PROTOCOL": "http/protobuf"}, HTTP, None),
        ({"observability_endpoint": "http://c:4318"}, ENDPOINT, HTTP, "http://c:4318/v1/traces"),
        ({"observability_endpoint": "http://c:4318/"}, {}, HTTP, "http://c:4318/v1/traces"),
        ({"observability_endpoint": "https://c/own/path"}, {}, HTTP, "https://c/own/path"),
        ({"observability_endpoint": "http://c:4317/own/path?q", "protocol": "Grpc"}, {}, GRPC, "http://c:4317"),
        ({"observability_endpoint": "http://c", "traces_endpoint": "http://d/t/"}, {}, HTTP, "http://d/t/"),
        ({"traces_endpoint": "http://[::1]:4317", "protocol": "Grpc"}, {}, GRPC, "http://[::1]:4317"),
    ],
)
def test_the_endpoint_is_the_one_that_a_host_resolves(
    config: Mapping[str, Any], environment: Mapping[str, str], protocol: str, endpoint: str | None
) -> None:
    settings = trace_settings({**ON, **config}, environment)
    assert settings is not None
    assert (settings.protocol, settings.endpoint) == (protocol, endpoint)


def test_limits_are_those_of_the_batch_processor() -> None:
    assert trace_settings(ON, {}) == TraceSettings(HTTP, None, 2048, 512, 5.0)
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    assert trace_settings(ON, limits) == TraceSettings(HTTP, None, 100, 100, 0.05)
    assert trace_settings(ON, limits | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7"}) == TraceSettings(
        HTTP, None, 100, 7, 0.05
    )


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ({"enable_traces": "yes"}, {}, "otel_config.enable_traces: found a string, expected a boolean"),
        ({"protocol": "udp"}, {}, "otel_config.protocol: found 'udp', allowed http, http/protobuf, grpc"),
        ({}, {f"{PREFIX}PROTOCOL": "http/json"}, f"{PREFIX}PROTOCOL: found 'http/json'"),
        ({}, {"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: found 'zipkin', allowed otlp, none"),
        ({}, {"OTEL_BSP_SCHEDULE_DELAY": "0"}, "OTEL_BSP_SCHEDULE_DELAY: found '0', allowed 1 to 3600000"),
        ({}, {"OTEL_BSP_MAX_QUEUE_SIZE": "9" * 5000}, "OTEL_BSP_MAX_QUEUE_SIZE: found '99"),
        *(
            ({name: url}, {}, f"otel_config.{name}: expected a URL like http://127.0.0.1:4318")
            for name in ("traces_endpoint", "observability_endpoint")
            for url in ("collector:4318", "ftp://u:secret@c", "http://", "http://u:secret@c:port", "http://[")
        ),
    ],
)
def test_a_wrong_setting_is_named_and_no_url_is_shown(
    config: Mapping[str, Any], environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ValueError) as raised:
        trace_settings({**ON, **config}, environment)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


def test_the_shown_place_holds_no_password() -> None:
    assert TraceSettings(HTTP, "http://user:secret@collector:4318/v1/traces").place == "collector:4318"
    assert TraceSettings().place == "the collector of the OTEL_* variables"
