"""Bucket handles. There is one handle for each caller and bucket name. It is opened once and kept for later calls.

    caller ── CallerHandles ──> Handles ── the caller's bucket name ──> the handle of the store's bucket

A call needs two look-ups: one for its caller's `Handles`, and one for the bucket. A call uses the same `Handles` to the
end, even if the policy changes meanwhile. A change of the policy only drops the `Handles` of the changed callers. They
are opened under the new policy at the callers' next calls.

A new quota over many buckets is counted in steps. Meanwhile, writes that it limits wait (`CountingHandle`).

The two protocols below list all methods that the provider needs from a store. The engine returns values immediately.
Another store may return awaitables instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Protocol, TypeVar

from keyvalue_engine import BucketOptions, Entry, Page, Quota, Revise, Revision, StoreOptions
from keyvalue_provider.keyvalue.policy import Access, CallerKey, Policy, QuotaTerms, Right
from keyvalue_replica.options import PlainQuota
from keyvalue_transport.keyvalue.errors import AccessDeniedError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Answer

__all__ = [
    "COUNTED_BUCKETS",
    "HANDLES_MAX",
    "KEPT_NAME_BYTES",
    "BucketHandle",
    "BucketStore",
    "CallerHandles",
    "DerivedAnswer",
    "Handles",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Maximum number of handles that are kept for all callers together. At the limit, all handles are dropped, and opened
#: again when they are needed. With names of KEPT_NAME_BYTES, they take 10 MB.
HANDLES_MAX = 4_096
#: The handle of a bucket with a longer name is opened for each call.
KEPT_NAME_BYTES = 1_024
#: Number of buckets that a new quota counts in one step of the event loop. A step takes about 1.5 ms.
COUNTED_BUCKETS = 2_000


class DerivedAnswer(Protocol[T_co]):
    """An awaitable whose value is calculated from another answer, which it may share with other calls."""

    @property
    def source(self) -> Awaitable[object]:
        """The answer to wait for."""

    def derive(self, read: Callable[[], object], /) -> T_co:
        """Return the value. `read` returns the source's value, or raises its error."""

    def __await__(self) -> Generator[object, None, T_co]: ...


class BucketHandle(Protocol):
    """A bucket, and the options that it was opened with.

    Each method returns a value, or an awaitable that returns the value. If a call is refused, the method or the
    awaitable raises `StoreError`.
    """

    def get(self, key: bytes, /) -> Answer[bytes | None]: ...

    def get_each(self, keys: Sequence[bytes], /) -> Sequence[bytes | None] | Again | None:
        """Return what `ReadsTogether` in `transport/.../keyvalue/store.py` describes."""
        ...

    def set(self, key: bytes, value: bytes, ttl_ms: int | None = None, /) -> Answer[None]: ...

    def delete(self, key: bytes, /) -> Answer[object]: ...

    def exists(self, key: bytes, /) -> Answer[bool]: ...

    def partial_page(self, cursor: int | None, keys_max: int | None, bytes_max: int, /) -> Answer[Page]:
        """Return a page. If the page is empty but has a cursor, the rest of the page starts at the cursor."""
        ...

    def increment(self, key: bytes, delta: int, /) -> Answer[int]: ...

    def get_many(self, keys: Sequence[bytes], /) -> Answer[list[bytes | None]]: ...

    def set_many(self, entries: Mapping[bytes, bytes], /) -> Answer[None]: ...

    def delete_many(self, keys: Sequence[bytes], /) -> Answer[object]: ...

    def entry(self, key: bytes, /) -> Answer[Entry | None]: ...

    def update(self, key: bytes, revise: Revise, /) -> Answer[Revision]: ...

    def remove(self, keys: Sequence[bytes], /) -> Answer[int]:
        """Remove keys. Return the number of keys that existed."""
        ...

    def set_missing(self, entries: Mapping[bytes, bytes], /) -> Answer[bool]: ...

    def __len__(self) -> int: ...


class BucketStore(Protocol):
    """A store that opens buckets and enforces quotas."""

    @property
    def options(self) -> StoreOptions: ...

    def now_ns(self) -> int: ...

    def bucket(self, name: bytes, options: BucketOptions, /) -> BucketHandle:
        """Open a bucket. This method never raises, because an unusable name is refused at the first write."""
        ...

    def add_quota(self, quota: Quota, buckets_max: int, /) -> None:
        """Start counting for a quota. Count at most `buckets_max` buckets now."""
        ...

    def count_quota(self, quota: Quota, buckets_max: int, /) -> None:
        """Count at most `buckets_max` more buckets."""
        ...

    def remove_quota(self, quota: Quota, /) -> None: ...


class Counting:
    """Counts the buckets of quotas on the event loop, for the calls that wait. It takes one step in a loop iteration."""

    def __init__(self, store: BucketStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()  # held by the call that counts

    async def complete(self, quota: Quota) -> None:
        """Count all buckets of a quota."""
        async with self._lock:
            while not quota.is_counted:
                self._store.count_quota(quota, COUNTED_BUCKETS)
                await asyncio.sleep(0)


class CountingHandle:
    """A handle whose quota is not counted completely. Calls that the quota may refuse wait for the count."""

    def __init__(self, handle: BucketHandle, quota: Quota, counting: Counting) -> None:
        self._handle = handle
        self._quota = quota
        self._counting = counting
        self.get = handle.get
        self.get_each = handle.get_each
        self.exists = handle.exists
        self.partial_page = handle.partial_page
        self.get_many = handle.get_many
        self.delete = handle.delete
        self.delete_many = handle.delete_many
        self.entry = handle.entry
        self.remove = handle.remove

    def __len__(self) -> int:
        return len(self._handle)

    def set(self, key: bytes, value: bytes, ttl_ms: int | None = None, /) -> Awaitable[None]:
        """Store a value, after the count."""
        return self._counted(partial(self._handle.set, key, value, ttl_ms))

    def update(self, key: bytes, revise: Revise, /) -> Awaitable[Revision]:
        """Revise an entry, after the count."""
        return self._counted(partial(self._handle.update, key, revise))

    def set_missing(self, entries: Mapping[bytes, bytes], /) -> Awaitable[bool]:
        """Store entries if all keys are missing, after the count."""
        return self._counted(partial(self._handle.set_missing, entries))

    def increment(self, key: bytes, delta: int, /) -> Awaitable[int]:
        """Add to a counter, after the count."""
        return self._counted(partial(self._handle.increment, key, delta))

    def set_many(self, entries: Mapping[bytes, bytes], /) -> Awaitable[None]:
        """Store all entries or none, after the count."""
        return self._counted(partial(self._handle.set_many, entries))

    async def _counted(self, write: Callable[[], Answer[T]]) -> T:
        await self._counting.complete(self._quota)
        answer = write()
        return await answer if isinstance(answer, Awaitable) else answer


class OpenedHandles(dict[bytes, BucketHandle]):
    """The handles of one caller, by the caller's name for the bucket. A look-up opens a missing handle."""

    def __init__(
        self, store: BucketStore, kept: KeptHandles, access: Access, options: BucketOptions, counting: Counting
    ) -> None:
        super().__init__()
        self._store = store
        self._kept = kept
        self._access = access
        self._options = options
        self._counting = counting

    def __missing__(self, name: bytes) -> BucketHandle:
        """:raises NoSuchStoreError: the caller may not use this name"""
        reached = self._access.reached(name)
        handle = self._store.bucket(reached, self._options)
        quota = self._options.quota
        if quota is not None and not quota.is_counted:
            return CountingHandle(handle, quota, self._counting)
        if max(len(name), len(reached)) <= KEPT_NAME_BYTES:
            self._kept.keep(self, name, handle)
        return handle


class KeptHandles:
    """Keeps at most HANDLES_MAX handles in all `OpenedHandles` together. Any thread may call `keep`."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects the other attributes
        self._count = 0
        self._filled: list[OpenedHandles] = []  # all that hold handles

    def keep(self, handles: OpenedHandles, name: bytes, handle: BucketHandle) -> None:
        """Add a handle. At the limit, first drop all handles."""
        with self._lock:
            if self._count >= HANDLES_MAX:
                self._drop()
            if not handles:
                self._filled.append(handles)
            handles[name] = handle
            self._count += 1

    def drop(self) -> None:
        """Drop all handles. Each is opened again when it is needed."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        for filled in self._filled:
            filled.clear()
        self._filled.clear()
        self._count = 0


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
    """The handles of each caller with a link. A look-up opens missing handles.

    Callers without a link share one `Handles` and get no entries, because anyone can invent more such callers.
    Any thread may look up handles. Only one thread may call `policy_changed`.
    """

    def __init__(self, store: BucketStore, policy: Policy) -> None:
        super().__init__()
        self._store = store
        self._policy = policy
        self._lock = Lock()  # protects all changes, so that no entry of an earlier policy stays
        self._kept = KeptHandles()
        self._counting = Counting(store)
        self._quotas: dict[CallerKey, Quota] = {}
        self._linkless_access = policy.linkless
        self._linkless = self[ANONYMOUS] = self._open(ANONYMOUS, policy.linkless)

    def __missing__(self, caller: CallerKey) -> Handles:
        """Open the handles of a caller with a link, or return the handles of callers without a link."""
        with self._lock:
            access = self._policy.access_by_link(caller)
            if access is None:
                return self._linkless
            handles = self[caller] = self._open(caller, access)
            return handles

    def policy_changed(self, callers: Iterable[CallerKey] | None = None) -> None:
        """Apply the current policy to later look-ups. O(callers).

        :param callers: the callers whose access has changed; None means that any access may have changed
        """
        with self._lock:
            if callers is None:
                self.clear()
            for caller in callers or ():
                self.pop(caller, None)
                self._remove_unused_quota(caller)
            if self._policy.linkless is not self._linkless_access:
                self._linkless_access = self._policy.linkless
                self._linkless = self._open(ANONYMOUS, self._linkless_access)
            self[ANONYMOUS] = self._linkless  # has an entry, because it is looked up often

    def drop(self) -> None:
        """Drop the handles of all buckets, so that their memory can be freed."""
        self._kept.drop()

    def _open(self, caller: CallerKey, access: Access) -> Handles:
        quota = self._hold_quota(caller, access.quota)
        if access.right is Right.DENIED:
            return Handles(DeniedHandles(), DeniedHandles())
        options = access.limits if quota is None else replace(access.limits, quota=quota)
        readable = OpenedHandles(self._store, self._kept, access, options, self._counting)
        return Handles(readable, readable if access.right is Right.READ_WRITE else DeniedHandles())

    def _hold_quota(self, caller: CallerKey, terms: QuotaTerms | None) -> Quota | None:
        """Add the quota of a caller to the store, in place of the caller's earlier quota."""
        before, quota = self._quotas.pop(caller, None), None
        if terms is not None:
            kind = PlainQuota if terms.is_plain else Quota
            quota = self._quotas[caller] = kind(terms.reach, terms.quota_keys, terms.quota_bytes)
            self._store.add_quota(quota, COUNTED_BUCKETS)
        if before is not None:
            self._store.remove_quota(before)  # last, so that an unchanged reach keeps its counts
        return quota

    def _remove_unused_quota(self, caller: CallerKey) -> None:
        """Remove the quota of a changed caller, unless its next quota will need the same counts."""
        quota = self._quotas.get(caller)
        if quota is not None:
            access = self._policy.access_by_link(caller)
            terms = None if access is None else access.quota
            if terms is None or terms.reach != quota.reach or terms.is_plain != isinstance(quota, PlainQuota):
                del self._quotas[caller]
                self._store.remove_quota(quota)
