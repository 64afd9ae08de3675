"""A request: a message, and the first reply to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

__all__ = ["Requester", "request"]


class Requester(Protocol):
    """The part of a connection that a request needs."""

    def new_inbox(self) -> str: ...

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None: ...

    async def subscribe_in_order(self, subject: str, handle: Callable[[bytes], None]) -> Any: ...


async def request(
    connection: Requester, end: Callable[[Any], Awaitable[None]], subject: str, payload: bytes, timeout_s: float
) -> bytes:
    """Send a message and return the first reply, which must not be empty.

    nats-py's requests are not used. At the first reply with headers, they load its JetStream client, which takes 25 ms,
    and a provider's first request is sent while it starts.

    :param end: ends a subscription
    :raises TimeoutError: no reply arrived in time, or the reply is empty; the server sends an empty reply if the
        subject has no subscribers
    :raises DisconnectedError: the message could not be sent
    """
    replies: asyncio.Queue[bytes] = asyncio.Queue()
    inbox = connection.new_inbox()
    subscription = await connection.subscribe_in_order(inbox, replies.put_nowait)
    answer = b""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await connection.publish(subject, payload, inbox)
                answer = await replies.get()
    finally:
        await end(subscription)
    if not answer:
        raise TimeoutError(f"no answer to {subject}")
    return answer
