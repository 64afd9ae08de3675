"""What a caller may do: by its link, or without one by the provider's options.

    (source id, link name) ── Accesses ──> Access ── the bucket as the caller calls it ──> the store's bucket, used as the link's options say

All this is worked out when links change, so that a call costs two look-ups. An access is replaced and never changed: a call that has taken
one is carried out by it whole. Source id and link name are what a publisher wrote: who may write them is for NATS' permissions to say.

A quota belongs to what is reached, not to who reaches it: links that reach the same buckets under the same limits share one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from keyvalue_engine import Bucket, BucketOptions, Quota, Store
from keyvalue_provider.config.options import READ_WRITE, LinkOptions, OptionError, ProviderOptions
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.wrpc.errors import AccessDeniedError, NoSuchStoreError
from keyvalue_transport.wrpc.handler import ANONYMOUS

__all__ = ["HANDLES_MAX", "Access", "Accesses"]

log = logging.getLogger(__name__)

#: Handles of one access that are kept ready; when there are more, all are forgotten and made anew.
HANDLES_MAX = 1024
#: The link of a caller that names none, as a host calls it that is told no name.
DEFAULT_LINK = "default"


class Reach(NamedTuple):
    """Which of the store's buckets a link reaches: those of these names or, without names, those that begin with the prefix."""

    names: frozenset[bytes] | None
    prefix: bytes

    @classmethod
    def of(cls, options: LinkOptions) -> Reach:
        """What these options let a caller reach, whatever names it gives."""
        prefix = options.bucket_prefix or b""
        if options.bucket is not None:
            return cls(frozenset({options.bucket}), b"")
        if options.buckets is not None:
            return cls(frozenset(prefix + name for name in options.buckets), b"")
        return cls(None, prefix)

    def covers(self, name: bytes) -> bool:
        """Whether the store's bucket of this name is one of them."""
        return name.startswith(self.prefix) if self.names is None else name in self.names


class Terms(NamedTuple):
    """What tells one quota from others."""

    reach: Reach
    quota_keys: int | None
    quota_bytes: int | None

    @classmethod
    def of(cls, options: LinkOptions | None) -> Terms | None:
        """The quota of these options; None where they set none, or there are none since all is denied."""
        if options is None or (options.quota_keys is None and options.quota_bytes is None):
            return None
        return cls(Reach.of(options), options.quota_keys, options.quota_bytes)


class Handles(dict[bytes, Bucket]):
    """Handles by what the caller calls the bucket, made when they are missing."""

    def __init__(self, store: Store, options: LinkOptions, quota: Quota | None) -> None:
        super().__init__()
        self._store = store
        self._options = options
        self._prefix = options.bucket_prefix or b""
        self._bucket_options = BucketOptions(
            key_bytes_max=options.key_bytes_max,
            value_bytes_max=options.value_bytes_max,
            page_keys_max=options.page_keys,
            page_bytes_max=options.page_bytes,
            ttl_ms=options.ttl_ms,
            strict_buckets=options.strict_buckets,
            quota=quota,
        )

    def __missing__(self, name: bytes) -> Bucket:
        """:raises NoSuchStoreError: the caller may not give this name"""
        options = self._options
        if options.buckets is not None and name not in options.buckets:
            raise NoSuchStoreError
        if len(self) >= HANDLES_MAX:
            self.clear()
        reached = self._prefix + name if options.bucket is None else options.bucket
        handle = self[name] = self._store.bucket(reached, self._bucket_options)
        return handle


class Denied(dict[bytes, Bucket]):
    """No handle for any bucket."""

    def __missing__(self, name: bytes) -> Bucket:
        """:raises AccessDeniedError: always"""
        raise AccessDeniedError


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """What one caller may do: handles by what it calls the bucket. A look-up raises the interface's error where it may not."""

    readable: dict[bytes, Bucket]
    writable: dict[bytes, Bucket]


#: Of a link that can't be read: what it allows is not known.
DENIED = Access(Denied(), Denied())


class Grant(NamedTuple):
    """What a link gives, or what callers without one have, and what it was worked out from. Without options all is denied."""

    link: LinkDefinition | None
    provider: ProviderOptions
    options: LinkOptions | None
    access: Access


class Accesses(dict[tuple[str | None, str | None], Access]):
    """What each caller may do, by source id and link name. Holds an entry for each link; callers without a link share one access.

    Look-ups may come from any thread; `configure` and `links_changed` are called from one.

    :param links: what the host has put; `links_changed` is to be called whenever they are others
    """

    def __init__(self, store: Store, links: Links | None = None, options: ProviderOptions | None = None) -> None:
        super().__init__()
        #: What a reader of parameters accepts: the largest limits that any caller has. It changes with the links.
        self.parameter_limits = ParameterLimits()
        self._store = store
        self._links = Links("") if links is None else links
        self._grants: dict[LinkKey, Grant] = {}
        self._quotas: dict[Terms, Quota] = {}
        self._provider = ProviderOptions.of_store(store.options) if options is None else options
        self.configure(self._provider)

    def __missing__(self, caller: tuple[str | None, str | None]) -> Access:
        """What callers without a link may do. Nothing is kept of them: anybody can name any number."""
        return self._linkless.access

    def configure(self, options: ProviderOptions) -> None:
        """Take those of the provider's options that take effect at once (LIVE_OPTIONS); the rest stays as it was at the start."""
        self._provider = self._provider.with_live_options(options)
        self._grant_linkless()
        self.links_changed()

    def links_changed(self) -> None:
        """Take the links as they are now; what is wrong with them is noted there. O(links).

        Of a link that is as before the access stays, with its handles.
        """
        if self._links.overflowed and self._linkless.options is not None:
            self._grant_linkless()
        known, self._grants = self._grants, {}
        for link in self._links.callers():
            grant = known.get(link.key)
            if grant is None or grant.link is not link:
                grant = self._grant(link, self._read(link, is_news=True))
            elif grant.provider is not self._provider:
                grant = self._grant(link, self._read(link, is_news=False))
            self._grants[link.key] = grant
        self._publish()
        self._set_parameter_limits()
        self._drop_quotas()

    def _grant_linkless(self) -> None:
        denied = self._provider.require_link or self._links.overflowed
        self._linkless = self._grant(None, None if denied else LinkOptions.from_config(self._provider, {})[0])

    def _read(self, link: LinkDefinition, *, is_news: bool) -> LinkOptions | None:
        """The options of a link; None where one can't be read. What is wrong or odd is said once, and noted."""
        try:
            options, remarks = LinkOptions.from_config(self._provider, link.target_options)
        except OptionError as error:
            if is_news:
                log.warning("link %s -> %s (%s): all is denied: %s", *link.key, error.discreet)
            self._links.refuse(link, f"all is denied: {error.discreet}")
            return None
        if remarks and is_news:
            log.warning("link %s -> %s (%s): %s", *link.key, "; ".join(remarks))
            self._links.remark(link, "; ".join(remarks))
        return options

    def _grant(self, link: LinkDefinition | None, options: LinkOptions | None) -> Grant:
        readable: dict[bytes, Bucket] = Denied()
        writable: dict[bytes, Bucket] = Denied()
        if options is not None:
            readable = Handles(self._store, options, self._quota(options))
            if options.access == READ_WRITE:
                writable = readable
        return Grant(link, self._provider, options, Access(readable, writable))

    def _quota(self, options: LinkOptions) -> Quota | None:
        terms = Terms.of(options)
        if terms is None:
            return None
        quota = self._quotas.get(terms)
        if quota is None:
            quota = self._quotas[terms] = Quota(terms.reach.covers, terms.quota_keys, terms.quota_bytes)
            self._store.add_quota(quota)
        return quota

    def _publish(self) -> None:
        """Each entry at one stroke. That of callers without headers stands there like a link's, since it is looked up as often."""
        entries: dict[tuple[str | None, str | None], Access] = {ANONYMOUS: self._linkless.access}
        accesses = {(source_id, name): grant.access for (source_id, _, name), grant in self._grants.items()}
        accesses |= dict.fromkeys(self._links.refused_callers(), DENIED)
        for (source_id, name), access in accesses.items():
            entries[source_id, name] = access
            if name == DEFAULT_LINK:
                entries[source_id, None] = entries[source_id, ""] = access
        self.update(entries)
        for caller in self.keys() - entries.keys():
            del self[caller]

    def _set_parameter_limits(self) -> None:
        """What the store would refuse of every caller need not be read."""
        store, provider, limits = self._store.options, self._provider, self.parameter_limits
        options = [grant.options for grant in self._grants.values() if grant.options is not None]
        limits.bucket_bytes_max = store.bucket_name_bytes_max
        limits.key_bytes_max = max([store.key_bytes_max, *(link.key_bytes_max for link in options)])
        limits.value_bytes_max = max([store.value_bytes_max, *(link.value_bytes_max for link in options)])
        limits.batch_keys_max = provider.batch_keys_max
        limits.answer_bytes_max = provider.answer_bytes_max

    def _drop_quotas(self) -> None:
        """Those that no access is held to any more."""
        needed = {Terms.of(grant.options) for grant in (self._linkless, *self._grants.values())}
        for terms in self._quotas.keys() - needed:
            self._store.remove_quota(self._quotas.pop(terms))
