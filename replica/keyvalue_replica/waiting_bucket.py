"""The handles of a KV bucket that is not served now, or never."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from keyvalue_engine import BucketOptions, NoSuchBucketError, Page, Revise, Revision, StoreError
from keyvalue_engine.entry import Entry
from keyvalue_replica.bucket import ReplicaBucket
from keyvalue_replica.promise import Promise

__all__ = ["Opener", "RefusingBucket", "WaitingBucket"]


class Opener(Protocol):
    """Someone who opens KV buckets."""

    async def opened(self, place: Any, options: BucketOptions, creates: bool, /) -> ReplicaBucket | None:
        """Return the handle of a KV bucket once it is served, or None if it does not exist but might be created."""

    def rehearse(self, place: Any, options: BucketOptions, write: Callable[[ReplicaBucket], Any], /) -> Promise | None:
        """Return the answer to a write that changes nothing in a missing KV bucket, or raise the error that refuses it."""


class WaitingBucket:
    """A handle whose calls wait until the KV bucket is served. It has the methods of `ReplicaBucket`.

    A read of a KV bucket that does not exist yet finds nothing. A write creates it, unless it changes nothing.
    """

    def __init__(self, opener: Opener, place: Any, options: BucketOptions) -> None:
        self._opener = opener
        self._place = place
        self._options = options

    async def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        found: list[bytes | None] = await self._read(lambda handle: handle.get_many([key]), [None])
        return found[0]

    def get_each(self, keys: Sequence[bytes]) -> None:
        """Return None, because each `get` must wait on its own."""

    async def exists(self, key: bytes) -> bool:
        """Return True if the key exists."""
        return bool(await self._read(lambda handle: handle.exists(key), False))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values in the order of the keys, with None for each missing key."""
        found: list[bytes | None] = await self._read(lambda handle: handle.get_many(keys), [None] * len(keys))
        return found

    async def partial_page(self, cursor: int | None, keys_max: int | None, bytes_max: int) -> Page:
        """Return a page."""
        page: Page = await self._read(lambda handle: handle.partial_page(cursor, keys_max, bytes_max), Page([], None))
        return page

    async def entry(self, key: bytes) -> Entry | None:
        """Return the value of a key with its deadline, or None."""
        found: Entry | None = await self._read(lambda handle: handle.entry(key), None)
        return found

    def __len__(self) -> int:
        """Return 0, because no key has arrived yet."""
        return 0

    async def set(self, key: bytes, value: bytes, ttl_ms: int | None = None) -> None:
        """Store a value."""
        await self._write(lambda handle: handle.set(key, value, ttl_ms))

    async def update(self, key: bytes, revise: Revise) -> Revision:
        """Replace the entry of a key by what `revise` makes of it."""
        revision: Revision = await self._write(lambda handle: handle.update(key, revise))
        return revision

    async def remove(self, keys: Sequence[bytes]) -> int:
        """Remove keys. Return the number of those that existed."""
        return int(await self._read(lambda handle: handle.remove(keys), 0))

    async def set_missing(self, entries: Mapping[bytes, bytes]) -> bool:
        """Store all entries if all keys are missing. Return True if they were stored."""
        return bool(await self._write(lambda handle: handle.set_missing(entries)))

    async def delete(self, key: bytes) -> None:
        """Remove a key."""
        await self._read(lambda handle: handle.delete(key), None)

    async def increment(self, key: bytes, delta: int) -> int:
        """Add to a counter. Return the sum."""
        return int(await self._write(lambda handle: handle.increment(key, delta)))

    async def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Store all entries or none."""
        await self._write(lambda handle: handle.set_many(entries))

    async def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove keys."""
        await self._read(lambda handle: handle.delete_many(keys), None)

    async def _read(self, call: Callable[[ReplicaBucket], Any], absent: Any) -> Any:
        handle = await self._opener.opened(self._place, self._options, False)
        if handle is not None:
            return await _value_of(call(handle))
        if self._options.strict_buckets:
            raise NoSuchBucketError(self._place.name)
        return absent

    async def _write(self, call: Callable[[ReplicaBucket], Any]) -> Any:
        handle = await self._opener.opened(self._place, self._options, False)
        if handle is None:
            answer = self._opener.rehearse(self._place, self._options, call)
            if answer is not None:
                return answer.result()
            handle = await self._opener.opened(self._place, self._options, True)
            assert handle is not None
        return await _value_of(call(handle))


async def _value_of(answer: Any) -> Any:
    return await answer if isinstance(answer, Awaitable) else answer


class RefusingBucket:
    """A handle that refuses every call.

    :param error: the reason
    """

    def __init__(self, error: StoreError) -> None:
        self._error = error

    def _refuse(self, *_: object) -> NoReturn:
        raise self._error

    get = get_each = exists = get_many = partial_page = set = delete = increment = set_many = delete_many = _refuse
    entry = update = remove = set_missing = _refuse

    def __len__(self) -> int:
        return 0
