"""What a caller may do: by its link, or without one by the provider's options.

    (source id, link name) ── Policy.accesses ──> Access: whether it reads and writes, which buckets its names mean, limits, quota

The policy is worked out when links or options change, not when a call comes. An access is immutable: a change replaces it, so no call is
carried out by a mix of two. `keyvalue_provider.keyvalue.handles` opens buckets by it; the policy itself knows no store, only its options.
The source id and the link name are what a publisher wrote: NATS permissions say who may write them.

A quota belongs to the buckets that are reached, not to the caller that reaches them: links that reach the same buckets under the same limits
share one.
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

#: Source id and link name, as a `Caller` has them.
CallerKey: TypeAlias = tuple[str | None, str | None]

#: The link of a caller that names none: a host that was told no name calls so.
DEFAULT_LINK = "default"


class Right(Enum):
    """What a caller may do with the buckets that it reaches."""

    DENIED = "denied"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


class Reach(NamedTuple):
    """The store's buckets that a link reaches: those of these names or, without names, those that begin with the prefix."""

    names: frozenset[bytes] | None
    prefix: bytes

    @classmethod
    def of(cls, options: LinkOptions) -> Reach:
        """Return what these options let a caller reach, whatever names it gives."""
        prefix = options.bucket_prefix or b""
        if options.bucket is not None:
            return cls(frozenset({options.bucket}), b"")
        if options.buckets is not None:
            return cls(frozenset(prefix + name for name in options.buckets), b"")
        return cls(None, prefix)

    def covers(self, name: bytes) -> bool:
        """Return True if the store's bucket of this name is one of them."""
        return name.startswith(self.prefix) if self.names is None else name in self.names


class QuotaTerms(NamedTuple):
    """What tells one quota from others."""

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
    """What one caller may do. Two are never equal: a link that is as before keeps its access, and with it its handles.

    :param limits: how the caller uses a bucket; the quota is not in them
    :param bucket: the store's bucket that every name means; None: a name means the bucket `prefix` + name
    :param names: the names that the caller may give; None: any
    """

    right: Right
    limits: BucketOptions
    bucket: bytes | None = None
    prefix: bytes = b""
    names: frozenset[bytes] | None = None
    quota: QuotaTerms | None = None

    @classmethod
    def of(cls, options: LinkOptions) -> Access:
        """Return the access that these options give."""
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
        """Return the name of the store's bucket that the caller means.

        :raises NoSuchStoreError: the caller may not give this name
        """
        if self.names is not None and name not in self.names:
            raise NoSuchStoreError
        return self.prefix + name if self.bucket is None else self.bucket


#: The access by a link that can't be read: what it allows is not known.
DENIED = Access(Right.DENIED, BucketOptions())


class Grant(NamedTuple):
    """The access of a link, and what it was worked out from."""

    link: LinkDefinition
    provider: ProviderOptions
    access: Access


class Policy:
    """What each caller may do, by source id and link name. Each link has an access; callers without a link share `linkless`.

    To be changed from one thread. `accesses` and `linkless` are replaced, never changed, and may be read from any.

    :param store: options of the store that is served
    :param links: what the host has put; call `links_changed` whenever they are others
    :param options: unless given, everybody may do everything
    :ivar parameter_limits: what a reader of parameters accepts: the largest limits that any caller has. One object for ever; its fields change
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
        """Return what a caller may do."""
        return self.accesses.get(caller, self.linkless)

    def configure(self, options: ProviderOptions) -> None:
        """Take the provider's options that take effect at once (LIVE_OPTIONS); the others stay as they were at the start."""
        self._provider = self._provider.with_live_options(options)
        self._set_linkless()
        self.links_changed()

    def links_changed(self) -> None:
        """Take the links as they are now; what is wrong with them is noted there. O(links).

        A link that is as before keeps its access.
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
        """Return the access of a link. What is wrong or odd in its options is logged once, and noted in the links."""
        try:
            options, remarks = LinkOptions.from_config(self._provider, link.target_options)
        except OptionError as error:
            if is_news:
                log.warning("link %s -> %s (%s): all is denied: %s", *link.key, error.discreet)
            self._links.refuse(link, f"all is denied: {error.discreet}")
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
        """Set what need not be read, because the store would refuse it of every caller."""
        store, provider, limits = self._store, self._provider, self.parameter_limits
        of_links = [grant.access.limits for grant in self._grants.values()]
        limits.bucket_bytes_max = store.bucket_name_bytes_max
        limits.key_bytes_max = max([store.key_bytes_max, *(link.key_bytes_max or 0 for link in of_links)])
        limits.value_bytes_max = max([store.value_bytes_max, *(link.value_bytes_max or 0 for link in of_links)])
        limits.batch_keys_max = provider.batch_keys_max
        limits.answer_bytes_max = provider.answer_bytes_max
