"""The service: `wrpc:keyvalue` carried out on the engine. The only room door between transport and engine.

Every function takes the caller's access once, and is carried out by it whole. The one place that turns the engine's errors into the
interface's. A wasmCloud 1.x host traps a component at an error of every function but get and increment, so errors are for what must be refused.
"""

from __future__ import annotations

from keyvalue_engine import NoSuchBucketError, Store, StoreError
from keyvalue_provider.keyvalue.access import Accesses
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.store import KeyResponse
from keyvalue_transport.wrpc.handler import Caller

__all__ = ["Service"]


class Service:
    """The functions of `store`, `atomics` and `batch`, over one engine store. Any may raise `AccessDeniedError` and `NoSuchStoreError`.

    :param accesses: what each caller may do; unless given, everybody may do everything
    """

    def __init__(self, store: Store, accesses: Accesses | None = None) -> None:
        accesses = Accesses(store) if accesses is None else accesses
        self.store = store
        #: Lengths that a request may have. One object for ever, which changes with the links.
        self.parameter_limits = accesses.parameter_limits
        self._accesses = accesses

    # store

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> bytes | None:
        """The value of a key, or None."""
        try:
            return self._accesses[caller].readable[bucket].get(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        """Store a value."""
        try:
            self._accesses[caller].writable[bucket].set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        """Remove a key; no error where it is not there."""
        try:
            self._accesses[caller].writable[bucket].delete(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> bool:
        """Whether a key is there."""
        try:
            return self._accesses[caller].readable[bucket].exists(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
        """A page of keys from the cursor on."""
        try:
            page = self._accesses[caller].readable[bucket].page(cursor)
        except StoreError as error:
            raise _interface_error(error) from error
        return KeyResponse(page.keys, page.cursor)

    # atomics

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> int:
        """Add to a counter, which is 0 where it is not there; the sum."""
        try:
            return self._accesses[caller].writable[bucket].increment(key, delta)
        except StoreError as error:
            raise _interface_error(error) from error

    # batch

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> list[bytes | None]:
        """The values in the order of the keys, None for each that is not there."""
        try:
            return self._accesses[caller].readable[bucket].get_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> None:
        """Store all of these, or nothing."""
        try:
            self._accesses[caller].writable[bucket].set_many(entries)
        except StoreError as error:
            raise _interface_error(error) from error

    def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> None:
        """Remove keys; no error where one is not there."""
        try:
            self._accesses[caller].writable[bucket].delete_many(keys)
        except StoreError as error:
            raise _interface_error(error) from error


def _interface_error(error: StoreError) -> NoSuchStoreError | OtherError:
    if isinstance(error, NoSuchBucketError):
        return NoSuchStoreError()
    return OtherError(str(error))
