"""The options. Each option is declared once, in the class for the place where it is set.

class                 place
LinkOptions           a link's target_config; the provider's options with these names are the defaults
ProviderOptions       the provider's configuration; it includes the options in LinkOptions
StandaloneOptions     `keyvalue-inmemory serve`, instead of host data
WatchingLinkOptions   the source_config of a link to a watcher

A declaration gives an option's type, default and help text, and says whether a change takes effect at once. The tables
at the end of this module list the declared options. The command line, the sources, `config check` and the tables in
docs/operating.md use those tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keyvalue_engine import StoreOptions
from keyvalue_provider.config import values
from keyvalue_provider.config.declaration import OptionTable, option
from keyvalue_provider.config.link_options import (
    BE64,
    JETSTREAM,
    LATEST,
    LINK_OPTIONS,
    MEMORY,
    READ_ONLY,
    READ_WRITE,
    REPLICATED,
    STORE_DEFAULTS,
    LinkOptions,
)
from keyvalue_provider.config.values import OptionError, RedisUsers
from keyvalue_provider.config.watching_options import ENCODED, PLAIN, WATCHING_LINK_OPTIONS, WatchingLinkOptions
from keyvalue_provider.host.secret import Secret
from keyvalue_replica.options import ReplicaOptions
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.redis.limits import Address, ListenerLimits
from keyvalue_transport.wrpc.invocation import InvocationLimits

if TYPE_CHECKING:
    from keyvalue_transport.nats.tls import TlsOptions

__all__ = [
    "ATOMIC",
    "BE64",
    "ENCODED",
    "JETSTREAM",
    "LATEST",
    "LINK_OPTIONS",
    "LIVE_OPTIONS",
    "MEMORY",
    "OPTIONS",
    "PLAIN",
    "READ_ONLY",
    "READ_WRITE",
    "SERVE_OPTIONS",
    "STANDALONE_OPTIONS",
    "WATCHING_LINK_OPTIONS",
    "LinkOptions",
    "OptionError",
    "ProviderOptions",
    "StandaloneOptions",
    "WatchingLinkOptions",
]

INVOCATION_DEFAULTS = InvocationLimits()
LISTENER_DEFAULTS = ListenerLimits()
PARAMETER_DEFAULTS = ParameterLimits()

ATOMIC, PIPELINED = "atomic", "pipelined"
NONE, OLDEST, UNUSED = "none", "oldest", "unused"


@dataclass(frozen=True, slots=True)
class ProviderOptions(LinkOptions):
    """The provider's options. Those in LinkOptions are defaults for links, and apply to callers without a link."""

    store: str = option(
        values.one_of(MEMORY, JETSTREAM),
        "memory: in this process alone; jetstream: a NATS key-value bucket that several instances share",
        default=MEMORY,
    )
    snapshot_path: str | None = option(
        values.PATH,
        "file that holds the keys of a memory store while it does not run; with store=jetstream: a file to import once",
    )
    snapshot_interval_ms: int = option(
        values.MILLISECONDS,
        "milliseconds from one save to the file snapshot_path to the next",
        default=60_000,
        needs="snapshot_path",
    )
    jetstream_bucket: str | None = option(
        values.KV_BUCKET,
        "name of the NATS key-value bucket; if not set: the provider key, or the prefix with serve (keys=plain: no bucket)",
        needs=REPLICATED,
    )
    jetstream_storage: str = option(
        values.one_of("file", "memory"),
        "where a created KV bucket is kept by its servers",
        default="file",
        needs=REPLICATED,
    )
    jetstream_replicas: int = option(
        values.REPLICAS, "number of servers that keep a created KV bucket, 1 to 5", default=1, needs=REPLICATED
    )
    jetstream_history: int = option(
        values.HISTORY,
        "number of changes of a key that a created KV bucket keeps, 1 to 64",
        default=64,
        needs=REPLICATED,
    )
    jetstream_bytes_max: int | None = option(values.BYTES, "maximum size of a created KV bucket", needs=REPLICATED)
    jetstream_create: bool = option(
        values.FLAG,
        "create the KV bucket if it does not exist, and switch on what it lacks",
        default=True,
        needs=REPLICATED,
    )
    jetstream_domain: str | None = option(values.KV_BUCKET, "JetStream domain of the KV bucket", needs=REPLICATED)
    jetstream_timeout_ms: int = option(
        values.MILLISECONDS, "milliseconds that a call waits for JetStream", default=5_000, needs=REPLICATED
    )
    jetstream_adopt: bool = option(
        values.FLAG,
        "with keys=plain: switch on what a KV bucket lacks that others have created",
        default=False,
        needs=REPLICATED,
    )
    open_buckets_max: int = option(
        values.COUNT, "with keys=plain: maximum open KV buckets", default=256, needs=REPLICATED
    )
    bucket_idle_ms: int = option(
        values.MILLISECONDS,
        "with keys=plain: milliseconds until a KV bucket that nobody uses is closed",
        default=600_000,
        needs=REPLICATED,
    )
    batch: str = option(
        values.one_of(ATOMIC, PIPELINED),
        "with store=jetstream: store set-many and delete-many all or nothing, or faster key by key",
        default=ATOMIC,
        needs=REPLICATED,
    )
    bucket_name_bytes_max: int = option(
        values.LENGTH, "maximum bytes in a bucket's name", default=STORE_DEFAULTS.bucket_name_bytes_max
    )
    batch_keys_max: int = option(
        values.COUNT,
        "maximum keys in one get-many, set-many or delete-many",
        default=PARAMETER_DEFAULTS.batch_keys_max,
        live=True,
    )
    answer_bytes_max: int = option(
        values.BYTES,
        "maximum bytes of keys and values in one get-many answer",
        default=PARAMETER_DEFAULTS.answer_bytes_max,
        live=True,
    )
    buckets_max: int = option(values.COUNT, "maximum buckets that hold a key", default=STORE_DEFAULTS.buckets_max)
    keys_max: int = option(
        values.COUNT,
        "maximum keys in all buckets together",
        default=STORE_DEFAULTS.keys_max,
    )
    memory_bytes_max: int | None = option(
        values.BYTES, "maximum memory of all keys and values, as the engine counts it"
    )
    eviction: str = option(
        values.one_of(NONE, OLDEST, UNUSED),
        "keys that give way when the store or a quota is full: none, the oldest, or those that were unused lately",
        default=STORE_DEFAULTS.eviction,
    )
    shards_min: int = option(
        values.SHARDS, "number of shards in a large bucket; a power of two", default=STORE_DEFAULTS.shards_min
    )
    require_link: bool = option(values.FLAG, "callers without a link get access-denied", default=False, live=True)
    restart_for_secrets: bool = option(
        values.FLAG,
        "exit with code 3, once, if a link was put with secrets while the provider started; the host restarts it",
        default=True,
    )
    outlive_host: bool = option(
        values.FLAG,
        "keep serving when the process that launched the provider ends; always true with serve",
        default=False,
    )
    watch_queue_events: int = option(
        values.COUNT,
        "maximum events waiting or in flight for a watcher; with store = memory, the oldest events are dropped",
        default=10_000,
    )
    watch_queue_bytes: int = option(
        values.BYTES,
        "maximum bytes of events waiting or in flight for a watcher; a larger event is dropped",
        default=64 * 1024 * 1024,
    )
    watch_timeout_ms: int = option(
        values.MILLISECONDS, "milliseconds to wait for a watcher's answer to an event", default=5_000
    )
    half_open_max: int = option(
        values.COUNT,
        "maximum invocations with incomplete parameters; a quarter for each caller",
        default=INVOCATION_DEFAULTS.half_open_max,
    )
    half_open_bytes_max: int = option(
        values.BYTES,
        "maximum memory held for invocations with incomplete parameters; a quarter for each caller",
        default=INVOCATION_DEFAULTS.half_open_bytes_max,
    )
    expected_bytes_max: int = option(
        values.BYTES,
        "maximum bytes that half-open invocations still expect; others wait for their handshake",
        default=INVOCATION_DEFAULTS.expected_bytes_max,
    )
    half_open_timeout_ms: int = option(
        values.MILLISECONDS,
        "milliseconds to wait for the next piece of an invocation's parameters, or for its handshake",
        default=round(INVOCATION_DEFAULTS.half_open_timeout_s * 1000),
    )
    in_flight_bytes_max: int = option(
        values.BYTES, "maximum memory of calls that wait for the store", default=INVOCATION_DEFAULTS.in_flight_bytes_max
    )
    transport: str = option(
        values.one_of("direct", "plain"),
        "direct: answer calls as their bytes arrive; plain: in nats-py's callbacks",
        default="direct",
    )
    tls_ca: str | None = option(
        values.PEM,
        "certificate authorities to trust: PEM file or text; makes TLS mandatory",
    )
    tls_certificate: str | None = option(
        values.PEM, "client certificate to present to the server: PEM file or text; makes TLS mandatory"
    )
    tls_key: Secret | None = option(  # noqa: RUF009 # `option` returns a field
        values.PEM_SECRET, "private key of the client certificate: PEM file or text"
    )
    redis_address: tuple[Address, ...] | None = option(
        values.REDIS_ADDRESSES,
        "HOST:PORT or path of a Unix socket for Redis clients, or several with commas; off unless set",
    )
    redis_password: Secret | None = option(  # noqa: RUF009 # `option` returns a field
        values.SECRET,
        "password of Redis clients; needed unless each address is loopback or a Unix socket",
        needs="redis_address",
    )
    redis_users: RedisUsers | None = option(  # noqa: RUF009 # `option` returns a field
        values.REDIS_USERS,
        'Redis users, as JSON: {"NAME": {"password": "...", "access": "read-only"}}, with the options of links',
        needs="redis_address",
    )
    redis_buckets: tuple[bytes, ...] | None = option(
        values.DATABASES,
        "bucket of each Redis database from 0, with commas; if not set: default, 1, 2 to 15",
        needs="redis_address",
    )
    redis_socket_mode: int = option(
        values.MODE, "permissions of Unix sockets for Redis, in octal", default=0o600, needs="redis_address"
    )
    redis_tls_certificate: str | None = option(
        values.PEM, "certificate for Redis clients: PEM file or text; makes TLS mandatory on TCP", needs="redis_address"
    )
    redis_tls_key: Secret | None = option(  # noqa: RUF009 # `option` returns a field
        values.PEM_SECRET, "private key of redis_tls_certificate: PEM file or text", needs="redis_address"
    )
    redis_tls_ca: str | None = option(
        values.PEM,
        "certificate authorities of Redis clients, which must then present a certificate",
        needs="redis_address",
    )
    redis_connections_max: int = option(
        values.COUNT, "maximum Redis connections", default=LISTENER_DEFAULTS.connections_max, needs="redis_address"
    )
    redis_request_bytes_max: int = option(
        values.BYTES,
        "maximum bytes of one Redis request",
        default=LISTENER_DEFAULTS.request_bytes_max,
        needs="redis_address",
    )
    redis_held_bytes_max: int = option(
        values.BYTES,
        "maximum bytes of Redis requests that are incomplete or wait, on all connections together",
        default=LISTENER_DEFAULTS.held_bytes_max,
        needs="redis_address",
    )
    redis_unsent_bytes_max: int = option(
        values.BYTES,
        "maximum bytes of answers that Redis clients do not read, on all connections together",
        default=LISTENER_DEFAULTS.unsent_bytes_max,
        needs="redis_address",
    )
    redis_idle_timeout_ms: int | None = option(
        values.MILLISECONDS,
        "milliseconds until an idle Redis connection is closed; if not set: never",
        needs="redis_address",
    )
    redis_flush: bool = option(values.FLAG, "allow FLUSHDB", default=False, needs="redis_address")
    metrics_address: str | None = option(values.ADDRESS, "HOST:PORT for /metrics, /livez and /readyz; off unless set")
    log_level: str | None = option(
        values.LOG_LEVEL,
        "trace, debug, info, warn or error; if not set: from host data, or info",
        live=True,
    )
    structured_logging: bool | None = option(
        values.FLAG, "write the log as JSON; if not set: from host data, or false", live=True
    )
    connect_timeout_ms: int = option(
        values.MILLISECONDS,
        "milliseconds to reach NATS at startup, for all attempts together",
        default=10_000,
    )
    stop_timeout_ms: int = option(
        values.MILLISECONDS,
        "milliseconds to answer calls in flight after a signal to stop",
        default=5_000,
    )

    @classmethod
    def of_store(cls, store: StoreOptions) -> ProviderOptions:
        """Return options with the same limits as a store."""
        return cls(
            strict_buckets=store.strict_buckets,
            page_keys=store.page_keys_max,
            page_bytes=store.page_bytes_max,
            key_bytes_max=store.key_bytes_max,
            value_bytes_max=store.value_bytes_max,
        )

    def store_options(self) -> StoreOptions:
        """Return the options for the engine's store."""
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
            eviction=self.eviction,
        )

    def invocation_limits(self) -> InvocationLimits:
        """Return the transport's limits for invocations."""
        return InvocationLimits(
            half_open_max=self.half_open_max,
            half_open_bytes_max=self.half_open_bytes_max,
            half_open_timeout_s=self.half_open_timeout_ms / 1000,
            expected_bytes_max=self.expected_bytes_max,
            in_flight_bytes_max=self.in_flight_bytes_max,
        )

    def listener_limits(self) -> ListenerLimits:
        """Return the limits of the Redis listener."""
        return ListenerLimits(
            connections_max=self.redis_connections_max,
            request_bytes_max=self.redis_request_bytes_max,
            held_bytes_max=self.redis_held_bytes_max,
            unsent_bytes_max=self.redis_unsent_bytes_max,
            idle_timeout_s=(self.redis_idle_timeout_ms or 0) / 1000,
        )

    def replica_options(self, bucket: str) -> ReplicaOptions:
        """Return the options of the replicated store.

        :param bucket: the name of the KV bucket if no option sets it
        """
        return ReplicaOptions(
            bucket=self.jetstream_bucket or bucket,
            storage=self.jetstream_storage,
            replicas=self.jetstream_replicas,
            history=self.jetstream_history,
            bytes_max=self.jetstream_bytes_max,
            creates=self.jetstream_create,
            adopts=self.jetstream_adopt,
            domain=self.jetstream_domain or "",
            timeout_s=self.jetstream_timeout_ms / 1000,
            is_atomic=self.batch == ATOMIC,
        )

    def tls_options(self) -> TlsOptions | None:
        """Return the TLS options, or None if none is set."""
        if self.tls_ca is None and self.tls_certificate is None and self.tls_key is None:
            return None
        from keyvalue_transport.nats.tls import TlsOptions  # here, because importing ssl would slow down `--help`

        return TlsOptions(
            ca=self.tls_ca or "",
            certificate=self.tls_certificate or "",
            key="" if self.tls_key is None else self.tls_key.reveal(),
        )

    @property
    def has_encoded_keys(self) -> bool:
        """Return True if the replicated store has a KV bucket with encoded names: by default, or because it is named."""
        return self.keys == ENCODED or self.jetstream_bucket is not None

    def conflict(self) -> str:
        """Return why the options can't be used together, or an empty string."""
        if self.store == JETSTREAM and self.eviction != NONE:
            return f"eviction={self.eviction} needs store=memory; with store=jetstream, set eviction=none"
        if self.store == JETSTREAM and self.keys == PLAIN and self.snapshot_path is not None:
            return "snapshot_path needs keys=encoded, because a snapshot can't be imported into KV buckets of others"
        return ""

    def changed(self, other: ProviderOptions) -> list[str]:
        """Return the names of the options whose values differ in `other`."""
        return [name for name in OPTIONS if getattr(self, name) != getattr(other, name)]

    def with_live_options(self, other: ProviderOptions) -> ProviderOptions:
        """Return a copy with the values of `other` for the options in LIVE_OPTIONS."""
        return replace(self, **{name: getattr(other, name) for name in LIVE_OPTIONS})


@dataclass(frozen=True, slots=True)
class StandaloneOptions:
    """Options for a provider without a host. They replace host data."""

    nats: str = option(
        values.NATS_URLS,
        "NATS servers, separated by commas: HOST:PORT, nats://USER:PASSWORD@HOST:PORT, tls://HOST",
        default="127.0.0.1:4222",
    )
    prefix: str = option(
        values.SUBJECT_PREFIX,
        "prefix of the callers' subjects: {lattice}.{provider key}",
        default="default.keyvalue-inmemory",
    )
    credentials: str | None = option(values.USER_FILE, "file with the user's JWT and seed, as `nsc` writes it")
    nkey: str | None = option(values.USER_FILE, "file with the seed of an nkey user")
    allow_split: bool = option(
        values.FLAG, "start even if another instance serves the prefix with other keys", default=False
    )


OPTIONS = OptionTable(ProviderOptions)
STANDALONE_OPTIONS = OptionTable(StandaloneOptions)
#: The options of `keyvalue-inmemory serve`.
SERVE_OPTIONS = OptionTable(StandaloneOptions, ProviderOptions)

#: Names of the options whose changes take effect at once. Changes to other options take effect at the next start.
LIVE_OPTIONS = frozenset(name for name, option in OPTIONS.items() if option.is_live)
