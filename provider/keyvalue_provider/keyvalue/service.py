"""The service, which executes `wrpc:keyvalue` calls on bucket handles.

A call looks up its caller's handles once, so a policy change never affects a call in progress.

Only this module translates store errors into interface errors (`_interface_error`). A handle may raise an error
immediately, or when its answer is awaited (`_later`). If any function except get and increment returns an error, a
wasmCloud 1.x host traps the calling component. So the service returns an error only if it must refuse the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from keyvalue_engine import Bucket, Entry, FullError, NoSuchBucketError, Page, Revise, Revision, Store, StoreError
from keyvalue_engine.entry import entry_size
from keyvalue_provider.keyvalue.handles import BucketHandle, BucketStore, CallerHandles, Handles
from keyvalue_provider.keyvalue.names import is_utf8
from keyvalue_provider.keyvalue.policy import CallerKey, Policy
from keyvalue_transport.keyvalue.atomics import IncrementEach
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import AwaitedRun, AwaitedSuccess
from keyvalue_transport.keyvalue.store import KEY_RESPONSE_BYTES, KeyResponse
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Answer, Caller, Derived

__all__ = ["Service"]

S = TypeVar("S")
T = TypeVar("T")

#: Types of answers that are no awaitables. Looking one up is faster than testing for an awaitable.
VALUES = frozenset({bytes, int, bool, tuple, type(None), Page, Revision})


class Service:
    """The functions of `store`, `atomics` and `batch` for one store. Each function may raise an interface error.

    If the store answers immediately, a function returns its value. Otherwise, it returns an awaitable.

    :param policy: the rights of each caller; by default, every caller may do everything
    :param message_bytes_max: returns the limit for a message in bytes; a page of keys is not larger
    :ivar parameter_limits: the limits for request parameters; the policy updates this object in place
    """

    def __init__(
        self, store: BucketStore, policy: Policy | None = None, message_bytes_max: Callable[[], int] = lambda: 2**63
    ) -> None:
        policy = Policy(store.options) if policy is None else policy
        self.parameter_limits = policy.parameter_limits
        self._store = store
        self._handles = CallerHandles(store, policy)
        self._message_bytes_max = message_bytes_max
        #: The number of keys that list-keys left out, because they are not UTF-8.
        self.left_out_keys = 0
        self._policy_changes = 0
        self._paging = asyncio.Lock()
        self._last = self._remember(ANONYMOUS)

    def policy_changed(self, callers: Iterable[CallerKey] | None = None) -> None:
        """Apply the current policy to all later calls. O(callers).

        :param callers: the callers whose access has changed; None means that any access may have changed
        """
        self._handles.policy_changed(callers)
        self._policy_changes += 1  # must precede the next line; see `_remember`
        self._last = self._remember(ANONYMOUS)

    def drop_handles(self) -> None:
        """Drop the handles of all buckets, so that their memory can be freed. Later calls open them again."""
        self._handles.drop()

    def _remember(self, caller: Caller) -> tuple[Caller, Handles]:
        """Remember a caller and its handles, because the next call often has the same caller. Return the pair.

        This makes `get` measurably faster in the end-to-end benchmark.
        """
        while True:
            changes = self._policy_changes
            last = self._last = caller, self._handles[caller]  # one tuple, so that each thread sees a matching pair
            # If the policy changed meanwhile, these handles may be outdated. Look them up again.
            if changes == self._policy_changes:
                return last

    # store

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bytes | None]:
        """Return the value of a key, or None."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        try:
            answer = last[1].readable[bucket].get(key)
        except StoreError as error:
            raise _interface_error(error) from error
        if answer is None or (kind := type(answer)) is bytes or kind is Again:
            return answer
        return _later(answer, None)  # type: ignore[arg-type]

    def get_each(
        self, caller: Caller, bucket: bytes, keys: Sequence[bytes], /
    ) -> Sequence[bytes | None] | Again | None:
        """Return the values of keys. `ReadsTogether` in `transport/.../keyvalue/store.py` describes it."""
        try:
            return self._handles[caller].readable[bucket].get_each(keys)
        except StoreError as error:
            raise _interface_error(error) from error

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]:
        """Store a value."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        try:
            answer = last[1].writable[bucket].set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if answer is None else AwaitedSuccess(answer, _read)

    def set_each(self, caller: Caller, bucket: bytes, keys: Sequence[bytes], values: Sequence[bytes], /) -> int:
        """Store values. `SetsTogether` in `transport/.../keyvalue/store.py` describes it."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        handle = last[1].writable[bucket]
        return handle.set_each(keys, values) if isinstance(handle, Bucket) else 0  # other handles may have to wait

    @property
    def begin_sets(self) -> Callable[[Caller, bytes, Sequence[bytes], Sequence[bytes]], AwaitedRun | None] | None:
        """Return a function that begins sets, or None if the store answers at once. `SetsTogether` describes it."""
        return None if isinstance(self._store, Store) else self._begin_sets

    def _begin_sets(
        self, caller: Caller, bucket: bytes, keys: Sequence[bytes], values: Sequence[bytes]
    ) -> AwaitedRun | None:
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        begin_sets = getattr(last[1].writable[bucket], "begin_sets", None)
        changes = None if begin_sets is None else begin_sets(keys, values)
        return None if changes is None else AwaitedRun(changes, _read)

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]:
        """Remove a key. A missing key is not an error."""
        try:
            answer = self._handles[caller].writable[bucket].delete(key)
        except StoreError as error:
            raise _interface_error(error) from error
        return _later(answer, _nothing) if isinstance(answer, Awaitable) else None

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bool]:
        """Return True if the key exists."""
        try:
            answer = self._handles[caller].readable[bucket].exists(key)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, bool) else _later(answer, None)

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Answer[KeyResponse]:
        """Return the page of keys that starts at the cursor. Its encoded answer fits in a message if its first key does."""
        bytes_max = max(self._message_bytes_max() - KEY_RESPONSE_BYTES, 1)
        try:
            handle = self._handles[caller].readable[bucket]
            answer = handle.partial_page(cursor, None, bytes_max)
        except StoreError as error:
            raise _interface_error(error) from error
        if isinstance(answer, Page):
            response = self._key_response(answer)
            if response.keys or response.cursor is None:
                return response
            return _later(self._rest_of_page(handle, response.cursor, bytes_max), None)
        return _later(answer, self._key_response)

    async def _rest_of_page(self, handle: BucketHandle, cursor: int, bytes_max: int) -> KeyResponse:
        """Return the rest of a page that is empty so far. Other calls are served between two steps of this work."""
        async with self._paging:  # one call at a time, so that many such calls do not delay the others
            while True:
                await asyncio.sleep(0)
                answer = handle.partial_page(cursor, None, bytes_max)
                response = self._key_response(answer if isinstance(answer, Page) else await answer)
                if response.keys or response.cursor is None:
                    return response
                cursor = response.cursor

    def _key_response(self, page: Page) -> KeyResponse:
        """Return a page without the keys that are not UTF-8, because no call over NATS can name them. Count them."""
        keys = page.keys
        if not b"".join(keys).isascii():
            keys = [key for key in keys if is_utf8(key)]
            self.left_out_keys += len(page.keys) - len(keys)
        return KeyResponse(keys, page.cursor)

    # Calls over the Redis protocol alone.

    def set_at_once(self, caller: Caller, bucket: bytes, entries: Iterable[tuple[bytes, bytes]], /) -> bool:
        """Store entries, or return False. `Calls` in `transport/.../redis/surroundings.py` describes it."""
        try:
            handle = self._handles[caller].writable[bucket]
            if not isinstance(handle, Bucket):
                return False
            for key, value in entries:
                handle.set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error
        return True

    def set_for(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, ttl_ms: int, /) -> Answer[None]:
        """Store a value that expires."""
        return _made(partial(self._handles[caller].writable[bucket].set, key, value, ttl_ms))

    def entry(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[Entry | None]:
        """Return the value of a key with its deadline, or None."""
        return _made(partial(self._handles[caller].readable[bucket].entry, key))

    def update(self, caller: Caller, bucket: bytes, key: bytes, revise: Revise, /) -> Answer[Revision]:
        """Replace an entry by what `revise` makes of it."""
        return _made(partial(self._handles[caller].writable[bucket].update, key, revise))

    def remove(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[int]:
        """Remove keys, and return the number of those that existed."""
        return _made(partial(self._handles[caller].writable[bucket].remove, keys))

    def set_missing(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[bool]:
        """Store all entries if all keys are missing. Return True if they were stored."""
        return _made(partial(self._handles[caller].writable[bucket].set_missing, entries))

    def page(self, caller: Caller, bucket: bytes, cursor: int, keys_max: int, bytes_max: int, /) -> Answer[Page]:
        """Return a page of keys, also of those that are not UTF-8. It may be empty although it has a cursor."""
        return _made(partial(self._handles[caller].readable[bucket].partial_page, cursor, keys_max, bytes_max))

    def count_keys(self, caller: Caller, bucket: bytes, /) -> int:
        """Return the number of keys, with expired ones that were not removed yet."""
        return len(self._handles[caller].readable[bucket])

    def now_ns(self) -> int:
        """Return the time of the store's clock."""
        return self._store.now_ns()

    def entry_bytes(self, key: bytes, entry: Entry, /) -> int:
        """Return the memory that an entry takes."""
        return entry_size(key, entry)

    # atomics

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> Answer[int]:
        """Add to a counter and return the sum. A missing counter counts as 0."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        try:
            answer = last[1].writable[bucket].increment(key, delta)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, int) else _later(answer, None)

    @property
    def increment_each(self) -> IncrementEach | None:
        """Return a function that makes increments. `IncrementsTogether` describes it."""
        return self._increment_each if isinstance(self._store, Store) else None

    def _increment_each(
        self, caller: Caller, bucket: bytes, keys: Sequence[bytes], deltas: Sequence[int]
    ) -> Sequence[int]:
        handle = self._handles[caller].writable[bucket]
        return handle.increment_each(keys, deltas) if isinstance(handle, Bucket) else ()

    # batch

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[list[bytes | None]]:
        """Return the values in the order of the keys, with None for each missing key."""
        try:
            answer = self._handles[caller].readable[bucket].get_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, list) else _later(answer, None)

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[None]:
        """Store all entries, or none."""
        try:
            answer = self._handles[caller].writable[bucket].set_many(entries)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if answer is None else _later(answer, None)

    def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[None]:
        """Remove keys. Missing keys are not errors."""
        try:
            answer = self._handles[caller].writable[bucket].delete_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error
        return _later(answer, _nothing) if isinstance(answer, Awaitable) else None


def _made(call: Callable[[], Answer[T]]) -> Answer[T]:
    """Make a call of a handle, and return its answer."""
    try:
        answer = call()
    except StoreError as error:
        raise _interface_error(error) from error
    return _later(answer, None) if type(answer) not in VALUES and isinstance(answer, Awaitable) else answer


def _later(answer: Awaitable[S], convert: Callable[[S], T] | None) -> Derived[T]:
    """Return an awaitable that converts a store's answer, unless `convert` is None, and translates store errors."""
    derive_answer = getattr(answer, "derive", None)  # a DerivedAnswer; testing for the protocol itself takes 10 us

    def derive(read: Callable[[], S]) -> T:
        try:
            value = read() if derive_answer is None else derive_answer(read)
        except StoreError as error:
            raise _interface_error(error) from error
        return value if convert is None else convert(value)  # type: ignore[return-value]

    return Derived(answer if derive_answer is None else answer.source, derive)  # type: ignore[attr-defined]


def _read(read: Callable[[], S]) -> S:
    try:
        return read()
    except StoreError as error:
        raise _interface_error(error) from error


def _interface_error(error: StoreError) -> NoSuchStoreError | OtherError:
    if isinstance(error, NoSuchBucketError):
        return NoSuchStoreError()
    return OtherError(str(error), isinstance(error, FullError))


def _nothing(_: object) -> None:
    return None
