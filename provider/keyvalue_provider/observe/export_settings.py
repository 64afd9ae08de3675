"""The settings of what is exported by OTLP, from the host's `otel_config` and from OTEL_* variables.

The host decides if spans and the log are exported, and names the collector. Without such a choice, the variables
decide. Variables that are not read here (headers, timeouts, compression, resource attributes) are read by OpenTelemetry.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from keyvalue_provider.host.json_fields import Fields

__all__ = ["GRPC", "HTTP", "LOGS", "TRACES", "ExportSettings", "Signal", "TlsFiles", "export_settings"]

HTTP, GRPC = "http", "grpc"
PROTOCOLS = {"http": HTTP, "http/protobuf": HTTP, "grpc": GRPC}
PREFIX = "OTEL_EXPORTER_OTLP_"
#: The maximum of the limits of a queue, in entries, and of its delay in milliseconds.
ENTRIES_MAX, DELAY_MS_MAX = 65_536, 3_600_000
QUEUE_MAX, BATCH_MAX = 2048, 512


class Signal(NamedTuple):
    """A kind of data that OpenTelemetry exports.

    :ivar name: as in the names of fields and variables, and in the path of a URL
    :ivar entries: the word for its entries in the log
    :ivar limits: the start of the variables that limit its queue, as of OpenTelemetry's batch processors
    :ivar delay_ms: the default delay of a batch
    """

    name: str
    entries: str
    limits: str
    delay_ms: int


TRACES = Signal("traces", "spans", "OTEL_BSP", 5000)
LOGS = Signal("logs", "log records", "OTEL_BLRP", 1000)


class TlsFiles(NamedTuple):
    """The files that variables name, or empty strings."""

    certificate: str = ""
    client_key: str = ""
    client_certificate: str = ""


class ExportSettings(NamedTuple):
    """The settings of one signal that is exported.

    :ivar protocol: HTTP or GRPC
    :ivar endpoint: the collector's URL, or None for the one in the variables, or the default of OpenTelemetry
    :ivar queue_max: the maximum number of entries that wait for their export; further ones are dropped
    :ivar batch_max: the maximum number of entries in an export
    :ivar authorities: certificates that are trusted besides the usual ones, as PEM; empty for none
    """

    protocol: str = HTTP
    endpoint: str | None = None
    queue_max: int = QUEUE_MAX
    batch_max: int = BATCH_MAX
    delay_s: float = TRACES.delay_ms / 1000
    authorities: str = ""
    tls: TlsFiles = TlsFiles()

    @property
    def place(self) -> str:
        """Return the collector's host and port for the log. A URL may contain a password."""
        if self.endpoint is None:
            return "the collector of the OTEL_* variables"
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]


def export_settings(
    signal: Signal, otel_config: Mapping[str, Any], environment: Mapping[str, str]
) -> ExportSettings | None:
    """Return the settings of a signal, or None if it is not exported.

    :raises ValueError: a setting is wrong; the message names it
    """
    config = Fields(dict(otel_config), "otel_config.")
    if not _is_on(signal, config, environment):
        return None
    protocol = _protocol(signal, config, environment)
    queue_max = _number(environment, f"{signal.limits}_MAX_QUEUE_SIZE", QUEUE_MAX, ENTRIES_MAX)
    batch_max = _number(environment, f"{signal.limits}_MAX_EXPORT_BATCH_SIZE", BATCH_MAX, ENTRIES_MAX)
    delay_ms = _number(environment, f"{signal.limits}_SCHEDULE_DELAY", signal.delay_ms, DELAY_MS_MAX)
    return ExportSettings(
        protocol,
        _endpoint(signal, config, protocol),
        queue_max,
        min(queue_max, batch_max),
        delay_ms / 1000,
        _authorities(config),
        TlsFiles(
            *(_variable(signal, environment, name) for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"))
        ),
    )


def _variable(signal: Signal, environment: Mapping[str, str], name: str) -> str:
    """Return a variable of the exporter. The signal's own variable overrides that of all signals."""
    own, shared = (environment.get(f"{PREFIX}{part}{name}", "") for part in (f"{signal.name.upper()}_", ""))
    return own or shared


def _is_on(signal: Signal, config: Fields, environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    name = f"OTEL_{signal.name.upper()}_EXPORTER"
    exporter = environment.get(name, "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        raise ValueError(f"{name}: found {exporter[:32]!r}, allowed otlp, none")
    if exporter == "none":
        return False
    for field in (f"enable_{signal.name}", "enable_observability"):
        if field in config:
            return config.flag(field)
    return bool(exporter or _variable(signal, environment, "ENDPOINT"))


def _protocol(signal: Signal, config: Fields, environment: Mapping[str, str]) -> str:
    own = f"{PREFIX}{signal.name.upper()}_PROTOCOL"
    named = {
        "otel_config.protocol": config.text("protocol"),
        own: environment.get(own, ""),
        f"{PREFIX}PROTOCOL": environment.get(f"{PREFIX}PROTOCOL", ""),
    }
    for name, value in named.items():
        if value:
            protocol = PROTOCOLS.get(value.strip().lower())
            if protocol is None:
                raise ValueError(f"{name}: found {value[:32]!r}, allowed {', '.join(PROTOCOLS)}")
            return protocol
    return HTTP


def _endpoint(signal: Signal, config: Fields, protocol: str) -> str | None:
    """Return the URL as a wasmCloud host resolves it: a URL for all signals has no path for the signal."""
    name = f"{signal.name}_endpoint"
    own, shared = config.text(name), config.text("observability_endpoint")
    if own:
        _split(own, name)
        return own
    if not shared:
        return None
    parts = _split(shared, "observability_endpoint")
    if protocol == GRPC:
        return f"{parts.scheme}://{parts.netloc}"
    return f"{shared.rstrip('/')}/v1/{signal.name}" if parts.path in ("", "/") else shared


def _authorities(config: Fields) -> str:
    """Return the certificates in the files that the host names."""
    texts = []
    for number, path in enumerate(config.texts("additional_ca_paths")):
        name = f"otel_config.additional_ca_paths[{number}]: {path[:256]}"
        try:
            text = Path(path).read_text("ascii", "replace")
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except ssl.SSLError:
            raise ValueError(f"{name}: the file holds no certificate, or a malformed one") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        texts.append(text)
    return "\n".join(texts)


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
