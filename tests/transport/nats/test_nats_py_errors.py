"""A table of nats-py's errors and their meaning, and a check that the installed nats-py uses the texts that are matched."""

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

NOT_NATS = "the listener there is not a NATS server"
REFUSES = "the NATS server refuses the connection: "
#: nats-py's errors declare no arguments.
Error: Any = nats.errors.Error


#: The server's errors about a subscription and a publication.
NO_SUBSCRIPTION = 'permissions violation for subscription to "a"'
NO_PUBLICATION = 'permissions violation for publish to "a"'


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Error("nats: maximum connections exceeded"), ErrorKind.CONNECTION, "maximum connections exceeded"),
        (Error(f"nats: {NO_SUBSCRIPTION}"), ErrorKind.SUBSCRIPTION_DENIED, NO_SUBSCRIPTION),
        (Error(f"nats: {NO_PUBLICATION.title()}"), ErrorKind.PUBLISH_DENIED, NO_PUBLICATION.title()),
        (Error("nats: empty response from server when expecting INFO message"), ErrorKind.CONNECTION, NOT_NATS),
        (Error("nats: info message, json parse error"), ErrorKind.CONNECTION, NOT_NATS),
        (Error(), ErrorKind.CONNECTION, "Error"),
        (Error("nats: two\r\n lines"), ErrorKind.CONNECTION, "two lines"),
        (Error("nats: " + 300 * "x"), ErrorKind.CONNECTION, 256 * "x"),
        (nats.errors.UnexpectedEOF(), ErrorKind.STREAM_ENDED, "unexpected EOF"),
        (nats.errors.StaleConnectionError(), ErrorKind.CONNECTION, "stale connection"),
        (TimeoutError(), ErrorKind.CONNECTION, f"no greeting from a NATS server within {ATTEMPT_TIMEOUT_S} s"),
        (ConnectionRefusedError(111, "Connection refused"), ErrorKind.CONNECTION, "Connection refused"),
        (OSError("Multiple exceptions"), ErrorKind.CONNECTION, "Multiple exceptions"),
        (ConnectionResetError(), ErrorKind.CONNECTION, "ConnectionResetError"),
        (ssl.SSLEOFError(8, "EOF occurred"), ErrorKind.CONNECTION, "EOF occurred"),
        (ValueError("not enough values to unpack"), ErrorKind.CALLBACK, NOT_NATS),
        (ValueError("permissions violation for subscription"), ErrorKind.CALLBACK, NOT_NATS),
    ],
)
def test_the_meaning_of_an_error(error: Exception, kind: ErrorKind, text: str) -> None:
    assert (kind_of(error), text_of(error), refusal_of(error)) == (kind, text, None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Error("nats: 'Authorization Violation'"), REFUSES + "'Authorization Violation'"),
        (nats.errors.AuthorizationError(), REFUSES + "authorization failed"),
        (Error("nats: user authentication expired"), REFUSES + "user authentication expired"),
        (TlsRefusedError("TLS is required, and the server has none"), "TLS is required, and the server has none"),
    ],
)
def test_errors_after_which_a_retry_is_useless(error: Exception, text: str) -> None:
    assert (kind_of(error), refusal_of(error)) == (ErrorKind.CONNECTION, text)
    assert text_of(error) == text.removeprefix(REFUSES)


def test_no_error_needs_no_answer() -> None:
    assert text_of(None) == "no answer"


GREETING = b"INFO {}\r\n"


@pytest.mark.parametrize(
    ("greeting", "after_connect", "kind", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", b"", ErrorKind.CONNECTION, NOT_NATS),
        (b"INFO {]\r\n", b"", ErrorKind.CONNECTION, NOT_NATS),
        (GREETING, b"-ERR 'Authorization Violation'\r\n", ErrorKind.CONNECTION, "'Authorization Violation'"),
        (GREETING, b"-ERR 'Authentication Timeout'\r\n", ErrorKind.CONNECTION, "'Authentication Timeout'"),
        (GREETING, b"PONG\r\n-ERR '%b'\r\n" % NO_SUBSCRIPTION.encode(), ErrorKind.SUBSCRIPTION_DENIED, NO_SUBSCRIPTION),
        (GREETING, b"PONG\r\n-ERR '%b'\r\n" % NO_PUBLICATION.encode(), ErrorKind.PUBLISH_DENIED, NO_PUBLICATION),
    ],
)
async def test_nats_py_has_the_texts(greeting: bytes, after_connect: bytes, kind: ErrorKind, text: str) -> None:
    """Use a server that sends single lines. tests/integration/ uses the real one."""
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
    assert refusal_of(error) == (REFUSES + text if text.startswith("'Auth") else None)
