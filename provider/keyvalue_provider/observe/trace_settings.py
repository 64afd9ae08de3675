"""The settings of tracing, from the host's `otel_config` and from OTEL_* variables.

The host decides if there are traces, and names the collector. Without such a choice, the variables decide. Variables
that are not read here (headers, timeouts, certificates, compression, resource attributes) are read by OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from keyvalue_provider.host.json_fields import Fields

__all__ = ["GRPC", "HTTP", "TraceSettings", "trace_settings"]

HTTP, GRPC = "http", "grpc"
PROTOCOLS = {"http": HTTP, "http/protobuf": HTTP, "grpc": GRPC}
TRACES_PATH = "/v1/traces"
PREFIX = "OTEL_EXPORTER_OTLP_"
#: The limits of OpenTelemetry's batch processor: the variable, its default and its maximum.
QUEUE = "OTEL_BSP_MAX_QUEUE_SIZE", 2048, 65_536
BATCH = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 65_536
DELAY_MS = "OTEL_BSP_SCHEDULE_DELAY", 5000, 3_600_000


class TraceSettings(NamedTuple):
    """The settings of tracing that is on.

    :ivar protocol: HTTP or GRPC
    :ivar endpoint: the collector's URL, or None for the one in the variables, or the default of OpenTelemetry
    :ivar queue_max: the maximum number of calls that wait for their export; further ones are dropped
    :ivar batch_max: the maximum number of spans in an export
    """

    protocol: str = HTTP
    endpoint: str | None = None
    queue_max: int = QUEUE[1]
    batch_max: int = BATCH[1]
    delay_s: float = DELAY_MS[1] / 1000

    @property
    def place(self) -> str:
        """Return the collector's host and port for the log. A URL may contain a password."""
        if self.endpoint is None:
            return "the collector of the OTEL_* variables"
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]


def trace_settings(otel_config: Mapping[str, Any], environment: Mapping[str, str]) -> TraceSettings | None:
    """Return the settings, or None if calls are not traced.

    :raises ValueError: a setting is wrong; the message names it
    """
    config = Fields(dict(otel_config), "otel_config.")
    if not _is_on(config, environment):
        return None
    protocol = _protocol(config, environment)
    queue_max = _number(environment, *QUEUE)
    return TraceSettings(
        protocol,
        _endpoint(config, protocol),
        queue_max,
        min(queue_max, _number(environment, *BATCH)),
        _number(environment, *DELAY_MS) / 1000,
    )


def _is_on(config: Fields, environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        raise ValueError(f"OTEL_TRACES_EXPORTER: found {exporter[:32]!r}, allowed otlp, none")
    if exporter == "none":
        return False
    if "enable_traces" in config:
        return config.flag("enable_traces")
    if "enable_observability" in config:
        return config.flag("enable_observability")
    return bool(exporter or environment.get(f"{PREFIX}ENDPOINT") or environment.get(f"{PREFIX}TRACES_ENDPOINT"))


def _protocol(config: Fields, environment: Mapping[str, str]) -> str:
    named = {
        "otel_config.protocol": config.text("protocol"),
        f"{PREFIX}TRACES_PROTOCOL": environment.get(f"{PREFIX}TRACES_PROTOCOL", ""),
        f"{PREFIX}PROTOCOL": environment.get(f"{PREFIX}PROTOCOL", ""),
    }
    for name, value in named.items():
        if value:
            protocol = PROTOCOLS.get(value.strip().lower())
            if protocol is None:
                raise ValueError(f"{name}: found {value[:32]!r}, allowed {', '.join(PROTOCOLS)}")
            return protocol
    return HTTP


def _endpoint(config: Fields, protocol: str) -> str | None:
    """Return the URL as a wasmCloud host resolves it: a URL for all signals has no path for the signal."""
    own, shared = config.text("traces_endpoint"), config.text("observability_endpoint")
    if own:
        _split(own, "traces_endpoint")
        return own
    if not shared:
        return None
    parts = _split(shared, "observability_endpoint")
    if protocol == GRPC:
        return f"{parts.scheme}://{parts.netloc}"
    return f"{shared.rstrip('/')}{TRACES_PATH}" if parts.path in ("", "/") else shared


def _split(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        has_host = parts.hostname is not None and parts.port != 0  # `port` raises an error for a malformed one
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        raise ValueError(f"otel_config.{name}: expected a URL like http://127.0.0.1:4318")  # it may contain a password
    return parts


def _number(environment: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(maximum)) and 1 <= int(text) <= maximum):
        raise ValueError(f"{name}: found {text[:32]!r}, allowed 1 to {maximum}")
    return int(text)
