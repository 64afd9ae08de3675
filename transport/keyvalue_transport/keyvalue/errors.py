"""The error variant of `wrpc:keyvalue`: in band, typed, part of a result. A service raises one; a client that gets one raises it.

    variant error { no-such-store, access-denied, other(string) }

The errors of a peer or the network are those of `keyvalue_transport.wrpc.errors`.
"""

from __future__ import annotations

__all__ = ["AccessDeniedError", "InterfaceError", "NoSuchStoreError", "OtherError"]


class InterfaceError(Exception):
    """`wrpc:keyvalue`'s variant `error`."""


class NoSuchStoreError(InterfaceError):
    """`no-such-store`: the bucket is not known."""

    def __init__(self) -> None:
        super().__init__("no such store")


class AccessDeniedError(InterfaceError):
    """`access-denied`: the caller may not do this."""

    def __init__(self) -> None:
        super().__init__("access denied")


class OtherError(InterfaceError):
    """`other(message)`: anything else, in words."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
