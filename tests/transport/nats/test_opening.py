"""Opening a connection: other servers at the address, credentials, and the errors if no server lets us in."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from keyvalue_transport.nats import opening as opening_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import ConnectError
from tests.conftest import DEADLINE_S, NatsServer
from tests.nats_configs import Key, Operator, nkey_config, token_config, user_config
from tests.transport.nats.in_process import until, with_user

# Other servers


async def first_failure(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return the log of the first attempt. Most failures are retried, some are final."""
    opening = asyncio.create_task(Connection.open(ConnectionOptions((url,), open_timeout_s=600)))
    await until(lambda: "; trying again for up to 600 s" in caplog.text or opening.done())
    if opening.done():
        return str(opening.exception()).rpartition(": could not connect: ")[2]
    opening.cancel()
    await asyncio.wait((opening,))
    message = next(message for message in caplog.messages if "trying again" in message)
    return message.removeprefix("NATS: ").removesuffix("; trying again for up to 600 s")


@asynccontextmanager
async def listening(greeting: bytes | None) -> AsyncIterator[str]:
    """Start a TCP server that is not NATS. It sends the greeting and waits, or closes at once (None)."""
    async with AsyncExitStack() as stack:

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if greeting:
                writer.write(greeting)
            if greeting is not None:
                stack.callback(writer.close)
            else:
                writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


NO_GREETING = "no greeting from a NATS server within 2 s"
NOT_NATS = "the listener there is not a NATS server"


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"", NO_GREETING),
        (b"INFO", NO_GREETING),
        (None, NOT_NATS),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT_NATS),
        (b"\x15\x03\x01\x00\x02\x02\x0a\n", NOT_NATS),
        (b"x" * 100_000, NOT_NATS),
        (b"INFO\n", NOT_NATS),
        (b"INFO {]\r\n", NOT_NATS),
        (b"INFO []\r\n", NOT_NATS),
    ],
)
async def test_a_server_that_is_not_nats_is_reported(
    greeting: bytes | None, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason is NO_GREETING:
        monkeypatch.setattr(opening_module, "ATTEMPT_TIMEOUT_S", 0.1)
    async with listening(greeting) as url:
        assert await first_failure(with_user(url, "somebody:s3cret"), caplog) == reason
    assert "s3cret" not in caplog.text


async def test_the_first_server_that_answers_is_used(nats_server: NatsServer) -> None:
    async with listening(None) as other:
        connection = await Connection.open(ConnectionOptions((other, nats_server.url)))
    assert connection.server == nats_server.url
    await connection.close()


async def test_the_error_names_all_servers_if_none_answers() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        urls = [f"nats://127.0.0.1:{bound.getsockname()[1]}"]
        async with listening(None) as first, listening(b"no") as second:
            urls += [first, second.replace("//", "//token-of-mine@")]
            with pytest.raises(ConnectError) as caught:
                await Connection.open(ConnectionOptions(tuple(urls), open_timeout_s=0.3))
    shown = ", ".join((*urls[:2], second.replace("//", "//<redacted>@")))
    assert str(caught.value).startswith(f"{shown}: no NATS server reached within 0.3 s: ")


# Credentials


@pytest.mark.parametrize("kind", ["user", "token", "nkey", "jwt"])
async def test_credentials(
    kind: str, new_nats_server: Callable[[str], NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Report a refusal at once, and show no secret. `tests/integration/test_credentials.py` tests the provider."""
    caplog.set_level(logging.DEBUG)
    operator, key, other = Operator(), Key.new(), Key.new()
    user_jwt = operator.user(key)
    config, right, wrong = {
        "user": (user_config("u", "s3cret"), {"login": "u:s3cret"}, [{"login": "u:s3cre7"}, {"login": "s3cret"}]),
        "token": (token_config("s3cret"), {"login": "s3cret"}, [{"login": "s3cre7"}]),
        "nkey": (nkey_config(key.public_key), {"user_seed": key.seed}, [{"user_seed": other.seed}]),
        "jwt": (
            operator.config,
            {"user_jwt": user_jwt, "user_seed": key.seed},
            [{"user_jwt": user_jwt, "user_seed": other.seed}, {"user_seed": key.seed}],
        ),
    }[kind]
    server = new_nats_server(config)

    def options(login: str = "", **credentials: str) -> ConnectionOptions:
        return ConnectionOptions((with_user(server.url, login),), open_timeout_s=600, **credentials)  # type: ignore[arg-type] # texts

    connection = await Connection.open(options(**right))
    await connection.flush(DEADLINE_S)
    shown = [connection.server, repr(options(**right))]
    await connection.close()
    for credentials in (*wrong, {}):
        with pytest.raises(
            ConnectError, match=r"the NATS server refuses the connection: '?(?i:authorization)"
        ) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await Connection.open(options(**credentials))
        shown += [str(caught.value), repr(options(**credentials))]
    for text in (*shown, caplog.text):
        for secret in ("s3cret", "s3cre7", user_jwt, key.seed, other.seed):
            assert secret not in text


@pytest.mark.parametrize("seed", ["SUNOSEED", "S", "not base32 at all", "\u00e9"])
@pytest.mark.parametrize("user_jwt", ["", "of.a.user"])
async def test_a_malformed_seed(seed: str, user_jwt: str) -> None:
    options = ConnectionOptions(("nats://127.0.0.1:1",), user_seed=seed, user_jwt=user_jwt)
    with pytest.raises(ConnectError, match=r"^the user's seed is not an nkey seed$"):
        await Connection.open(options)
