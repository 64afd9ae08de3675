"""What can be set: the provider's options, from the `config` of its host data. One table, OPTIONS; docs/operating.md shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from engine import StoreOptions
from transport.invocation import InvocationLimits

__all__ = ["OPTIONS", "Option", "OptionError", "ProviderOptions", "split_address"]


STORE_DEFAULTS = StoreOptions()
INVOCATION_DEFAULTS = InvocationLimits()


class OptionError(ValueError):
    """A known option with a value that it does not take; the message names it, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """Options of the provider. OPTIONS says what each is, and how it is written in a configuration."""

    strict_buckets: bool = False
    page_keys: int = STORE_DEFAULTS.page_keys_max
    page_bytes: int = STORE_DEFAULTS.page_bytes_max
    bucket_name_bytes_max: int = STORE_DEFAULTS.bucket_name_bytes_max
    key_bytes_max: int = STORE_DEFAULTS.key_bytes_max
    value_bytes_max: int = STORE_DEFAULTS.value_bytes_max
    buckets_max: int = STORE_DEFAULTS.buckets_max
    keys_max: int = STORE_DEFAULTS.keys_max
    memory_bytes_max: int | None = None
    shards_min: int = STORE_DEFAULTS.shards_min
    half_open_max: int = INVOCATION_DEFAULTS.half_open_max
    half_open_bytes_max: int = INVOCATION_DEFAULTS.half_open_bytes_max
    half_open_timeout_ms: int = round(INVOCATION_DEFAULTS.half_open_timeout_s * 1000)
    transport: str = "direct"
    metrics_address: str | None = None
    connect_timeout_ms: int = 10_000
    stop_timeout_ms: int = 5_000

    @classmethod
    def from_config(cls, config: Mapping[str, str]) -> tuple[ProviderOptions, list[str]]:
        """The options that a configuration sets over the defaults, and the names in it that are no options.

        :raises OptionError: a known option has a value that it does not take
        """
        known: dict[str, Any] = {}
        unknown = []
        for name, text in config.items():
            option = OPTIONS.get(name)
            if option is None:
                unknown.append(name)
            else:
                known[name] = option.parse(name, text)
        options = cls(**known)
        try:
            options.store_options()
        except ValueError as error:
            raise OptionError(str(error)) from None
        return options, unknown

    def store_options(self) -> StoreOptions:
        """What of this is the engine's."""
        return StoreOptions(
            key_bytes_max=self.key_bytes_max,
            value_bytes_max=self.value_bytes_max,
            bucket_name_bytes_max=self.bucket_name_bytes_max,
            buckets_max=self.buckets_max,
            keys_max=self.keys_max,
            memory_bytes_max=self.memory_bytes_max,
            page_keys_max=self.page_keys,
            page_bytes_max=self.page_bytes,
            shards_min=self.shards_min,
            strict_buckets=self.strict_buckets,
        )

    def invocation_limits(self) -> InvocationLimits:
        """What of this is the transport's."""
        return InvocationLimits(
            half_open_max=self.half_open_max,
            half_open_bytes_max=self.half_open_bytes_max,
            half_open_timeout_s=self.half_open_timeout_ms / 1000,
        )

    def changed(self, other: ProviderOptions) -> list[str]:
        """Names of the options that `other` has another value for."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


class Option(NamedTuple):
    """How an option is read, and what it does."""

    parse: Callable[[str, str], Any]
    what: str


def split_address(text: str) -> tuple[str, int]:
    """Host and port from HOST:PORT; a port alone is one of the loopback address.

    >>> split_address("9464")
    ('127.0.0.1', 9464)

    :raises ValueError: it is neither
    """
    host, _, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(f"found {text[:64]!r}, allowed HOST:PORT, with a port from 0 to 65535")
    return host.strip("[]") or "127.0.0.1", int(port)


def _flag(name: str, text: str) -> bool:
    match text.strip().lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise OptionError(f"{name}: found {text[:64]!r}, allowed true or false")


def _number(name: str, text: str) -> int:
    digits = text.strip().replace("_", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0):
        raise OptionError(f"{name}: found {text[:64]!r}, allowed a whole number from 1")
    return int(digits)


def _path(name: str, text: str) -> str:
    if text in ("direct", "plain"):
        return text
    raise OptionError(f"{name}: found {text[:64]!r}, allowed direct or plain")


def _address(name: str, text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from None
    return text


OPTIONS: Mapping[str, Option] = {
    "strict_buckets": Option(_flag, "get, exists and delete on a bucket that was never written give no-such-store"),
    "page_keys": Option(_number, "keys of one list-keys answer"),
    "page_bytes": Option(_number, "bytes of one list-keys answer; the default fits one NATS message of 1 MiB"),
    "bucket_name_bytes_max": Option(_number, "bytes of a bucket's name"),
    "key_bytes_max": Option(_number, "bytes of a key"),
    "value_bytes_max": Option(_number, "bytes of a value"),
    "buckets_max": Option(_number, "buckets that hold a key"),
    "keys_max": Option(_number, "keys in all buckets together"),
    "memory_bytes_max": Option(_number, "memory of all keys and values by the engine's formula; unlimited unless set"),
    "shards_min": Option(_number, "shards of a bucket once it is large, a power of two"),
    "half_open_max": Option(_number, "invocations whose parameters are not whole yet"),
    "half_open_bytes_max": Option(_number, "bytes held for them"),
    "half_open_timeout_ms": Option(_number, "milliseconds without a further piece after which they are ended"),
    "transport": Option(
        _path, "direct: invocations are answered where their bytes arrive; plain: by nats-py's callbacks"
    ),
    "metrics_address": Option(_address, "HOST:PORT for /metrics, /livez and /readyz; off unless set"),
    "connect_timeout_ms": Option(_number, "milliseconds for reaching NATS at the start, all attempts together"),
    "stop_timeout_ms": Option(_number, "milliseconds for answering what is in flight at SIGTERM or SIGINT"),
}
