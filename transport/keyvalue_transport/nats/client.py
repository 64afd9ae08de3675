"""A client of `wrpc:keyvalue`.

async with KeyValueClient("nats://127.0.0.1:4222", "default.kv") as client:
    await client.set("bucket", "key", b"value")
    async for key in client.keys("bucket"):
        ...
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from keyvalue_transport.nats.calls import KeyValueCalls
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, split_urls
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.subjects import check_subject, invocation_subject
from keyvalue_transport.nats.tls import TlsOptions

__all__ = ["KeyValueClient"]

T = TypeVar("T")


class KeyValueClient(KeyValueCalls):
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

    async def _invoke(
        self, instance: str, function: str, params: bytes, decode: Callable[[bytes, int, int], tuple[T, int]]
    ) -> T:
        if self._invoker is None:
            raise RuntimeError("the client is not open: use `async with`, or `open`")
        subject = invocation_subject(self.prefix, instance, function)
        return await self._invoker.invoke(subject, params, decode, self.timeout_s)
