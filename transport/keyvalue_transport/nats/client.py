"""A client of `wrpc:keyvalue`.

async with KeyValueClient("nats://127.0.0.1:4222", "default.kv") as client:
    await client.set("bucket", "key", b"value")
    async for key in client.keys("bucket"):
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
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
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, split_urls
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.subjects import check_subject, invocation_subject
from keyvalue_transport.nats.tls import TlsOptions

__all__ = ["KeyValueClient"]

T = TypeVar("T")


class KeyValueClient:
    """A client of `wrpc:keyvalue`. Use it as a context manager, or call `open` and `close`.

    Bucket names and keys are str or UTF-8 bytes. A value is bytes or any other buffer, such as an array, whose bytes
    are copied when the call begins. A call raises TypeError for anything else, and sends nothing.

    If the provider answers with an error, a call raises InterfaceError or a subclass (NoSuchStoreError,
    AccessDeniedError, OtherError). If the transport fails, a call raises TransportError or a subclass, as
    `Invoker.invoke` does. After a DisconnectedError, the provider does not execute the call later. After an
    InvocationTimeoutError, it may have executed the call, or may still do so. `open` raises ConnectError, or ValueError
    if a certificate or key in `tls` is unusable.

    :param nats: comma-separated NATS URLs, or a Connection, which stays open after `close`
    :param prefix: `{lattice}.{provider key}`
    :param source_id: the id of the calling component, sent as a header
    :param link_name: the name of the component's link, sent as a header
    :param timeout_s: the timeout for each call, and for connecting, in seconds
    :param user_jwt: the JWT of a decentralized NATS user; requires `user_seed`
    :param user_seed: the user's seed; without `user_jwt`, the user is an nkey user
    :param tls: certificates; if set, TLS is required, as with a `tls://` URL
    """

    def __init__(
        self,
        nats: str | Connection,
        prefix: str,
        *,
        source_id: str | None = None,
        link_name: str | None = None,
        timeout_s: float = 10.0,
        user_jwt: str = "",
        user_seed: str = "",
        tls: TlsOptions | None = None,
    ) -> None:
        self.prefix = check_subject(prefix, "prefix")
        self.timeout_s = timeout_s
        self._nats: Connection | ConnectionOptions
        self._nats = (
            nats
            if isinstance(nats, Connection)
            else ConnectionOptions(
                split_urls(nats),
                user_jwt=user_jwt,
                user_seed=user_seed,
                open_timeout_s=timeout_s,
                path="plain",  # only a server needs the direct path
                tls=tls,
            )
        )
        self._headers = {
            name: value for name, value in (("source-id", source_id), ("link-name", link_name)) if value is not None
        }
        self._connection: Connection | None = None
        self._invoker: Invoker | None = None

    async def open(self) -> None:
        """Connect to NATS, unless a Connection was given."""
        if isinstance(self._nats, Connection):
            connection = self._nats
        else:
            connection = self._connection = await Connection.open(self._nats)
        self._invoker = Invoker(connection, self._headers)

    async def close(self) -> None:
        """Close the connection, if this client opened it."""
        invoker, self._invoker = self._invoker, None
        if invoker is not None and self._connection is None:
            await invoker.close()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def __aenter__(self) -> KeyValueClient:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

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
        if self._invoker is None:
            raise RuntimeError("the client is not open: use `async with`, or `open`")
        subject = invocation_subject(self.prefix, instance, function)
        return await self._invoker.invoke(subject, params, decode, self.timeout_s)
