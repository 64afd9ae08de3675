"""The service: `wrpc:keyvalue/store` carried out on the engine. The only room door between transport and engine.

The one place that turns the engine's errors into the interface's, and (with links, later) a request's caller into what it may do. A
wasmCloud 1.x host traps a component at an error of set, delete, exists or list-keys, so errors are for what must be refused.
"""

from __future__ import annotations

from engine import Bucket, NoSuchBucketError, Store, StoreError
from transport.errors import NoSuchStoreError, OtherError
from transport.handler import Caller
from transport.keyvalue import KeyResponse, ParameterLimits

__all__ = ["Service"]

#: Handles that are kept ready; when there are more, all are forgotten and made anew.
HANDLES_MAX = 1024


class Handles(dict[bytes, Bucket]):
    """Handles by bucket name, made when they are missing."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def __missing__(self, name: bytes) -> Bucket:
        if len(self) >= HANDLES_MAX:
            self.clear()
        handle = self[name] = self._store.bucket(name)
        return handle


class Service:
    """The functions of `store`, over one engine store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._handles = Handles(store)

    @property
    def parameter_limits(self) -> ParameterLimits:
        """Lengths that a request may have: what the store would refuse need not be read."""
        options = self.store.options
        return ParameterLimits(options.bucket_name_bytes_max, options.key_bytes_max, options.value_bytes_max)

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> bytes | None:
        """The value of a key, or None."""
        try:
            return self._handles[bucket].get(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        """Store a value."""
        try:
            self._handles[bucket].set(key, value)
        except StoreError as error:
            raise _interface_error(error) from error

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        """Remove a key; no error where it is not there."""
        try:
            self._handles[bucket].delete(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> bool:
        """Whether a key is there."""
        try:
            return self._handles[bucket].exists(key)
        except StoreError as error:
            raise _interface_error(error) from error

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
        """A page of keys from the cursor on."""
        try:
            page = self._handles[bucket].page(cursor)
        except StoreError as error:
            raise _interface_error(error) from error
        return KeyResponse(page.keys, page.cursor)


def _interface_error(error: StoreError) -> NoSuchStoreError | OtherError:
    if isinstance(error, NoSuchBucketError):
        return NoSuchStoreError()
    return OtherError(str(error))
