"""The functions of `wrpc:keyvalue` as methods, without a connection.

KeyValueCalls ──┬── KeyValueClient (client.py)    over a lasting connection, on an event loop
                └── BlockingClient (blocking.py)  for a process that makes a few calls
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TypeVar

from keyvalue_transport.keyvalue.arguments import Buffer, as_bytes, as_entries, as_keys, as_number, as_text
from keyvalue_transport.keyvalue.atomics import ATOMICS, decode_increment_result, encode_increment
from keyvalue_transport.keyvalue.batch import BATCH, decode_get_many_result, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.interface import decode_unit_result, encode_bucket_key
from keyvalue_transport.keyvalue.store import (
    STORE,
    KeyResponse,
    decode_get_result,
    decode_key_response,
    decode_truth_result,
    encode_list_keys,
    encode_set,
)

__all__ = ["KeyValueCalls"]

T = TypeVar("T")


class KeyValueCalls:
    """The functions of `wrpc:keyvalue`, for a client that can invoke a function. The client defines `_invoke`."""

    async def get(self, bucket: str | bytes, key: str | bytes) -> bytes | None:
        """Return the value of a key, or None."""
        params = encode_bucket_key(as_text("bucket", bucket), as_text("key", key))
        return await self._invoke(STORE, "get", params, decode_get_result)

    async def set(self, bucket: str | bytes, key: str | bytes, value: Buffer) -> None:
        """Store a value."""
        params = encode_set(as_text("bucket", bucket), as_text("key", key), as_bytes("value", value))
        await self._invoke(STORE, "set", params, decode_unit_result)

    async def delete(self, bucket: str | bytes, key: str | bytes) -> None:
        """Remove a key. A missing key is not an error."""
        params = encode_bucket_key(as_text("bucket", bucket), as_text("key", key))
        await self._invoke(STORE, "delete", params, decode_unit_result)

    async def exists(self, bucket: str | bytes, key: str | bytes) -> bool:
        """Return True if the key exists."""
        params = encode_bucket_key(as_text("bucket", bucket), as_text("key", key))
        return await self._invoke(STORE, "exists", params, decode_truth_result)

    async def list_keys(self, bucket: str | bytes, cursor: int | None = None) -> KeyResponse:
        """Return a page of keys as bytes, and the cursor for the next page. On the last page, the cursor is None.

        :param cursor: the cursor that the previous page returned; None for the first page
        """
        params = encode_list_keys(as_text("bucket", bucket), None if cursor is None else as_number("cursor", cursor))
        return await self._invoke(STORE, "list-keys", params, decode_key_response)

    async def keys(self, bucket: str | bytes) -> AsyncIterator[str]:
        """Yield all keys of a bucket as str, in the provider's order.

        With this project's provider, a key that exists during the whole walk is yielded exactly once.
        """
        cursor: int | None = None
        while True:
            page = await self.list_keys(bucket, cursor)
            for key in page.keys:
                yield key.decode()
            cursor = page.cursor
            if cursor is None:
                return

    async def increment(self, bucket: str | bytes, key: str | bytes, delta: int = 1) -> int:
        """Add `delta` to the number stored under a key, and return the sum. A missing key counts as 0."""
        params = encode_increment(as_text("bucket", bucket), as_text("key", key), as_number("delta", delta))
        return await self._invoke(ATOMICS, "increment", params, decode_increment_result)

    async def get_many(self, bucket: str | bytes, keys: Iterable[str | bytes]) -> list[bytes | None]:
        """Return the values of keys in the same order, with None for each missing key."""
        asked = as_keys(keys)
        params = encode_bucket_keys(as_text("bucket", bucket), asked)
        pairs = await self._invoke(BATCH, "get-many", params, decode_get_many_result)
        values = dict(filter(None, pairs))
        return list(map(values.get, asked))

    async def set_many(self, bucket: str | bytes, entries: Mapping[str, Buffer] | Mapping[bytes, Buffer]) -> None:
        """Store a value for each key. This project's provider stores either all values or none."""
        params = encode_set_many(as_text("bucket", bucket), as_entries(entries))
        await self._invoke(BATCH, "set-many", params, decode_unit_result)

    async def delete_many(self, bucket: str | bytes, keys: Iterable[str | bytes]) -> None:
        """Remove keys. Missing keys are ignored."""
        params = encode_bucket_keys(as_text("bucket", bucket), as_keys(keys))
        await self._invoke(BATCH, "delete-many", params, decode_unit_result)

    async def _invoke(
        self, instance: str, function: str, params: bytes, decode: Callable[[bytes, int, int], tuple[T, int]]
    ) -> T:
        """Invoke a function and return its result, or raise the error that it returned."""
        raise NotImplementedError
