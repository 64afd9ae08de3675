"""Where the settings of what is exported come from, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from keyvalue_provider.observe.export_settings import (
    GRPC,
    HTTP,
    LOGS,
    TRACES,
    ExportSettings,
    TlsFiles,
    export_settings,
)
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
    assert (export_settings(TRACES, config, environment) is not None) is is_on


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
    settings = export_settings(TRACES, {**ON, **config}, environment)
    assert settings is not None
    assert (settings.protocol, settings.endpoint) == (protocol, endpoint)


def test_limits_are_those_of_the_batch_processor() -> None:
    assert export_settings(TRACES, ON, {}) == ExportSettings(HTTP, None, 2048, 512, 5.0)
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    assert export_settings(TRACES, ON, limits) == ExportSettings(HTTP, None, 100, 100, 0.05)
    assert export_settings(TRACES, ON, limits | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7"}) == ExportSettings(
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
        export_settings(TRACES, {**ON, **config}, environment)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


def test_the_shown_place_holds_no_password() -> None:
    assert ExportSettings(HTTP, "http://user:secret@collector:4318/v1/traces").place == "collector:4318"
    assert ExportSettings().place == "the collector of the OTEL_* variables"


def test_each_signal_has_its_own_settings() -> None:
    config = ON | {"observability_endpoint": "http://c:4318", "logs_endpoint": "http://d/l", "enable_traces": False}
    assert export_settings(TRACES, config, {}) is None
    assert export_settings(LOGS, config, {}) == ExportSettings(HTTP, "http://d/l", 2048, 512, 1.0)
    variables = {
        f"{PREFIX}ENDPOINT": "http://c",
        f"{PREFIX}LOGS_PROTOCOL": "grpc",
        f"{PREFIX}LOGS_CERTIFICATE": "own",
        f"{PREFIX}CERTIFICATE": "shared",
        f"{PREFIX}CLIENT_KEY": "key",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "7",
        "OTEL_BSP_SCHEDULE_DELAY": "8",
    }
    logs = ExportSettings(GRPC, None, 7, 7, 1.0, tls=TlsFiles("own", "key"))
    assert export_settings(LOGS, {}, variables) == logs
    assert export_settings(TRACES, {}, variables) == ExportSettings(delay_s=0.008, tls=TlsFiles("shared", "key"))
    assert export_settings(TRACES, {}, variables | {"OTEL_TRACES_EXPORTER": "none"}) is None
    assert export_settings(LOGS, {}, variables | {"OTEL_TRACES_EXPORTER": "none"}) == logs


def test_the_files_of_additional_authorities_are_read_and_checked(tmp_path: Path) -> None:
    files = [tmp_path / "a.pem", tmp_path / "b.pem"]
    for file in files:
        trustme.CA().cert_pem.write_to_path(str(file))
    config = ON | {"additional_ca_paths": [str(file) for file in files]}
    settings = export_settings(LOGS, config, {})
    assert settings is not None
    assert settings.authorities.count("BEGIN CERTIFICATE") == 2
    missing, wrong = tmp_path / "missing.pem", tmp_path / "wrong.pem"
    wrong.write_text("-----BEGIN CERTIFICATE-----\nsecret")
    for path, reason in (
        (missing, "No such file or directory"),
        (wrong, "the file holds no certificate, or a malformed"),
    ):
        with pytest.raises(ValueError) as raised:
            export_settings(LOGS, ON | {"additional_ca_paths": [str(files[0]), str(path)]}, {})
        assert str(raised.value).startswith(f"otel_config.additional_ca_paths[1]: {path}: {reason}")
        assert "secret" not in str(raised.value)
