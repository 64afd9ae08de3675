"""Opening a connection: what else may listen, as whom, and what is said where nobody lets us in."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import nkeys
import pytest

from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import (
    ConnectError,
)
from tests.conftest import DEADLINE_S, NatsServer
from tests.transport.nats.in_process import user_config, with_user

# What else may listen


async def opening_error(*urls: str, timeout_s: float = 1.0, **credentials: str) -> tuple[str, float]:
    """What `Connection.open` says, and how long it took."""
    began_s = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await Connection.open(ConnectionOptions(urls, open_timeout_s=timeout_s, **credentials))  # type: ignore[arg-type] # texts
    return str(caught.value), time.monotonic() - began_s


@asynccontextmanager
async def listening(greeting: bytes | None) -> AsyncIterator[str]:
    """A TCP server that is no NATS server: says the greeting and waits, or closes at once (None)."""
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


async def test_nothing_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        url = f"nats://127.0.0.1:{bound.getsockname()[1]}"
        message, took_s = await opening_error(url, timeout_s=0.3)
    assert re.search(f"^{url}: no NATS server reached within 0.3 s: Connect", message), message
    assert 0.3 <= took_s < 1.3


NOT_NATS = "what listens there is not a NATS server"


@pytest.mark.parametrize(
    ("greeting", "timeout_s", "reason"),
    [
        (b"", 0.3, "no (answer|greeting)"),
        (b"", 2.3, "no greeting of a NATS server within 2 s"),
        (b"INFO", 0.3, "no (answer|greeting)"),
        (None, 0.3, NOT_NATS),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.3, NOT_NATS),
        (b"\x15\x03\x01\x00\x02\x02\x0a\n", 0.3, NOT_NATS),
        (b"x" * 100_000, 0.3, NOT_NATS),
        (b"INFO\n", 0.3, NOT_NATS),
        (b"INFO {]\r\n", 0.3, NOT_NATS),
        (b"INFO []\r\n", 0.3, NOT_NATS),
    ],
)
async def test_what_listens_is_not_nats(greeting: bytes | None, timeout_s: float, reason: str) -> None:
    async with listening(greeting) as url:
        message, took_s = await opening_error(url, timeout_s=timeout_s)
    assert re.search(f"^{url}: .*: {reason}$", message), message
    assert took_s < timeout_s + 1


async def test_the_first_server_that_is_there_is_taken(nats_server: NatsServer) -> None:
    async with listening(None) as other:
        connection = await Connection.open(ConnectionOptions((other, nats_server.url)))
    assert connection.server == nats_server.url
    await connection.close()


async def test_all_servers_are_named_where_none_is_there() -> None:
    async with listening(None) as first, listening(b"no") as second:
        secret = second.replace("//", "//token-of-mine@")
        message, _ = await opening_error(first, secret, timeout_s=0.3)
    assert message.startswith(f"{first}, {second.replace('//', '//<redacted>@')}: ")


# Credentials


async def admitted(url: str, **credentials: str) -> None:
    connection = await Connection.open(ConnectionOptions((url,), **credentials))  # type: ignore[arg-type] # texts
    await connection.flush(DEADLINE_S)
    assert "pass" not in connection.server
    await connection.close()


async def refused(url: str, *secrets: str, **credentials: str) -> None:
    """The server refuses: told at once, and without a secret."""
    options = ConnectionOptions((url,), open_timeout_s=DEADLINE_S, **credentials)  # type: ignore[arg-type] # texts
    message, took_s = await opening_error(url, timeout_s=DEADLINE_S, **credentials)
    assert "the NATS server refuses the connection: " in message
    assert "authorization" in message.lower()
    assert took_s < DEADLINE_S / 3
    for secret in secrets:
        assert secret not in message
        assert secret not in repr(options)


async def test_user_and_password(new_nats_server: Callable[[str], NatsServer]) -> None:
    url = new_nats_server(user_config("passw0rd")).url
    await admitted(with_user(url, "somebody:passw0rd"))
    await refused(with_user(url, "somebody:passw1rd"), "passw1rd")
    await refused(with_user(url, "passw0rd"), "passw0rd")
    await refused(url)


async def test_token(new_nats_server: Callable[[str], NatsServer]) -> None:
    url = new_nats_server('authorization { token: "t0ken-pass" }').url
    await admitted(with_user(url, "t0ken-pass"))
    await refused(with_user(url, "t1ken-pass"), "t1ken-pass")


def new_key(kind: int) -> tuple[str, str]:
    """Seed and public key."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return seed.decode(), nkeys.from_seed(seed).public_key.decode()


async def test_nkey(new_nats_server: Callable[[str], NatsServer]) -> None:
    seed, public_key = new_key(nkeys.PREFIX_BYTE_USER)
    url = new_nats_server(f"authorization {{ users: [ {{ nkey: {public_key} }} ] }}").url
    await admitted(url, user_seed=seed)
    other_seed, _ = new_key(nkeys.PREFIX_BYTE_USER)
    await refused(url, other_seed, user_seed=other_seed)
    await refused(url)


@pytest.mark.parametrize("seed", ["SUNOSEED", "S", "not base32 at all", "\u00e9"])
@pytest.mark.parametrize("user_jwt", ["", "of.a.user"])
async def test_a_seed_that_is_none(new_nats_server: Callable[[str], NatsServer], seed: str, user_jwt: str) -> None:
    _, public_key = new_key(nkeys.PREFIX_BYTE_USER)
    url = new_nats_server(f"authorization {{ users: [ {{ nkey: {public_key} }} ] }}").url
    message, took_s = await opening_error(url, timeout_s=5, user_seed=seed, user_jwt=user_jwt)
    assert "seed" in message
    assert seed not in message
    assert took_s < 1


def signed(seed: str, claims: dict[str, object]) -> str:
    """A JWT of the claims, as nsc writes them."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    header = json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()
    body = f"{encoded(header)}.{encoded(json.dumps(claims).encode())}"
    return f"{body}.{encoded(nkeys.from_seed(seed.encode()).sign(body.encode()))}"


async def test_user_jwt_and_seed(new_nats_server: Callable[[str], NatsServer]) -> None:
    operator_seed, operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    account_seed, account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    user_seed, user = new_key(nkeys.PREFIX_BYTE_USER)
    unlimited: dict[str, object] = {"subs": -1, "data": -1, "payload": -1}

    def jwt(seed: str, issuer: str, subject: str, name: str, claims: dict[str, object]) -> str:
        issued = {"jti": name, "iat": 1_700_000_000, "iss": issuer, "sub": subject, "name": name}
        return signed(seed, issued | {"nats": claims | {"version": 2}})

    limits = unlimited | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    account_jwt = jwt(operator_seed, operator, account, "account", {"type": "account", "limits": limits})
    user_jwt = jwt(account_seed, account, user, "user", {"type": "user", "pub": {}, "sub": {}} | unlimited)
    url = new_nats_server(
        f'operator: "{jwt(operator_seed, operator, operator, "operator", {"type": "operator"})}"\n'
        f"resolver: MEMORY\nresolver_preload: {{ {account}: {account_jwt} }}"
    ).url
    await admitted(url, user_jwt=user_jwt, user_seed=user_seed)
    other_seed, _ = new_key(nkeys.PREFIX_BYTE_USER)
    await refused(url, other_seed, user_jwt, user_jwt=user_jwt, user_seed=other_seed)
    await refused(url, user_seed, user_seed=user_seed)


async def test_the_log_holds_no_secret(
    new_nats_server: Callable[[str], NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = new_nats_server(user_config("passw0rd")).url
    await admitted(with_user(url, "somebody:passw0rd"))
    await refused(with_user(url, "somebody:passw1rd"))
    async with listening(None) as other:
        await opening_error(with_user(other, "somebody:passw2rd"), timeout_s=0.1)
    assert "trying again for up to 0.1 s" in caplog.text
    for secret in ("passw0rd", "passw1rd", "passw2rd"):
        assert secret not in caplog.text


def test_options_show_no_secret() -> None:
    options = ConnectionOptions(("nats://user:secret@a",), user_jwt="secret", user_seed="secret")
    assert "secret" not in repr(options)
