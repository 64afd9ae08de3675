"""Readable messages for nats-py's errors, and how a connection must react to each error.

Only this module depends on the wording of nats-py's errors. nats-py has an exception class for each error that it
detects itself. If the server reports an error, nats-py raises `nats.errors.Error` with "nats: " and the server's
message. tests/transport/nats/test_nats_py_errors.py provokes each error that this module recognizes by its wording.
"""

from __future__ import annotations

import asyncio
import re
from enum import Enum, auto

import nats.errors

from keyvalue_transport.nats.tls import tls_refusal

__all__ = [
    "ATTEMPT_TIMEOUT_S",
    "ErrorKind",
    "denied_subject",
    "is_about_one_message",
    "kind_of",
    "refusal_of",
    "text_of",
]

#: Seconds that nats-py waits for a server's INFO. No other timeout raises a TimeoutError without a message.
ATTEMPT_TIMEOUT_S = 2
TEXT_CHARACTERS_MAX = 256
DENIED_SUBJECT = re.compile(r'permissions violation for (?:publish|subscription) to "([^"]*)"')
PERMISSIONS = "permissions violation"
#: The server's error for a message whose subject has a wildcard or an empty token. Callers choose our subjects.
#: nats-py would close the client.
INVALID_SUBJECT = "invalid publish subject"


class ErrorKind(Enum):
    """The kind of an error that nats-py reports."""

    SUBSCRIPTION_DENIED = auto()  # the server does not permit a subscription
    PUBLISH_DENIED = auto()  # the server does not permit a message on this subject, or it is no subject
    STREAM_ENDED = auto()
    CONNECTION = auto()  # other nats-py errors, system errors, and timeouts
    CALLBACK = auto()  # raised by a subscription's callback


def kind_of(error: BaseException) -> ErrorKind:
    """Return the kind of an error that nats-py reported."""
    text = str(error).lower()
    match error:
        case nats.errors.Error() if INVALID_SUBJECT in text:
            return ErrorKind.PUBLISH_DENIED
        case nats.errors.Error() if "permissions violation for subscription" in text:
            return ErrorKind.SUBSCRIPTION_DENIED
        case nats.errors.Error() if PERMISSIONS in text:
            return ErrorKind.PUBLISH_DENIED
        case nats.errors.UnexpectedEOF():
            return ErrorKind.STREAM_ENDED
        case nats.errors.Error() | OSError() | asyncio.TimeoutError():
            return ErrorKind.CONNECTION
    return ErrorKind.CALLBACK


def denied_subject(error: BaseException) -> str | None:
    """Return the subject that the server does not permit, or None. nats-py makes it lowercase."""
    found = DENIED_SUBJECT.search(str(error).lower())
    return None if found is None else found[1]


def is_about_one_message(text: str) -> bool:
    """Return True if the server refuses one message or subscription, and keeps the connection open."""
    text = text.lower()
    return INVALID_SUBJECT in text or PERMISSIONS in text


def text_of(error: BaseException | None) -> str:
    """Return a readable message for an error, because nats-py's own messages often say little.

    :param error: the error, or None if no server answered
    """
    if error is None:
        return "no answer"
    if (refusal := tls_refusal(error)) is not None:
        return refusal
    if isinstance(error, asyncio.TimeoutError):
        return f"no greeting from a NATS server within {ATTEMPT_TIMEOUT_S} s"
    if isinstance(error, nats.errors.OutboundBufferLimitError):
        return "the connection is lost"  # because nothing may wait for the next one
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = " ".join(str(error).removeprefix("nats: ").split())
    if not isinstance(error, nats.errors.Error) or "info message" in text.lower():
        return "the listener there is not a NATS server"
    return text[:TEXT_CHARACTERS_MAX] or type(error).__name__


def refusal_of(error: BaseException) -> str | None:
    """Return why the connection is refused, or None if another attempt may succeed."""
    text = text_of(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return f"the NATS server refuses the connection: {text}"
    return tls_refusal(error)
