"""Bucket handles. There is one handle for each access and bucket name. It is opened once and kept for later calls.

    caller ── CallerHandles ──> Handles ── the caller's bucket name ──> the handle of the store's bucket

A call needs two look-ups: one for its caller's `Handles`, and one for the bucket. A call uses the same `Handles` to the
end, even if the policy changes meanwhile.

The two protocols below list all methods that the provider needs from a store. The engine returns values immediately.
Another store may return awaitables instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from keyvalue_engine import BucketOptions, Page, Quota, StoreOptions
from keyvalue_provider.keyvalue.policy import Access, CallerKey, Policy, QuotaTerms, Right
from keyvalue_transport.keyvalue.errors import AccessDeniedError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer

__all__ = ["HANDLES_MAX", "BucketHandle", "BucketStore", "CallerHandles", "Handles"]

#: Maximum number of handles that are kept for one access. At the limit, all handles are dropped, and
#: opened again when they are needed.
HANDLES_MAX = 1024


class BucketHandle(Protocol):
    """A bucket, and the options that it was opened with.

    Each method returns a value, or an awaitable that returns the value. If a call is refused, the method or the
    awaitable raises `StoreError`.
    """

    def get(self, key: bytes, /) -> Answer[bytes | None]: ...

    def set(self, key: bytes, value: bytes, /) -> Answer[None]: ...

    def delete(self, key: bytes, /) -> Answer[bool]: ...

    def exists(self, key: bytes, /) -> Answer[bool]: ...

    def partial_page(self, cursor: int | None, /) -> Answer[Page]:
        """Return a page. If the page is empty but has a cursor, the rest of the page starts at the cursor."""
        ...

    def increment(self, key: bytes, delta: int, /) -> Answer[int]: ...

    def get_many(self, keys: Sequence[bytes], /) -> Answer[list[bytes | None]]: ...

    def set_many(self, entries: Mapping[bytes, bytes], /) -> Answer[None]: ...

    def delete_many(self, keys: Sequence[bytes], /) -> Answer[int]: ...


class BucketStore(Protocol):
    """A store that opens buckets and enforces quotas."""

    @property
    def options(self) -> StoreOptions: ...

    def bucket(self, name: bytes, options: BucketOptions, /) -> BucketHandle:
        """Open a bucket. This method never raises, because an unusable name is refused at the first write."""
        ...

    def add_quota(self, quota: Quota, /) -> None: ...

    def remove_quota(self, quota: Quota, /) -> None: ...


class OpenedHandles(dict[bytes, BucketHandle]):
    """The handles of one access, by the caller's bucket name. A look-up opens a missing handle."""

    def __init__(self, store: BucketStore, access: Access, options: BucketOptions) -> None:
        super().__init__()
        self._store = store
        self._access = access
        self._options = options

    def __missing__(self, name: bytes) -> BucketHandle:
        """Open the handle of a bucket and keep it.

        :raises NoSuchStoreError: the caller may not use this name
        """
        reached = self._access.reached(name)
        if len(self) >= HANDLES_MAX:
            self.clear()
        handle = self[name] = self._store.bucket(reached, self._options)
        return handle


class DeniedHandles(dict[bytes, BucketHandle]):
    """A mapping that denies access to every bucket."""

    def __missing__(self, name: bytes) -> BucketHandle:
        """Deny access.

        :raises AccessDeniedError: always
        """
        raise AccessDeniedError


@dataclass(frozen=True, slots=True, eq=False)
class Handles:
    """The handles of one caller, by bucket name. A look-up raises an interface error if access is denied."""

    readable: dict[bytes, BucketHandle]
    writable: dict[bytes, BucketHandle]


class CallerHandles(dict[CallerKey, Handles]):
    """The handles of each caller.

    Callers without a link share one `Handles`. They get no entries, because a client can invent any number of callers.
    Any thread may look up handles. Only one thread may call `policy_changed`.
    """

    def __init__(self, store: BucketStore, policy: Policy) -> None:
        super().__init__()
        self._store = store
        self._policy = policy
        self._of_accesses: dict[Access, Handles] = {}
        self._quotas: dict[QuotaTerms, Quota] = {}
        self.policy_changed()

    def __missing__(self, caller: CallerKey) -> Handles:
        """Return the shared handles of callers without a link."""
        return self._linkless

    def policy_changed(self) -> None:
        """Apply the current policy. Keep the handles of each unchanged access. O(callers)."""
        known, self._of_accesses = self._of_accesses, {}

        def handles_of(access: Access) -> Handles:
            handles = self._of_accesses.get(access)
            if handles is None:
                handles = self._of_accesses[access] = known.get(access) or self._open(access)
            return handles

        self._linkless = handles_of(self._policy.linkless)
        entries = {caller: handles_of(access) for caller, access in self._policy.accesses.items()}
        entries[ANONYMOUS] = self._linkless  # an entry makes this frequent look-up fast
        self.update(entries)
        for caller in self.keys() - entries.keys():
            del self[caller]
        self._remove_quotas()

    def _open(self, access: Access) -> Handles:
        if access.right is Right.DENIED:
            return Handles(DeniedHandles(), DeniedHandles())
        options = access.limits
        if access.quota is not None:
            options = replace(options, quota=self._quota(access.quota))
        readable = OpenedHandles(self._store, access, options)
        return Handles(readable, readable if access.right is Right.READ_WRITE else DeniedHandles())

    def _quota(self, terms: QuotaTerms) -> Quota:
        quota = self._quotas.get(terms)
        if quota is None:
            quota = self._quotas[terms] = Quota(terms.reach.covers, terms.quota_keys, terms.quota_bytes)
            self._store.add_quota(quota)
        return quota

    def _remove_quotas(self) -> None:
        """Remove the quotas that no access uses any more."""
        for terms in self._quotas.keys() - {access.quota for access in self._of_accesses}:
            self._store.remove_quota(self._quotas.pop(terms))
