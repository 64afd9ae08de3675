"""The errors of wRPC. They are never mixed with those of an interface, which are in band: typed, and part of a result.

TransportError      the peer's or the network's: this invocation has ended, or this connection.
NeedMoreBytes       no error at all: a decoder's word that the value goes on.

Messages give what was found and what is allowed, and never a value or a secret.
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
    "NoProviderError",
    "TransportError",
]


class TransportError(Exception):
    """Base of what ends an invocation or a connection below the interface."""


class DecodeError(TransportError):
    """The bytes are no value of the type, whatever would follow them."""


class Length(NamedTuple):
    """A length with a limit, for error texts: what was found, with {} for the number, and the option that sets the limit, if any."""

    need: str
    option: str = ""


class LengthLimitError(TransportError):
    """A length in the parameters passes a limit. The call is answered with `other` before the announced bytes arrive."""

    def __init__(self, length: Length, found: int, allowed: int) -> None:
        option = length.option and f" ({length.option})"
        super().__init__(f"{length.need.format(found)}; the limit is {allowed}{option}")


class InvocationEndedError(TransportError):
    """The provider closed the result stream before a whole result: it could not read the parameters, or failed."""


class InvocationTimeoutError(TransportError, TimeoutError):
    """No whole result came in time. The provider may have carried out the invocation all the same."""


class NoProviderError(TransportError):
    """Nobody listens on the subject of the function."""


class DisconnectedError(TransportError):
    """The message could not be sent: the connection to NATS is closed, or down and its buffer full.

    :ivar unsent: how many messages, where it were several
    """

    def __init__(self, message: str, unsent: int = 1) -> None:
        super().__init__(message)
        self.unsent = unsent


class ConnectError(TransportError):
    """No NATS server could be reached, or none that lets us in."""


class NeedMoreBytes(Exception):
    """The value goes on behind the bytes that are there: `end_min` is the least offset at which it can end."""

    def __init__(self, end_min: int) -> None:
        super().__init__(end_min)
        self.end_min = end_min
