"""The service, which executes `wrpc:keyvalue` calls on bucket handles.

A call looks up its caller's handles once, so a policy change never affects a call in progress.

Only this module translates store errors into interface errors (`_interface_error`). A handle may raise an error
immediately, or when its answer is awaited (`_later`). If any function except get and increment returns an error, a
wasmCloud 1.x host traps the calling component. So the service returns an error only if it must refuse the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from keyvalue_engine import NoSuchBucketError, Page, StoreError
from keyvalue_provider.keyvalue.handles import BucketHandle, BucketStore, CallerHandles, Handles
from keyvalue_provider.keyvalue.policy import CallerKey, Policy
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.store import KEY_RESPONSE_BYTES, KeyResponse
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Answer, Caller, Derived

__all__ = ["Service"]

S = TypeVar("S")
T = TypeVar("T")


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
        self._handles = CallerHandles(store, policy)
        self._message_bytes_max = message_bytes_max
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

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]:
        """Store a value."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        try:
            answer = last[1].writable[bucket].set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if answer is None else Derived(answer, _read)

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
            if answer.keys or answer.cursor is None:
                return _key_response(answer)
            answer = self._rest_of_page(handle, answer.cursor, bytes_max)
        return _later(answer, _key_response)

    async def _rest_of_page(self, handle: BucketHandle, cursor: int, bytes_max: int) -> Page:
        """Return the rest of a page that is empty so far. Other calls are served between two steps of this work."""
        async with self._paging:  # one call at a time, so that many such calls do not delay the others
            while True:
                await asyncio.sleep(0)
                answer = handle.partial_page(cursor, None, bytes_max)
                page = answer if isinstance(answer, Page) else await answer
                if page.keys or page.cursor is None:
                    return page
                cursor = page.cursor

    # atomics

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> Answer[int]:
        """Add to a counter and return the sum. A missing counter counts as 0."""
        try:
            answer = self._handles[caller].writable[bucket].increment(key, delta)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, int) else _later(answer, None)

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
    return OtherError(str(error))


def _nothing(_: object) -> None:
    return None


def _key_response(page: Page) -> KeyResponse:
    return KeyResponse(page.keys, page.cursor)
