"""What nats-py's errors mean: a table; and that the installed nats-py has the texts which are matched."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from keyvalue_transport.nats.nats_py_errors import ATTEMPT_TIMEOUT_S, ErrorKind, kind_of, refusal_of, text_of
from keyvalue_transport.nats.tls import TlsRefusedError
from tests.conftest import DEADLINE_S

NOT_NATS = "what listens there is not a NATS server"
REFUSES = "the NATS server refuses the connection: "
#: nats-py's errors have no arguments by their types.
Error: Any = nats.errors.Error


@pytest.mark.parametrize(
    ("error", "kind", "text", "refusal"),
    [
        (Error("nats: 'Authorization Violation'"), ErrorKind.CONNECTION, "'Authorization Violation'", True),
        (nats.errors.AuthorizationError(), ErrorKind.CONNECTION, "authorization failed", True),
        (Error("nats: user authentication expired"), ErrorKind.CONNECTION, "user authentication expired", True),
        (Error("nats: maximum connections exceeded"), ErrorKind.CONNECTION, "maximum connections exceeded", False),
        (
            Error('nats: permissions violation for subscription to "a"'),
            *(ErrorKind.SUBSCRIPTION_DENIED, 'permissions violation for subscription to "a"', False),
        ),
        (
            Error('nats: Permissions Violation for Publish to "a"'),
            *(ErrorKind.PUBLISH_DENIED, 'Permissions Violation for Publish to "a"', False),
        ),
        (Error("nats: empty response from server when expecting INFO message"), ErrorKind.CONNECTION, NOT_NATS, False),
        (Error("nats: info message, json parse error"), ErrorKind.CONNECTION, NOT_NATS, False),
        (Error(), ErrorKind.CONNECTION, "Error", False),
        (Error("nats: two\r\n lines"), ErrorKind.CONNECTION, "two lines", False),
        (Error("nats: " + 300 * "x"), ErrorKind.CONNECTION, 256 * "x", False),
        (nats.errors.UnexpectedEOF(), ErrorKind.STREAM_ENDED, "unexpected EOF", False),
        (nats.errors.StaleConnectionError(), ErrorKind.CONNECTION, "stale connection", False),
        (TimeoutError(), ErrorKind.CONNECTION, f"no greeting of a NATS server within {ATTEMPT_TIMEOUT_S} s", False),
        (ConnectionRefusedError(111, "Connection refused"), ErrorKind.CONNECTION, "Connection refused", False),
        (OSError("Multiple exceptions"), ErrorKind.CONNECTION, "Multiple exceptions", False),
        (ConnectionResetError(), ErrorKind.CONNECTION, "ConnectionResetError", False),
        (ssl.SSLEOFError(8, "EOF occurred"), ErrorKind.CONNECTION, "EOF occurred", False),
        (ValueError("not enough values to unpack"), ErrorKind.CALLBACK, NOT_NATS, False),
        (ValueError("permissions violation for subscription"), ErrorKind.CALLBACK, NOT_NATS, False),
    ],
)
def test_what_an_error_means(error: Exception, kind: ErrorKind, text: str, refusal: bool) -> None:
    assert (kind_of(error), text_of(error)) == (kind, text)
    assert refusal_of(error) == (REFUSES + text if refusal else None)


def test_a_refusal_of_tls_is_told_as_it_is() -> None:
    error = TlsRefusedError("TLS is required, and the server has none")
    assert (text_of(error), refusal_of(error)) == (str(error), str(error))
    assert kind_of(error) is ErrorKind.CONNECTION


def test_no_error_is_no_answer() -> None:
    assert text_of(None) == "no answer"


@pytest.mark.parametrize(
    ("greeting", "after_connect", "kind", "text", "refusal"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", b"", ErrorKind.CONNECTION, NOT_NATS, False),
        (b"INFO {]\r\n", b"", ErrorKind.CONNECTION, NOT_NATS, False),
        (
            b"INFO {}\r\n",
            b"-ERR 'Authorization Violation'\r\n",
            ErrorKind.CONNECTION,
            "'Authorization Violation'",
            True,
        ),
        (b"INFO {}\r\n", b"-ERR 'Authentication Timeout'\r\n", ErrorKind.CONNECTION, "'Authentication Timeout'", True),
        (
            *(b"INFO {}\r\n", b"PONG\r\n-ERR 'Permissions Violation for Subscription to \"a\"'\r\n"),
            *(ErrorKind.SUBSCRIPTION_DENIED, 'permissions violation for subscription to "a"', False),
        ),
        (
            *(b"INFO {}\r\n", b"PONG\r\n-ERR 'Permissions Violation for Publish to \"a\"'\r\n"),
            *(ErrorKind.PUBLISH_DENIED, 'permissions violation for publish to "a"', False),
        ),
    ],
)
async def test_nats_py_has_the_texts(
    greeting: bytes, after_connect: bytes, kind: ErrorKind, text: str, refusal: bool
) -> None:
    """A server that speaks by the line; tests/integration/ has the real one."""
    reported: asyncio.Queue[Exception] = asyncio.Queue()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if after_connect:
            await reader.readuntil(b"PING\r\n")
            writer.write(after_connect)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        client = Client()
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connecting = asyncio.create_task(client.connect(url, error_cb=reported.put))
        error = await asyncio.wait_for(reported.get(), DEADLINE_S)
        connecting.cancel()
        await asyncio.wait((connecting,))
        await client.close()
    assert (kind_of(error), text_of(error)) == (kind, text)
    assert refusal_of(error) == (REFUSES + text if refusal else None)
