"""The messages that answer an invocation over NATS (wRPC 0.0.1), as the plain path publishes them.

    accept   PUB R_c           reply R_s, empty. R_s is an inbox of the server if more pieces are expected.
                               Otherwise nobody listens to R_s: a client sends its closing message in any case
    result   PUB R_c.results   pieces of at most max_payload bytes
    end      PUB R_c.results   empty

The direct path makes frames of the same messages (`direct/answers.py`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from keyvalue_transport.nats.subjects import results_subject

__all__ = ["Send", "SubjectReplies"]


class Send(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    reply: str = ""


class Limited(Protocol):
    """A connection. Its server, and so the limit, may change at a reconnect."""

    @property
    def max_payload(self) -> int:
        """Return the current server's limit for the bytes of a message."""


class SubjectReplies:
    """Makes the messages that answer an invocation with the reply subject R_c."""

    __slots__ = ("_connection", "_inbox", "_nobody")

    def __init__(self, inbox: str, nobody: str, connection: Limited) -> None:
        self._inbox = inbox
        self._nobody = nobody
        self._connection = connection

    def accept(self, reply: str, token: str | None) -> list[Send]:
        """Return the handshake."""
        return [Send(reply, b"", self._nobody if token is None else f"{self._inbox}.{token}")]

    def result(self, reply: str, result: bytes) -> list[Send]:
        """Return the pieces of a result."""
        subject, size = results_subject(reply), self._connection.max_payload
        return [Send(subject, result[at : at + size]) for at in range(0, len(result), size)]

    def end(self, reply: str) -> list[Send]:
        """Return the message that ends the invocation."""
        return [Send(results_subject(reply), b"")]
