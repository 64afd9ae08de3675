"""Exceptions for the cases of the variant `error` in `wrpc:keyvalue`.

    variant error { no-such-store, access-denied, other(string) }

A service raises one of these exceptions. The server sends the error in the result, and the client raises the same
exception. `keyvalue_transport.wrpc.errors` defines the errors that the peer or the network causes.
"""

from __future__ import annotations

__all__ = ["AccessDeniedError", "InterfaceError", "NoSuchStoreError", "OtherError"]


class InterfaceError(Exception):
    """Base class of these exceptions."""


class NoSuchStoreError(InterfaceError):
    """`no-such-store`: the bucket does not exist."""

    def __init__(self) -> None:
        super().__init__("no such store")


class AccessDeniedError(InterfaceError):
    """`access-denied`: the caller has no permission for this call."""

    def __init__(self) -> None:
        super().__init__("access denied")


class OtherError(InterfaceError):
    """`other(message)`: any other error. `message` describes it.

    :ivar is_full: True if a write would exceed a limit for keys or memory; it is not sent
    """

    def __init__(self, message: str, is_full: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.is_full = is_full
