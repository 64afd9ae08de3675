"""The NATS connection of what loads and answers: its address, its greeting, its end."""

from __future__ import annotations

import pytest

from bench.load.answers import SmallGenerator
from bench.load.wire import WireError, split_address
from tests.bench.load.sockets import INFO, Socket, connected, load_of


@pytest.mark.parametrize("url", ["foo", "nats://", "nats://host", ":4222", "host:", "host:0", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"the URL is '{url}', expected nats://HOST:PORT"):
        split_address(url)


async def test_a_lost_connection_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    connected(generator)
    generator.connection_lost(None)
    with pytest.raises(WireError, match="the NATS connection was lost: closed by the server"):
        await generator.ended


async def test_a_refusal_in_the_greeting_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    generator.connection_made(Socket())
    generator.data_received(INFO + b"-ERR 'Authorization Violation'\r\n")
    with pytest.raises(WireError, match="the NATS server reports -ERR 'Authorization Violation'"):
        await generator.ended
