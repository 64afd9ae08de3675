"""The error variant of `wrpc:keyvalue`, which is part of a result. A service raises it, and the client raises it
again.

    variant error { no-such-store, access-denied, other(string) }

`keyvalue_transport.wrpc.errors` has the errors of the peer and the network.
"""

from __future__ import annotations

__all__ = ["AccessDeniedError", "InterfaceError", "NoSuchStoreError", "OtherError"]


class InterfaceError(Exception):
    """Base class of the cases of the variant `error`."""


class NoSuchStoreError(InterfaceError):
    """`no-such-store`: the bucket does not exist."""

    def __init__(self) -> None:
        super().__init__("no such store")


class AccessDeniedError(InterfaceError):
    """`access-denied`: the caller may not do this."""

    def __init__(self) -> None:
        super().__init__("access denied")


class OtherError(InterfaceError):
    """`other(message)`: any other error, as text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
