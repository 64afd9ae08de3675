"""A client for a process that makes a few calls and ends. It blocks, and loads neither asyncio nor nats-py.

Importing these takes 100 ms, and a call takes less than 1 ms. This client does only what an undisturbed call needs. For
anything else it raises `GiveWayError` before the provider can have executed anything, and the process uses
`KeyValueClient` instead:

    open ──> INFO ──> CONNECT, SUB, PING ──> PONG ──> calls, one at a time
      │        │                              │         │
      │        │ TLS, malformed               │ -ERR    │ -ERR: a subject of the call is not allowed
      └────────┴──────────────────────────────┴─────────┴──> GiveWayError
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from keyvalue_transport.nats.calls import KeyValueCalls
from keyvalue_transport.nats.direct.frames import PONG, Line, MessageFrame, NotNatsError, max_payload_of, read_frame
from keyvalue_transport.nats.headers import CRLF
from keyvalue_transport.nats.subjects import check_subject, invocation_subject, params_subject
from keyvalue_transport.nats.urls import login_of, requires_tls
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import InvocationTimeoutError, NoProviderError, TransportError

__all__ = ["BlockingClient", "BlockingConnection", "GiveWayError"]

T = TypeVar("T")

INFO = b"INFO "
READ_BYTES = 256 * 1024
#: Seconds until another client tries, which knows how to wait.
CONNECT_TIMEOUT_S = 2.0
#: The limit of a NATS server for the size of a message.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
NO_RESPONDERS = b" 503"
#: The login options of CONNECT, by their names in `login_of`.
LOGIN_FIELDS = {"user": "user", "password": "pass", "token": "auth_token"}


class GiveWayError(Exception):
    """The blocking client cannot make the call. The provider has not executed it."""


class Arrived(NamedTuple):
    """A message.

    :ivar reply: the subject for replies, or ""
    :ivar header: the header block, or b""
    """

    subject: str
    reply: str
    header: bytes
    payload: bytes


class BlockingConnection:
    """A connection to a NATS server without TLS. Use it as a context manager.

    :param url: a URL from `split_urls`
    :raises GiveWayError: the server is not reachable, needs TLS, or refuses the login
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        if requires_tls((url,)):
            raise GiveWayError("TLS is required")
        self._buffer = b""
        self._inbox = f"_INBOX.{os.urandom(16).hex()}"
        self._calls = 0
        self._is_connected = False
        self._deadline_s = monotonic() + min(timeout_s, CONNECT_TIMEOUT_S)
        self.max_payload = 0
        parts = urlsplit(url)
        host = parts.hostname or ""
        # Given as bytes, a name needs no module for international names.
        address = host.encode() if host.isascii() else host
        try:
            self._socket = socket.create_connection(
                (address, parts.port),  # type: ignore[arg-type] # typeshed lacks a host as bytes
                min(timeout_s, CONNECT_TIMEOUT_S),
            )
        except OSError as error:
            raise GiveWayError(str(error)) from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._handshake(url)
        except (GiveWayError, OSError) as error:
            self.close()
            raise GiveWayError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> BlockingConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[T, int]],
        timeout_s: float,
        header: bytes = b"",
    ) -> T:
        """Invoke a function and return its result.

        :param header: a header block, or b""
        :raises GiveWayError: NATS does not allow the call
        :raises Exception: as `Invoker.invoke` does
        """
        inbox = self._next_inbox()
        room = self.max_payload - len(header) - len(subject.encode()) - len(inbox)
        call = Call(params, decode, room, self.max_payload)
        self._deadline_s = monotonic() + timeout_s
        try:
            self._publish(subject, inbox, header, call.start())
            while not call.done:
                arrived = self._next_message()
                if arrived.subject == f"{inbox}.results":
                    call.result(arrived.payload)
                elif arrived.subject == inbox and arrived.reply:
                    for piece in call.accepted():
                        self._publish(params_subject(arrived.reply), "", b"", piece)
                elif arrived.subject == inbox and is_no_responders(arrived):
                    reason = "nobody serves this function: is the provider running, and is the prefix right?"
                    raise NoProviderError(reason)
        except TimeoutError:
            raise InvocationTimeoutError(f"{subject}: no result within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise lost(subject, str(error)) from error
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value] # the call is done and has no error

    def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Send a message and return the first reply.

        :raises TimeoutError: no reply arrived in time, or the subject has no subscribers
        :raises GiveWayError: NATS does not allow the request
        """
        inbox = self._next_inbox()
        self._deadline_s = monotonic() + timeout_s
        try:
            self._publish(subject, inbox, b"", payload)
            while (arrived := self._next_message()).subject != inbox:
                pass
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise lost(subject, str(error)) from error
        if is_no_responders(arrived):
            raise TimeoutError(f"nobody listens to {subject}")
        return arrived.payload

    def _next_inbox(self) -> str:
        self._calls += 1
        return f"{self._inbox}.{self._calls:x}"

    def _handshake(self, url: str) -> None:
        """Exchange INFO and CONNECT, and subscribe to the inbox. Wait until the server has accepted both."""
        line = self._next()
        if isinstance(line, Arrived) or not line.startswith(INFO) or (max_payload := max_payload_of(line)) is None:
            raise GiveWayError("the server sent no INFO")
        self.max_payload = max_payload
        if json.loads(line[len(INFO) :]).get("tls_required"):
            raise GiveWayError("the server requires TLS")
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
        }
        options |= {LOGIN_FIELDS[name]: value for name, value in login_of((url,)).items()}
        self._send(f"CONNECT {json.dumps(options)}\r\nSUB {self._inbox}.> 1\r\nPING\r\n".encode())
        while self._next() != PONG:
            pass
        self._is_connected = True

    def _publish(self, subject: str, reply: str, header: bytes, payload: bytes) -> None:
        sizes = f"{len(header)} {len(header) + len(payload)}" if header else f"{len(payload)}"
        line = f"{'HPUB' if header else 'PUB'} {subject} {f'{reply} ' if reply else ''}{sizes}\r\n"
        self._send(b"".join((line.encode(), header, payload, CRLF)))

    def _send(self, frames: bytes) -> None:
        self._socket.settimeout(self._left_s())
        self._socket.sendall(frames)

    def _left_s(self) -> float:
        left_s = self._deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _next_message(self) -> Arrived:
        while not isinstance(arrived := self._next(), Arrived):
            pass
        return arrived

    def _next(self) -> Arrived | bytes:
        """Return the next message or line from the server. Answer a PING.

        :raises GiveWayError: the server does not allow our subscription or our message
        """
        while True:
            try:
                frame = read_frame(self._buffer, 0, len(self._buffer), MESSAGE_BYTES_MAX)
            except NotNatsError:
                raise ConnectionResetError("the server sent bytes that are not of NATS") from None
            if isinstance(frame, MessageFrame):
                header, payload = (
                    self._buffer[frame.headers_at : frame.payload_at],
                    self._buffer[frame.payload_at : frame.payload_end],
                )
                self._buffer = self._buffer[frame.payload_end + len(CRLF) :]
                return Arrived(frame.words[1].decode(), frame.reply.decode(), header, payload)
            if isinstance(frame, Line):
                line, self._buffer = self._buffer[: frame.end - len(CRLF)], self._buffer[frame.end :]
                if line == b"PING":
                    self._send(b"PONG\r\n")
                elif line.startswith(b"-ERR"):
                    self._refuse(line.decode(errors="replace"))
                else:
                    return line
            else:
                self._read()

    def _refuse(self, text: str) -> None:
        """Raise the exception for an error from the server."""
        if not self._is_connected or "permissions violation" in text.lower():
            raise GiveWayError(text)
        raise ConnectionResetError(text)

    def _read(self) -> None:
        self._socket.settimeout(self._left_s())
        received = self._socket.recv(READ_BYTES)
        if not received:
            raise ConnectionResetError("the NATS server closed the connection")
        self._buffer += received


class BlockingClient(KeyValueCalls):
    """A client over a blocking connection. Its methods never suspend, so `run` can execute a coroutine that calls them.

    :param prefix: `{lattice}.{provider key}`
    :param headers: headers to send with every call
    """

    def __init__(
        self, connection: BlockingConnection, prefix: str, headers: dict[str, str], timeout_s: float = 10.0
    ) -> None:
        self.prefix = check_subject(prefix, "prefix")
        self.timeout_s = timeout_s
        self._connection = connection
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._header = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""

    async def _invoke(
        self, instance: str, function: str, params: bytes, decode: Callable[[bytes, int, int], tuple[T, int]]
    ) -> T:
        subject = invocation_subject(self.prefix, instance, function)
        return self._connection.invoke(subject, params, decode, self.timeout_s, self._header)


def is_no_responders(arrived: Arrived) -> bool:
    """Return True if the server says that nobody listens to the subject."""
    return arrived.header.partition(CRLF)[0].endswith(NO_RESPONDERS) and not arrived.payload


def lost(subject: str, reason: str) -> TransportError:
    """Return the error for a connection that was lost during a call."""
    return TransportError(
        f"{subject}: no result, because the connection was lost ({reason}); the provider may have executed the call"
    )
