"""The policy: what each caller may do. The caller's link decides. Without a link, the provider's options decide.

    (source id, link name) ── Policy.access_of ──> Access: right, buckets, limits, quota

A link's own options are read once, when the link changes. They are combined with the provider's options when a caller's
access is asked for, which is once after each change (`keyvalue_provider.keyvalue.handles`). So a change costs O(changed
links), and a change of the provider's options O(1). An access is immutable, so no call sees a mix of old and new. The
policy needs the store's options, but not the store.

Callers choose the source id and the link name themselves. Use NATS permissions to control which clients may publish
calls.

A quota belongs to buckets, not to a caller. Links that reach the same buckets share the counts of their quotas.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from keyvalue_engine import BucketOptions, Reach, StoreOptions
from keyvalue_provider.config.options import (
    BE64,
    ENCODED,
    LATEST,
    LINK_OPTIONS,
    MEMORY,
    PLAIN,
    READ_WRITE,
    LinkOptions,
    OptionError,
    ProviderOptions,
)
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_replica.options import NO_ENCODED_KEYS, LinkedOptions, plain_name
from keyvalue_transport.keyvalue.errors import NoSuchStoreError
from keyvalue_transport.keyvalue.interface import ParameterLimits

__all__ = ["Access", "CallerKey", "Policy", "QuotaTerms", "Right", "reach_of"]

log = logging.getLogger(__name__)

#: The source id and the link name of a `Caller`.
CallerKey: TypeAlias = tuple[str | None, str | None]

#: The options of the provider that decide what callers may do.
ACCESS_OPTIONS = frozenset({*LINK_OPTIONS, "require_link"})
#: The name of the link that applies if a caller names no link.
DEFAULT_LINK = "default"
#: Options of keyvalue-nats' links that choose another server or user for the link.
OF_CONNECTIONS = frozenset(
    {"cluster_uri", "cluster_uris", "auth_jwt", "auth_seed", "client_jwt", "client_seed", "tls_ca", "tls_ca_file"}
)


class Right(Enum):
    """A caller's right to use its buckets."""

    DENIED = "denied"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


def reach_of(options: LinkOptions) -> Reach:
    """Return the store buckets that a caller with these options can reach."""
    prefix = options.bucket_prefix or b""
    if options.bucket is not None:
        names = frozenset({options.bucket})
    elif options.buckets is not None:
        names = frozenset(prefix + name for name in options.buckets)
    else:
        return Reach(prefix=plain_name(domain_of(options), prefix))
    return Reach(frozenset(plain_name(domain_of(options), name) for name in names))


def domain_of(options: LinkOptions) -> str:
    """Return the JetStream domain of KV buckets with plain names, or "" for that of the provider."""
    return (options.js_domain or "") if options.keys == PLAIN else ""


class QuotaTerms(NamedTuple):
    """The buckets and limits of a quota. Links with equal terms share one quota."""

    reach: Reach
    quota_keys: int | None
    quota_bytes: int | None
    is_plain: bool = False

    @classmethod
    def of(cls, options: LinkOptions) -> QuotaTerms | None:
        """Return the quota that these options set, or None."""
        if options.quota_keys is None and options.quota_bytes is None:
            return None
        return cls(reach_of(options), options.quota_keys, options.quota_bytes, options.keys == PLAIN)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """A caller's access: its right, buckets and limits.

    :param limits: options for the caller's buckets, without the quota
    :param bucket: the store's bucket that every name refers to; if None, a name refers to the bucket `prefix` + name
    :param names: the names that the caller may use; None for any name
    """

    right: Right
    limits: BucketOptions
    bucket: bytes | None = None
    prefix: bytes = b""
    names: frozenset[bytes] | None = None
    quota: QuotaTerms | None = None

    @classmethod
    def of(cls, options: LinkOptions) -> Access:
        """Return the access that these options describe."""
        return cls(
            right=Right.READ_WRITE if options.access == READ_WRITE else Right.READ_ONLY,
            limits=LinkedOptions(
                key_bytes_max=options.key_bytes_max,
                value_bytes_max=options.value_bytes_max,
                page_keys_max=options.page_keys,
                page_bytes_max=options.page_bytes,
                ttl_ms=options.ttl_ms,
                strict_buckets=options.strict_buckets,
                reads_latest=options.reads == LATEST,
                is_plain=options.keys == PLAIN,
                creates=options.enable_bucket_auto_create,
                domain=domain_of(options),
                has_be64_counters=options.counter == BE64,
            ),
            bucket=options.bucket,
            prefix=options.bucket_prefix or b"",
            names=options.buckets,
            quota=QuotaTerms.of(options),
        )

    def reached(self, name: bytes) -> bytes:
        """Translate a caller's bucket name to the name of a store bucket.

        :raises NoSuchStoreError: the caller may not use this name
        """
        if self.names is not None and name not in self.names:
            raise NoSuchStoreError
        return self.prefix + name if self.bucket is None else self.bucket


#: The access that denies everything. It applies if a link is unreadable, or if a link is required but missing.
DENIED = Access(Right.DENIED, BucketOptions())


class Grant(NamedTuple):
    """A link, and the values of its own options.

    :ivar link: None if the link is unreadable
    :ivar own: None if everything is denied
    """

    link: LinkDefinition | None
    own: Mapping[str, Any] | None


class Largest:
    """The largest of some numbers, which come and go. O(1), or O(different numbers) after the largest has gone."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.value = 0

    def add(self, number: int) -> None:
        """Add a number."""
        self._counts[number] += 1
        self.value = max(self.value, number)

    def remove(self, number: int) -> None:
        """Remove a number that was added."""
        self._counts[number] -= 1
        if not self._counts[number]:
            del self._counts[number]
            if number == self.value:
                self.value = max(self._counts, default=0)


class Policy:
    """The access of each caller, by source id and link name. Callers without a link share the access `linkless`.

    Only one thread may change the policy. Any thread may read it.

    :param store: the options of the store
    :param links: the host's links; call `links_changed` after each change
    :param options: the provider's options; by default, every caller may do everything
    :ivar parameter_limits: the highest limits of any caller, for decoders; the policy updates this object in place
    """

    def __init__(self, store: StoreOptions, links: Links | None = None, options: ProviderOptions | None = None) -> None:
        self.linkless = DENIED
        self.parameter_limits = ParameterLimits()
        self._store = store
        self._links = Links("") if links is None else links
        self._grants: dict[CallerKey, Grant] = {}
        self._users: dict[CallerKey, Mapping[str, Any]] = {}  # the options of each caller that is no component
        self._naming: dict[CallerKey, Mapping[str, Any]] = {}  # the options of links that name a bucket
        self._largest = {"key_bytes_max": Largest(), "value_bytes_max": Largest()}
        self._provider = ProviderOptions.of_store(store) if options is None else options
        self._set_linkless()
        self.links_changed(self._links.keys())

    def access_of(self, caller: CallerKey) -> Access:
        """Return the access of a caller."""
        access = self.access_by_link(caller)
        return self.linkless if access is None else access

    def access_by_link(self, caller: CallerKey) -> Access | None:
        """Return the access that a caller's link gives, or None if the caller has no link. `add_user` is like a link."""
        source_id, name = caller
        if (user := self._users.get(caller)) is not None:
            return Access.of(LinkOptions.over(self._provider, user))
        grant = self._grants.get((source_id, name or DEFAULT_LINK))
        if grant is None:
            return None
        return DENIED if grant.own is None else Access.of(LinkOptions.over(self._provider, grant.own))

    def linked_buckets(self) -> dict[tuple[str, bytes], bool]:
        """Return the KV buckets with plain names that links name, by domain and name: True if one may be created.

        O(links that name a bucket + users).
        """
        provider, found = self._provider, dict[tuple[str, bytes], bool]()
        for own in (*self._naming.values(), *(own for own in self._users.values() if "bucket" in own)):
            if provider.store != MEMORY and own.get("keys", provider.keys) == PLAIN:
                place = own.get("js_domain", provider.js_domain) or "", own["bucket"]
                creates = own.get("enable_bucket_auto_create", provider.enable_bucket_auto_create)
                found[place] = found.get(place, False) or creates
        return found

    @property
    def js_domain(self) -> str:
        """Return the JetStream domain of links that name none, or "" if the provider has none either."""
        return self._provider.js_domain or ""

    def add_user(self, caller: CallerKey, own: Mapping[str, Any]) -> None:
        """Give a caller that is no component the access that a link with these options would give.

        No link changes it, even one with the caller's source and name. Call this once for each caller.
        """
        self._users[caller] = own
        for option in self._largest.keys() & own.keys():
            self._largest[option].add(own[option])
        self._set_parameter_limits()

    def configure(self, options: ProviderOptions) -> bool:
        """Apply the options that can change while the provider runs (LIVE_OPTIONS). Ignore all other options. O(1).

        Return True if the access of callers may have changed.
        """
        before, self._provider = self._provider, self._provider.with_live_options(options)
        self._set_parameter_limits()
        if ACCESS_OPTIONS.isdisjoint(before.changed(self._provider)):
            return False
        self._set_linkless()
        return True

    def links_changed(self, keys: Iterable[LinkKey]) -> list[CallerKey]:
        """Read the links with these keys. Record each faulty link in `links`. O(keys).

        An unchanged link is not read again. Return the callers whose access may have changed.
        """
        if self._links.overflowed and self.linkless is not DENIED:
            self._set_linkless()
        changed: list[CallerKey] = []
        for key in keys:
            if not self._links.is_from_caller(key):
                continue
            source_id, _, name = key
            link, known = self._links.get(key), self._grants.get((source_id, name))
            if link is None and not self._links.is_unreadable(key):
                grant = None
            elif known is not None and known.link is link:
                continue
            else:
                grant = Grant(link, None if link is None else self._read(link))
            self._replace((source_id, name), known, grant)
            changed += names_of((source_id, name))
        self._set_parameter_limits()
        return changed

    def _replace(self, caller: CallerKey, known: Grant | None, grant: Grant | None) -> None:
        for option, largest in self._largest.items():
            # In this order, `remove` need not look for the next largest number if the new one is not smaller.
            if grant is not None and grant.own is not None and option in grant.own:
                largest.add(grant.own[option])
            if known is not None and known.own is not None and option in known.own:
                largest.remove(known.own[option])
        if grant is not None and grant.own is not None and "bucket" in grant.own:
            self._naming[caller] = grant.own
        else:
            self._naming.pop(caller, None)
        if grant is None:
            self._grants.pop(caller, None)
        else:
            self._grants[caller] = grant

    def _set_linkless(self) -> None:
        is_denied = self._provider.require_link or self._links.overflowed
        self.linkless = DENIED if is_denied else Access.of(LinkOptions.over(self._provider, {}))

    def _read(self, link: LinkDefinition) -> Mapping[str, Any] | None:
        """Return the values of a link's own options, or None if they are malformed. Log and record all problems."""
        try:
            own, remarks = LINK_OPTIONS.read(link.target_options)
        except OptionError as error:
            log.warning("link %s -> %s (%s): everything is denied: %s", *link.key, error.discreet)
            self._links.refuse(link, f"everything is denied: {error.discreet}")
            return None
        if self._provider.store != MEMORY and own.get("keys") == ENCODED and not self._provider.has_encoded_keys:
            self._links.refuse(link, f"everything is denied: {NO_ENCODED_KEYS}")
            return None
        if unsupported := sorted(OF_CONNECTIONS.intersection(link.target_options)):
            remarks.append(f"not supported, since all links use the provider's connection: {', '.join(unsupported)}")
        if remarks:
            log.warning("link %s -> %s (%s): %s", *link.key, "; ".join(remarks))
            self._links.remark(link, "; ".join(remarks))
        return own

    def _set_parameter_limits(self) -> None:
        """Set the decoders' limits to the highest limits that the store or any link allows."""
        store, provider, limits = self._store, self._provider, self.parameter_limits
        limits.bucket_bytes_max = store.bucket_name_bytes_max
        limits.key_bytes_max = max(store.key_bytes_max, self._largest["key_bytes_max"].value)
        limits.value_bytes_max = max(store.value_bytes_max, self._largest["value_bytes_max"].value)
        limits.batch_keys_max = provider.batch_keys_max
        limits.answer_bytes_max = provider.answer_bytes_max


def names_of(caller: CallerKey) -> list[CallerKey]:
    """Return all keys of a caller. A caller that names no link belongs to the link `default`."""
    source_id, name = caller
    return [caller, (source_id, None), (source_id, "")] if name == DEFAULT_LINK else [caller]
