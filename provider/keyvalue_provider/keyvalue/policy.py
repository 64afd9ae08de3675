"""The policy: what each caller may do. The caller's link decides. Without a link, the provider's options decide.

    (source id, link name) ── Policy.accesses ──> Access: right, buckets, limits, quota

The policy is computed when links or options change, so that calls only look it up. An access is immutable. A change
replaces the whole access, so no call sees a mix of old and new. `keyvalue_provider.keyvalue.handles` opens buckets with
the limits of an access. The policy needs the store's options, but not the store.

Callers choose the source id and the link name themselves. Use NATS permissions to control which clients may publish
calls.

A quota belongs to buckets, not to a caller. Links with the same buckets and the same quota share the quota.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from keyvalue_engine import BucketOptions, StoreOptions
from keyvalue_provider.config.options import READ_WRITE, LinkOptions, OptionError, ProviderOptions
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_transport.keyvalue.errors import NoSuchStoreError
from keyvalue_transport.keyvalue.interface import ParameterLimits

__all__ = ["Access", "CallerKey", "Policy", "QuotaTerms", "Reach", "Right"]

log = logging.getLogger(__name__)

#: The source id and the link name of a `Caller`.
CallerKey: TypeAlias = tuple[str | None, str | None]

#: The name of the link that applies if a caller names no link.
DEFAULT_LINK = "default"


class Right(Enum):
    """A caller's right to use its buckets."""

    DENIED = "denied"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


class Reach(NamedTuple):
    """The store buckets that a link can reach: those in `names`, or all with the prefix if `names` is None."""

    names: frozenset[bytes] | None
    prefix: bytes

    @classmethod
    def of(cls, options: LinkOptions) -> Reach:
        """Return the buckets that a caller with these options can reach."""
        prefix = options.bucket_prefix or b""
        if options.bucket is not None:
            return cls(frozenset({options.bucket}), b"")
        if options.buckets is not None:
            return cls(frozenset(prefix + name for name in options.buckets), b"")
        return cls(None, prefix)

    def covers(self, name: bytes) -> bool:
        """Return True if the link can reach the store bucket with this name."""
        return name.startswith(self.prefix) if self.names is None else name in self.names


class QuotaTerms(NamedTuple):
    """The buckets and limits of a quota. Links with equal terms share one quota."""

    reach: Reach
    quota_keys: int | None
    quota_bytes: int | None

    @classmethod
    def of(cls, options: LinkOptions) -> QuotaTerms | None:
        """Return the quota that these options set, or None."""
        if options.quota_keys is None and options.quota_bytes is None:
            return None
        return cls(Reach.of(options), options.quota_keys, options.quota_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """A caller's access: its right, buckets and limits.

    Accesses are compared by identity. An unchanged link keeps its access, and therefore its handles.

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
            limits=BucketOptions(
                key_bytes_max=options.key_bytes_max,
                value_bytes_max=options.value_bytes_max,
                page_keys_max=options.page_keys,
                page_bytes_max=options.page_bytes,
                ttl_ms=options.ttl_ms,
                strict_buckets=options.strict_buckets,
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
    """A link's access, with the link and the provider options from which it was computed."""

    link: LinkDefinition
    provider: ProviderOptions
    access: Access


class Policy:
    """The access of each caller, by source id and link name. Callers without a link share the access `linkless`.

    Only one thread may change the policy. Any thread may read `accesses` and `linkless`, because a change replaces
    these objects and never modifies them.

    :param store: the options of the store
    :param links: the host's links; call `links_changed` after each change
    :param options: the provider's options; by default, every caller may do everything
    :ivar parameter_limits: the highest limits of any caller, for decoders; the policy updates this object in place
    """

    def __init__(self, store: StoreOptions, links: Links | None = None, options: ProviderOptions | None = None) -> None:
        self.accesses: Mapping[CallerKey, Access] = {}
        self.linkless = DENIED
        self.parameter_limits = ParameterLimits()
        self._store = store
        self._links = Links("") if links is None else links
        self._grants: dict[LinkKey, Grant] = {}
        self._provider = ProviderOptions.of_store(store) if options is None else options
        self.configure(self._provider)

    def access_of(self, caller: CallerKey) -> Access:
        """Return the access of a caller."""
        return self.accesses.get(caller, self.linkless)

    def configure(self, options: ProviderOptions) -> None:
        """Apply the options that can change while the provider runs (LIVE_OPTIONS). Ignore all other options."""
        self._provider = self._provider.with_live_options(options)
        self._set_linkless()
        self.links_changed()

    def links_changed(self) -> None:
        """Apply the current links. Record each faulty link in `links`. O(links).

        An unchanged link keeps its access.
        """
        if self._links.overflowed and self.linkless is not DENIED:
            self._set_linkless()
        known, self._grants = self._grants, {}
        for link in self._links.callers():
            grant = known.get(link.key)
            if grant is None or grant.link is not link:
                grant = Grant(link, self._provider, self._read(link, is_news=True))
            elif grant.provider is not self._provider:
                grant = Grant(link, self._provider, self._read(link, is_news=False))
            self._grants[link.key] = grant
        self._set_accesses()
        self._set_parameter_limits()

    def _set_linkless(self) -> None:
        is_denied = self._provider.require_link or self._links.overflowed
        self.linkless = DENIED if is_denied else Access.of(LinkOptions.from_config(self._provider, {})[0])

    def _read(self, link: LinkDefinition, *, is_news: bool) -> Access:
        """Return a link's access. Record problems with its options, and log them if the link is new."""
        try:
            options, remarks = LinkOptions.from_config(self._provider, link.target_options)
        except OptionError as error:
            if is_news:
                log.warning("link %s -> %s (%s): everything is denied: %s", *link.key, error.discreet)
            self._links.refuse(link, f"everything is denied: {error.discreet}")
            return DENIED
        if remarks and is_news:
            log.warning("link %s -> %s (%s): %s", *link.key, "; ".join(remarks))
            self._links.remark(link, "; ".join(remarks))
        return Access.of(options)

    def _set_accesses(self) -> None:
        of_links = {(source_id, name): grant.access for (source_id, _, name), grant in self._grants.items()}
        of_links |= dict.fromkeys(self._links.refused_callers(), DENIED)
        accesses: dict[CallerKey, Access] = {}
        for (source_id, name), access in of_links.items():
            accesses[source_id, name] = access
            if name == DEFAULT_LINK:
                accesses[source_id, None] = accesses[source_id, ""] = access
        self.accesses = accesses

    def _set_parameter_limits(self) -> None:
        """Set the decoders' limits to the highest limits that the store or any link allows."""
        store, provider, limits = self._store, self._provider, self.parameter_limits
        of_links = [grant.access.limits for grant in self._grants.values()]
        limits.bucket_bytes_max = store.bucket_name_bytes_max
        limits.key_bytes_max = max([store.key_bytes_max, *(link.key_bytes_max or 0 for link in of_links)])
        limits.value_bytes_max = max([store.value_bytes_max, *(link.value_bytes_max or 0 for link in of_links)])
        limits.batch_keys_max = provider.batch_keys_max
        limits.answer_bytes_max = provider.answer_bytes_max
