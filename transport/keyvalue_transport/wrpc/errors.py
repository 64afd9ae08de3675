"""The errors of the wRPC protocol. An error that a function returns is part of its result, and is not defined here.

TransportError      the peer or the network failed: the invocation or the connection has ended
NeedMoreBytes       not a failure: a decoder needs more bytes

Error messages say what is wrong and what the limit is, but never contain stored values or secrets.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ConnectError",
    "DecodeError",
    "DisconnectedError",
    "InvocationEndedError",
    "InvocationTimeoutError",
    "Length",
    "LengthLimitError",
    "NeedMoreBytes",
    "NoPlaceError",
    "NoProviderError",
    "PermissionDeniedError",
    "TransportError",
]


class TransportError(Exception):
    """Base class of the errors that end an invocation or a connection."""


class DecodeError(TransportError):
    """The bytes are malformed. More bytes would not make them valid."""


class Length(NamedTuple):
    """A length that has a limit, and its wording in error messages.

    :ivar need: message that names the length; {} stands for the number
    :ivar option: the option that sets the limit, or an empty string
    """

    need: str
    option: str = ""


class LengthLimitError(TransportError):
    """A length in the parameters is above its limit. The server answers with the error `other` immediately."""

    def __init__(self, length: Length, found: int, allowed: int) -> None:
        option = length.option and f" ({length.option})"
        super().__init__(f"{length.need.format(found)}; the limit is {allowed}{option}")


class InvocationEndedError(TransportError):
    """The provider ended the invocation without a complete result. It may have failed to read the parameters."""


class InvocationTimeoutError(TransportError, TimeoutError):
    """No complete result arrived before the timeout. The invocation was sent, and may still be executed."""


class NoProviderError(TransportError):
    """No provider is subscribed to the function's subject."""


class PermissionDeniedError(TransportError):
    """NATS does not allow us to publish or subscribe to a subject that the invocation needs."""


class NoPlaceError(TransportError):
    """Too many calls wait for an answer, so this one was refused and has changed nothing.

    :ivar result: the encoded result of the call, or b"" if it ends without one
    """

    def __init__(self, result: bytes = b"") -> None:
        super().__init__()
        self.result = result


class DisconnectedError(TransportError):
    """A message could not be sent, and will not be sent later. The connection to NATS is closed or lost.

    :ivar unsent: the number of messages that were not sent
    """

    def __init__(self, message: str, unsent: int = 1) -> None:
        super().__init__(message)
        self.unsent = unsent


class ConnectError(TransportError):
    """No NATS server was reachable, or every reachable server refused the connection."""


class NeedMoreBytes(Exception):
    """The value is incomplete. More bytes must arrive.

    :ivar end_min: the smallest offset at which the value can end
    """

    def __init__(self, end_min: int) -> None:
        super().__init__(end_min)
        self.end_min = end_min
