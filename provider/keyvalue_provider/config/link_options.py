"""The options of a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from keyvalue_engine import StoreOptions
from keyvalue_provider.config import values
from keyvalue_provider.config.declaration import OptionTable, option
from keyvalue_provider.config.watching_options import ENCODED, PLAIN

__all__ = [
    "BE64",
    "JETSTREAM",
    "LATEST",
    "LINK_OPTIONS",
    "MEMORY",
    "READ_ONLY",
    "READ_WRITE",
    "REPLICATED",
    "STORE_DEFAULTS",
    "LinkOptions",
]

STORE_DEFAULTS = StoreOptions()

READ_WRITE, READ_ONLY = "read-write", "read-only"
MEMORY, JETSTREAM = "memory", "jetstream"
LATEST, LOCAL = "latest", "local"
TEXT, BE64 = "text", "be64"
#: The need of each option of the replicated store.
REPLICATED = f"store={JETSTREAM}"


class Defaults(Protocol):
    """The provider's options, which are the defaults of a link's."""

    @property
    def store(self) -> str:
        """Return the provider's store."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Options that decide what a caller may do.

    They come from the caller's link, or from the provider if the caller has no link.
    """

    bucket: bytes | None = option(values.BUCKET_NAME, "use this bucket, whatever name the caller gives", live=True)
    bucket_prefix: bytes | None = option(
        values.ENCODED_TEXT, "prefix of the caller's bucket names; ignored if `bucket` is set", live=True
    )
    buckets: frozenset[bytes] | None = option(
        values.BUCKET_NAMES,
        "allowed bucket names, separated by commas; calls with other names get no-such-store",
        live=True,
    )
    strict_buckets: bool = option(
        values.FLAG,
        "get, exists, delete, get-many, delete-many: no-such-store for a bucket that was never written",
        default=STORE_DEFAULTS.strict_buckets,
    )
    access: str = option(
        values.one_of(READ_WRITE, READ_ONLY),
        "read-write or read-only; if read-only, writes get access-denied",
        default=READ_WRITE,
        live=True,
    )
    page_keys: int = option(values.COUNT, "maximum keys in one list-keys answer", default=STORE_DEFAULTS.page_keys_max)
    page_bytes: int = option(
        values.BYTES,
        "maximum bytes in one list-keys answer; the default fits 1 MiB messages",
        default=STORE_DEFAULTS.page_bytes_max,
    )
    key_bytes_max: int = option(values.LENGTH, "maximum bytes in a key", default=STORE_DEFAULTS.key_bytes_max)
    value_bytes_max: int = option(values.LENGTH, "maximum bytes in a value", default=STORE_DEFAULTS.value_bytes_max)
    quota_keys: int | None = option(
        values.COUNT,
        "quota: maximum keys in the link's buckets, including keys from other writers",
        live=True,
        old_name="keys_max",
    )
    quota_bytes: int | None = option(
        values.BYTES,
        "quota: maximum bytes of memory for the link's buckets, including keys from other writers",
        live=True,
        old_name="bytes_max",
    )
    ttl_ms: int | None = option(values.TTL, "milliseconds until a written key expires", live=True)
    reads: str = option(
        values.one_of(LATEST, LOCAL),
        "with store=jetstream: latest shows every acknowledged change, local what has arrived at this instance",
        default=LATEST,
        live=True,
        needs=REPLICATED,
    )
    keys: str = option(
        values.one_of(ENCODED, PLAIN),
        "with store=jetstream: encoded puts all buckets into jetstream_bucket; plain makes each bucket a KV bucket",
        default=ENCODED,
        needs=REPLICATED,
    )
    counter: str = option(
        values.one_of(TEXT, BE64),
        "with store=jetstream: counters are decimal text, or 8 bytes as hosts of wasmCloud 2.x store them",
        default=TEXT,
        live=True,
        needs=REPLICATED,
    )
    enable_bucket_auto_create: bool = option(
        values.FLAG,
        "with keys=plain: create a KV bucket that does not exist",
        default=False,
        live=True,
        needs=REPLICATED,
    )
    js_domain: str | None = option(
        values.KV_BUCKET, "with keys=plain: JetStream domain, instead of jetstream_domain", live=True, needs=REPLICATED
    )

    @classmethod
    def from_config(cls, provider: Defaults, config: Mapping[str, str]) -> tuple[LinkOptions, list[str]]:
        """Return the options of a link, and remarks about the names in its target_config.

        The target_config overrides the provider's options.

        :raises OptionError: a value is malformed, or a name is misspelt
        """
        own, remarks = LINK_OPTIONS.read(config)
        return cls.over(provider, own), remarks

    @classmethod
    def over(cls, provider: Defaults, own: Mapping[str, Any]) -> LinkOptions:
        """Return the provider's options, overridden by the values of a link's own options."""
        options = {name: getattr(provider, name) for name in LINK_OPTIONS} | {**own}
        if provider.store == MEMORY:
            options["keys"] = ENCODED
        return cls(**options)


LINK_OPTIONS = OptionTable(LinkOptions)
