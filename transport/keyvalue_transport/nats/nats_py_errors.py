"""nats-py's errors: what they say, in words for people, and what they mean for a connection.

The one place that matches nats-py's texts. Its errors have classes of their own where it found the fault, and are `nats.errors.Error` with a
text where the server told it: "nats: " and the server's words. tests/transport/nats/test_nats_py_errors.py provokes those that are matched.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto

import nats.errors

from keyvalue_transport.nats.tls import tls_refusal

__all__ = ["ATTEMPT_TIMEOUT_S", "ErrorKind", "kind_of", "refusal_of", "text_of"]

#: How long nats-py waits for a server's greeting. It raises a TimeoutError then, and nowhere else that has no text.
ATTEMPT_TIMEOUT_S = 2
TEXT_CHARACTERS_MAX = 256


class ErrorKind(Enum):
    """What an error that nats-py reports is about."""

    SUBSCRIPTION_DENIED = auto()  # the server does not permit a subject
    PUBLISH_DENIED = auto()  # the same, of a message that was sent
    STREAM_ENDED = auto()
    CONNECTION = auto()  # other errors of nats-py, of the system and of time
    CALLBACK = auto()  # what a subscription's callback raised


def kind_of(error: BaseException) -> ErrorKind:
    """Return what an error that nats-py reported is about."""
    text = str(error).lower()
    match error:
        case nats.errors.Error() if "permissions violation for subscription" in text:
            return ErrorKind.SUBSCRIPTION_DENIED
        case nats.errors.Error() if "permissions violation" in text:
            return ErrorKind.PUBLISH_DENIED
        case nats.errors.UnexpectedEOF():
            return ErrorKind.STREAM_ENDED
        case nats.errors.Error() | OSError() | asyncio.TimeoutError():
            return ErrorKind.CONNECTION
    return ErrorKind.CALLBACK


def text_of(error: BaseException | None) -> str:
    """Return what happened, for people: nats-py's errors often say little. None: nothing did."""
    if error is None:
        return "no answer"
    if (refusal := tls_refusal(error)) is not None:
        return refusal
    if isinstance(error, asyncio.TimeoutError):
        return f"no greeting of a NATS server within {ATTEMPT_TIMEOUT_S} s"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = " ".join(str(error).removeprefix("nats: ").split())
    if not isinstance(error, nats.errors.Error) or "info message" in text.lower():
        return "what listens there is not a NATS server"
    return text[:TEXT_CHARACTERS_MAX] or type(error).__name__


def refusal_of(error: BaseException) -> str | None:
    """Return why a server does not take us, or we not it, where the next attempt would end the same; None for all other errors."""
    text = text_of(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return f"the NATS server refuses the connection: {text}"
    return tls_refusal(error)
