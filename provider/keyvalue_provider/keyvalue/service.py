"""The service: `wrpc:keyvalue` carried out on a store's handles.

Every function takes the caller's handles once, and is carried out by them whole. This is the one place that turns the store's errors into the
interface's: `_interface_error`, for what a handle raises at once and for what it raises while it is awaited (`_later`). A wasmCloud 1.x
host traps a component at an error of every function but get and increment, so errors are for what must be refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from keyvalue_engine import NoSuchBucketError, Page, StoreError
from keyvalue_provider.keyvalue.handles import BucketStore, CallerHandles, Handles
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.store import KeyResponse
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, Derived

__all__ = ["Service"]

S = TypeVar("S")
T = TypeVar("T")


class Service:
    """The functions of `store`, `atomics` and `batch`, over one store. Any may raise `AccessDeniedError` and `NoSuchStoreError`.

    An answer is the value where the store gives it at once, else something to wait for.

    :param policy: what each caller may do; unless given, everybody may do everything
    :ivar parameter_limits: lengths that a request may have. One object for ever, whose fields change with the policy
    """

    def __init__(self, store: BucketStore, policy: Policy | None = None) -> None:
        policy = Policy(store.options) if policy is None else policy
        self.parameter_limits = policy.parameter_limits
        self._handles = CallerHandles(store, policy)
        self._policy_changes = 0
        self._last = self._remember(ANONYMOUS)

    def policy_changed(self) -> None:
        """Carry out the calls that come from now on by the policy as it is now. O(callers)."""
        self._handles.policy_changed()
        self._policy_changes += 1  # before the next line: see `_remember`
        self._last = self._remember(ANONYMOUS)

    def _remember(self, caller: Caller) -> tuple[Caller, Handles]:
        """Return a caller with its handles, which are likely to be asked for next: calls come in runs. Pays: bench end-to-end get."""
        while True:
            changes = self._policy_changes
            last = self._last = caller, self._handles[caller]  # in one, so that no thread sees another caller's handles
            # If the policy changed meanwhile, these handles may be the old ones: look again.
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
        return answer if answer is None or type(answer) is bytes else _later(answer, _as_it_is)  # type: ignore[arg-type]

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]:
        """Store a value."""
        last = self._last
        if caller is not last[0]:
            last = self._remember(caller)
        try:
            answer = last[1].writable[bucket].set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if answer is None else _later(answer, _as_it_is)

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]:
        """Remove a key; a missing one is no error."""
        try:
            answer = self._handles[caller].writable[bucket].delete(key)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if isinstance(answer, bool) else _later(answer, _nothing)

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bool]:
        """Return True if the key exists."""
        try:
            answer = self._handles[caller].readable[bucket].exists(key)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, bool) else _later(answer, _as_it_is)

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Answer[KeyResponse]:
        """Return a page of keys from the cursor on."""
        try:
            answer = self._handles[caller].readable[bucket].page(cursor)
        except StoreError as error:
            raise _interface_error(error) from error
        return _key_response(answer) if isinstance(answer, Page) else _later(answer, _key_response)

    # atomics

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> Answer[int]:
        """Add to a counter, which is 0 where it is missing, and return the sum."""
        try:
            answer = self._handles[caller].writable[bucket].increment(key, delta)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, int) else _later(answer, _as_it_is)

    # batch

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[list[bytes | None]]:
        """Return the values in the order of the keys, None for each that is missing."""
        try:
            answer = self._handles[caller].readable[bucket].get_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error
        return answer if isinstance(answer, list) else _later(answer, _as_it_is)

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[None]:
        """Store all of these, or nothing."""
        try:
            answer = self._handles[caller].writable[bucket].set_many(entries)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if answer is None else _later(answer, _as_it_is)

    def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[None]:
        """Remove keys; missing ones are no error."""
        try:
            answer = self._handles[caller].writable[bucket].delete_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error
        return None if isinstance(answer, int) else _later(answer, _nothing)


def _later(answer: Awaitable[S], convert: Callable[[S], T]) -> Derived[T]:
    """Return a store's answer that must be waited for, as the interface's: its value converted, its errors translated."""
    return Derived(answer, partial(_translate, convert))


def _translate(convert: Callable[[S], T], read: Callable[[], S]) -> T:
    try:
        value = read()
    except StoreError as error:
        raise _interface_error(error) from error
    return convert(value)


def _interface_error(error: StoreError) -> NoSuchStoreError | OtherError:
    if isinstance(error, NoSuchBucketError):
        return NoSuchStoreError()
    return OtherError(str(error))


def _as_it_is(value: T) -> T:
    return value


def _nothing(_: object) -> None:
    return None


def _key_response(page: Page) -> KeyResponse:
    return KeyResponse(page.keys, page.cursor)
