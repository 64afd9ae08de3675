"""What can be set: the provider's options, a link's (from its `target_config`), and what a provider without a host is told besides.

A table each, OPTIONS, LINK_OPTIONS and STANDALONE_OPTIONS; docs/operating.md shows them. What a link does not set is as the provider's options
say. `keyvalue_provider.config.sources` says where options come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from keyvalue_engine import StoreOptions
from keyvalue_engine.options import LENGTH_MAX, SHARD_BITS_MAX, TTL_MS_MAX
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.observe.log import LEVELS
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.nats.urls import split_urls
from keyvalue_transport.wrpc.invocation import InvocationLimits
from keyvalue_transport.wrpc.subjects import check_subject

if TYPE_CHECKING:
    from keyvalue_transport.nats.tls import TlsOptions

__all__ = [
    "FLAGS",
    "LINK_OPTIONS",
    "LIVE_OPTIONS",
    "OPTIONS",
    "READ_ONLY",
    "READ_WRITE",
    "STANDALONE_OPTIONS",
    "LinkOptions",
    "Option",
    "OptionError",
    "ProviderOptions",
    "StandaloneOptions",
    "split_address",
]

STORE_DEFAULTS = StoreOptions()
INVOCATION_DEFAULTS = InvocationLimits()
PARAMETER_DEFAULTS = ParameterLimits()

READ_WRITE, READ_ONLY = "read-write", "read-only"

#: The most that the engine takes where it is neither a length nor a time.
NUMBER_MAX = 2**63 - 1
ADDRESS = "HOST:PORT, with a port from 0 to 65535"
#: Of a value that is not taken, so much is shown.
SHOWN_MAX = 64


class OptionError(ValueError):
    """A known option with a value that it does not take; the message names it, what was found and what is allowed.

    :ivar discreet: the message without the value, which in a link's configuration may be a secret
    """

    def __init__(self, message: str, discreet: str | None = None) -> None:
        super().__init__(message)
        self.discreet = message if discreet is None else discreet

    @classmethod
    def of(cls, name: str, text: str, allowed: str) -> OptionError:
        """For the text of an option."""
        return cls(
            f"{name}: found {text[:SHOWN_MAX]!r}, allowed {allowed}",
            f"{name}: found {len(text)} characters, allowed {allowed}",
        )


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """Options of the provider. OPTIONS says what each is, and how it is written in a configuration."""

    strict_buckets: bool = False
    page_keys: int = STORE_DEFAULTS.page_keys_max
    page_bytes: int = STORE_DEFAULTS.page_bytes_max
    bucket_name_bytes_max: int = STORE_DEFAULTS.bucket_name_bytes_max
    key_bytes_max: int = STORE_DEFAULTS.key_bytes_max
    value_bytes_max: int = STORE_DEFAULTS.value_bytes_max
    batch_keys_max: int = PARAMETER_DEFAULTS.batch_keys_max
    answer_bytes_max: int = PARAMETER_DEFAULTS.answer_bytes_max
    buckets_max: int = STORE_DEFAULTS.buckets_max
    keys_max: int = STORE_DEFAULTS.keys_max
    memory_bytes_max: int | None = None
    shards_min: int = STORE_DEFAULTS.shards_min
    require_link: bool = False
    bucket: bytes | None = None
    bucket_prefix: bytes | None = None
    buckets: frozenset[bytes] | None = None
    access: str = READ_WRITE
    bytes_max: int | None = None
    ttl_ms: int | None = None
    watch_queue_events: int = 10_000
    watch_queue_bytes: int = 64 * 1024 * 1024
    watch_timeout_ms: int = 5_000
    half_open_max: int = INVOCATION_DEFAULTS.half_open_max
    half_open_bytes_max: int = INVOCATION_DEFAULTS.half_open_bytes_max
    half_open_timeout_ms: int = round(INVOCATION_DEFAULTS.half_open_timeout_s * 1000)
    transport: str = "direct"
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: Secret | None = None
    metrics_address: str | None = None
    log_level: str | None = None
    structured_logging: bool | None = None
    connect_timeout_ms: int = 10_000
    stop_timeout_ms: int = 5_000

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

    def tls_options(self) -> TlsOptions | None:
        """What of this is for TLS; None where nothing is set."""
        if self.tls_ca is None and self.tls_certificate is None and self.tls_key is None:
            return None
        from keyvalue_transport.nats.tls import TlsOptions  # here: it brings ssl, for which `--help` need not wait

        return TlsOptions(
            ca=self.tls_ca or "",
            certificate=self.tls_certificate or "",
            key="" if self.tls_key is None else self.tls_key.reveal(),
        )

    def changed(self, other: ProviderOptions) -> list[str]:
        """Names of the options that `other` has another value for."""
        return [option.name for option in fields(self) if getattr(self, option.name) != getattr(other, option.name)]


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Options of a link, or of the callers without one. LINK_OPTIONS says what each is. None is what the store's options say, or no limit."""

    bucket: bytes | None = None
    bucket_prefix: bytes | None = None
    buckets: frozenset[bytes] | None = None
    strict_buckets: bool | None = None
    access: str = READ_WRITE
    page_keys: int | None = None
    page_bytes: int | None = None
    key_bytes_max: int | None = None
    value_bytes_max: int | None = None
    keys_max: int | None = None
    bytes_max: int | None = None
    ttl_ms: int | None = None

    @classmethod
    def from_config(cls, provider: ProviderOptions, config: Mapping[str, str]) -> tuple[LinkOptions, list[str]]:
        """The options that a link's target_config sets over those of the provider, and the names in it that are no options.

        :raises OptionError: a known option has a value that it does not take
        """
        known = {name: LINK_OPTIONS[name].parse(name, text) for name, text in config.items() if name in LINK_OPTIONS}
        defaults = {name: getattr(provider, name) for name in LINK_DEFAULTS}
        return cls(**(defaults | known)), [name for name in config if name not in LINK_OPTIONS]


@dataclass(frozen=True, slots=True)
class StandaloneOptions:
    """What host data would say, for a provider without a host. STANDALONE_OPTIONS says what each is."""

    nats: str = field(default="127.0.0.1:4222", repr=False)
    prefix: str = "default.keyvalue-inmemory"
    credentials: str | None = None
    nkey: str | None = None


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
    is_bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if is_bare or not (
        port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65_536 and host.isprintable()
    ):
        raise ValueError(f"found {text[:SHOWN_MAX]!r}, allowed {ADDRESS}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _flag(name: str, text: str) -> bool:
    match text.strip().lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise OptionError.of(name, text, "true or false")


def _number(name: str, text: str, number_max: int = NUMBER_MAX) -> int:
    digits = text.strip().replace("_", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0):
        raise OptionError.of(name, text, "a whole number from 1")
    if int(digits) > number_max:
        raise OptionError(
            f"{name}: found {int(digits)}, allowed 1 to {number_max}",
            f"{name}: found a number of {len(digits)} digits, allowed 1 to {number_max}",
        )
    return int(digits)


def _length(name: str, text: str) -> int:
    return _number(name, text, LENGTH_MAX)


def _shards(name: str, text: str) -> int:
    number = _number(name, text)
    if number > 1 << SHARD_BITS_MAX or number & (number - 1):
        allowed = f"allowed a power of two from 1 to {1 << SHARD_BITS_MAX}"
        raise OptionError(f"{name}: found {number}, {allowed}", f"{name}: found {len(text)} characters, {allowed}")
    return number


def _ttl(name: str, text: str) -> int:
    return _number(name, text, TTL_MS_MAX)


def _prefix(name: str, text: str) -> str:
    try:
        return check_subject(text.strip(), name)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _urls(name: str, text: str) -> str:
    try:
        split_urls(text)
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from None
    return text


def _path(name: str, text: str) -> str:
    if text in ("direct", "plain"):
        return text
    raise OptionError.of(name, text, "direct or plain")


def _level(name: str, text: str) -> str:
    level = text.strip().lower()
    if level in LEVELS:
        return level
    raise OptionError.of(name, text, "trace, debug, info, warn or error")


def _text(name: str, text: str) -> str:
    if text:
        return text
    raise OptionError.of(name, text, "some text")


def _secret(name: str, text: str) -> Secret:
    return Secret(_text(name, text))


def _access(name: str, text: str) -> str:
    access = text.strip().lower()
    if access in (READ_WRITE, READ_ONLY):
        return access
    raise OptionError.of(name, text, f"{READ_WRITE} or {READ_ONLY}")


def _bucket(name: str, text: str) -> bytes:
    if text:
        return _encoded(name, text)
    raise OptionError.of(name, text, "the name of a bucket")


def _buckets(name: str, text: str) -> frozenset[bytes]:
    buckets = frozenset(_encoded(name, bucket.strip()) for bucket in text.split(",") if bucket.strip())
    if buckets:  # a list that came out empty by mistake must not open all
        return buckets
    raise OptionError.of(name, text, "names of buckets with commas between")


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        raise OptionError.of(name, text, "text that can be encoded in UTF-8") from None


def _address(name: str, text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise OptionError(f"{name}: {error}", f"{name}: found {len(text)} characters, allowed {ADDRESS}") from None
    return text


#: What a link sets in its target_config. Where the provider has an option of the same name, that is the default, but for `keys_max`.
LINK_OPTIONS: Mapping[str, Option] = {
    "bucket": Option(_bucket, "the bucket that is used, whatever name the caller gives"),
    "bucket_prefix": Option(_encoded, "what is put before the caller's names of buckets; of no effect with `bucket`"),
    "buckets": Option(_buckets, "names that the caller may give, with commas between; others give no-such-store"),
    "strict_buckets": Option(_flag, "get, exists and delete on a bucket that was never written give no-such-store"),
    "access": Option(_access, "read-write, or read-only: what would write gives access-denied"),
    "page_keys": Option(_number, "keys of one list-keys answer"),
    "page_bytes": Option(_number, "bytes of one list-keys answer; the default fits one NATS message of 1 MiB"),
    "key_bytes_max": Option(_length, "bytes of a key"),
    "value_bytes_max": Option(_length, "bytes of a value"),
    "keys_max": Option(
        _number, "quota: keys in the buckets that the link reaches, whoever wrote them; the provider's is no default"
    ),
    "bytes_max": Option(_number, "quota: memory of these keys and values by the engine's formula"),
    "ttl_ms": Option(_ttl, "milliseconds after which what is written expires; never unless set"),
}
#: Of these the default is an option of the provider that is for callers alone; of the other shared names, the store's own.
LINK_DEFAULTS = ("bucket", "bucket_prefix", "buckets", "access", "bytes_max", "ttl_ms")

#: What takes effect as soon as the configuration changes; the rest at the next start.
LIVE_OPTIONS = frozenset(
    {"require_link", "batch_keys_max", "answer_bytes_max", "log_level", "structured_logging", *LINK_DEFAULTS}
)

OPTIONS: Mapping[str, Option] = {
    "strict_buckets": LINK_OPTIONS["strict_buckets"],
    "page_keys": LINK_OPTIONS["page_keys"],
    "page_bytes": LINK_OPTIONS["page_bytes"],
    "bucket_name_bytes_max": Option(_length, "bytes of a bucket's name"),
    "key_bytes_max": LINK_OPTIONS["key_bytes_max"],
    "value_bytes_max": LINK_OPTIONS["value_bytes_max"],
    "batch_keys_max": Option(_number, "keys of one get-many, set-many or delete-many"),
    "answer_bytes_max": Option(_number, "bytes of keys and values of one get-many answer"),
    "buckets_max": Option(_number, "buckets that hold a key"),
    "keys_max": Option(_number, "keys in all buckets together, whoever wrote them; no default of a link's quota"),
    "memory_bytes_max": Option(_number, "memory of all keys and values by the engine's formula; unlimited unless set"),
    "shards_min": Option(_shards, "shards of a bucket once it is large, a power of two"),
    "require_link": Option(_flag, "callers without a link get access-denied"),
    **{name: LINK_OPTIONS[name] for name in LINK_DEFAULTS},
    "watch_queue_events": Option(_number, "events of one watcher that wait or are in flight; the oldest give way"),
    "watch_queue_bytes": Option(_number, "bytes of them; an event of more is dropped"),
    "watch_timeout_ms": Option(_number, "milliseconds for a watcher's answer to one event"),
    "half_open_max": Option(_number, "invocations whose parameters are not whole yet"),
    "half_open_bytes_max": Option(_number, "bytes held for them"),
    "half_open_timeout_ms": Option(_number, "milliseconds without a further piece after which they are ended"),
    "transport": Option(
        _path, "direct: invocations are answered where their bytes arrive; plain: by nats-py's callbacks"
    ),
    "tls_ca": Option(
        _text, "authorities that NATS' certificate is checked against: a PEM file, or its text; TLS is required then"
    ),
    "tls_certificate": Option(
        _text, "the certificate that NATS is shown: a PEM file, or its text; TLS is required then"
    ),
    "tls_key": Option(_secret, "its private key: a PEM file, or its text"),
    "metrics_address": Option(_address, "HOST:PORT for /metrics, /livez and /readyz; off unless set"),
    "log_level": Option(_level, "trace, debug, info, warn or error; unless set as the host data says, or info"),
    "structured_logging": Option(_flag, "true: the log is JSON; unless set as the host data says, or false"),
    "connect_timeout_ms": Option(_number, "milliseconds for reaching NATS at the start, all attempts together"),
    "stop_timeout_ms": Option(_number, "milliseconds for answering what is in flight at SIGTERM or SIGINT"),
}

#: What host data would say; for `keyvalue-inmemory serve` alone.
STANDALONE_OPTIONS: Mapping[str, Option] = {
    "nats": Option(
        _urls,
        "NATS servers with commas between: HOST:PORT, nats://USER:PASSWORD@HOST:PORT, nats://TOKEN@HOST, tls://HOST",
    ),
    "prefix": Option(_prefix, "subjects begin so: {lattice}.{provider key} of the callers"),
    "credentials": Option(_text, "a file with the user's JWT and seed, as `nsc` writes it"),
    "nkey": Option(_text, "a file with the seed of an nkey user"),
}

#: Options that are true or false.
FLAGS = frozenset(name for name, option in OPTIONS.items() if option.parse is _flag)
