"""The messages that answer an invocation over NATS (wRPC 0.0.1), as the plain path publishes them.

    accept   PUB R_c           empty, with reply subject R_s. If more pieces are expected, R_s is the server's inbox.
                               Otherwise R_s has no subscribers, because only the client's closing message follows
    result   PUB R_c.results   pieces of at most max_payload bytes
    end      PUB R_c.results   empty

The direct path writes the same messages as frames (`direct/answers.py`).
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
    """A connection with a limit for the size of messages. The limit may change with each reconnect."""

    @property
    def max_payload(self) -> int:
        """Return the current server's limit for the size of a message in bytes."""


class SubjectReplies:
    """A builder of the messages that answer an invocation. `reply` is the invocation's reply subject R_c."""

    __slots__ = ("_connection", "_inbox", "_nobody")

    def __init__(self, inbox: str, nobody: str, connection: Limited) -> None:
        self._inbox = inbox
        self._nobody = nobody
        self._connection = connection

    def accept(self, reply: str, token: str | None) -> list[Send]:
        """Return the handshake. With a token, it asks the client for the remaining pieces of cut parameters."""
        return [Send(reply, b"", self._nobody if token is None else f"{self._inbox}.{token}")]

    def result(self, reply: str, result: bytes) -> list[Send]:
        """Return the pieces of a result and the end."""
        subject, size = results_subject(reply), self._connection.max_payload
        return [*(Send(subject, result[at : at + size]) for at in range(0, len(result), size)), Send(subject, b"")]

    def end(self, reply: str) -> list[Send]:
        """Return the message that ends the invocation."""
        return [Send(results_subject(reply), b"")]
