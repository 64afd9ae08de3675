"""The transport: wRPC over NATS, for servers and clients. It does not depend on the engine, wasmCloud hosts or metrics.

    wrpc/      wRPC without I/O: the encoding of values, and the lifecycle of an invocation
    keyvalue/  the interfaces of `wrpc:keyvalue`, without I/O
    nats/      the connection to NATS, the server and the client

A program that calls a provider needs only the names below. Each name is imported on first use, so you can use
`wrpc/` and `keyvalue/` without loading nats-py.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
    from keyvalue_transport.keyvalue.store import KeyResponse
    from keyvalue_transport.nats.client import KeyValueClient
    from keyvalue_transport.nats.connection import Connection, ConnectionOptions
    from keyvalue_transport.nats.tls import TlsOptions
    from keyvalue_transport.wrpc.errors import (
        ConnectError,
        DecodeError,
        DisconnectedError,
        InvocationEndedError,
        InvocationTimeoutError,
        NoProviderError,
        PermissionDeniedError,
        TransportError,
    )

__all__ = [
    "AccessDeniedError",
    "ConnectError",
    "Connection",
    "ConnectionOptions",
    "DecodeError",
    "DisconnectedError",
    "InterfaceError",
    "InvocationEndedError",
    "InvocationTimeoutError",
    "KeyResponse",
    "KeyValueClient",
    "NoProviderError",
    "NoSuchStoreError",
    "OtherError",
    "PermissionDeniedError",
    "TlsOptions",
    "TransportError",
]

#: The module that defines each name.
_MODULES = {
    "AccessDeniedError": "keyvalue.errors",
    "ConnectError": "wrpc.errors",
    "Connection": "nats.connection",
    "ConnectionOptions": "nats.connection",
    "DecodeError": "wrpc.errors",
    "DisconnectedError": "wrpc.errors",
    "InterfaceError": "keyvalue.errors",
    "InvocationEndedError": "wrpc.errors",
    "InvocationTimeoutError": "wrpc.errors",
    "KeyResponse": "keyvalue.store",
    "KeyValueClient": "nats.client",
    "NoProviderError": "wrpc.errors",
    "NoSuchStoreError": "keyvalue.errors",
    "OtherError": "keyvalue.errors",
    "PermissionDeniedError": "wrpc.errors",
    "TlsOptions": "nats.tls",
    "TransportError": "wrpc.errors",
}


if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts any name

    def __getattr__(name: str) -> object:
        """Import a public name from its module on first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the names that can be imported."""
    return sorted({*globals(), *__all__})
