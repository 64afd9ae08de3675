"""Tells a consumer that is lost from one that is late.

An idle consumer sends a heartbeat twice a second. But silence alone proves nothing: the server may be busy, for example
with many atomic batches, the bytes may wait behind others on the way, or this process may have stood still. So the
server is asked about a silent consumer, at the end of everything that is on its way:

    silence ──> PING ──> PONG ──> CONSUMER.INFO ──┬── it exists ──> wait
                  │                               ├── it does not exist, or its deliveries have no receiver ──> lost
                  └── none: cut off               └── none: its server is away ──> lost
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

from keyvalue_replica.errors import StreamError, UnavailableError
from keyvalue_replica.stream import Api, ApiError
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["why_lost"]

#: Seconds of silence after which the server is asked: two heartbeats are missing.
SILENCE_S = 1.0
#: Seconds after which a connection without an answer is cut off, so that other instances should take the calls.
CUT_OFF_S = 4.0
#: Seconds of silence after which a consumer is lost, although it exists.
STUCK_S = 30.0
#: If a wait takes this many seconds longer than it should, the process has stood still.
STALL_S = 0.5
#: Seconds in which the bytes that have arrived are read.
READING_S = 0.1


class Consumer(Protocol):
    """The receiver of what a consumer sends.

    :ivar heard_s: when it has last sent something
    """

    heard_s: float


class RoundTrips(Protocol):
    """The connection to the server."""

    async def flush(self, timeout_s: float) -> None: ...


async def why_lost(server: RoundTrips, api: Api, name: str, consumer: Consumer, tries: int = 1) -> str:
    """Return why a consumer is lost, once it is.

    :param name: those of the stream and the consumer, with a point between them
    :param tries: number of questions without an answer. If only one server has the stream, no other could take over
    """
    asked_s = 0.0  # when the server last said that the consumer exists
    while True:
        await _silence(consumer, asked_s)
        began_s = consumer.heard_s
        why = await _ask(server, api, name, tries)
        await asyncio.sleep(READING_S)
        if consumer.heard_s == began_s:
            if why:
                return why
            if monotonic() - began_s > STUCK_S:
                return f"the consumer exists, but was silent for {STUCK_S:g} s"
        asked_s = monotonic()


async def _silence(consumer: Consumer, asked_s: float) -> None:
    """Return when the consumer has been silent for too long, in a process that runs."""
    since_s = asked_s
    while (left_s := SILENCE_S - monotonic() + max(since_s, consumer.heard_s)) > 0:
        due_s = monotonic() + left_s
        await asyncio.sleep(left_s)
        if monotonic() - due_s > STALL_S:
            since_s = monotonic()  # what has arrived meanwhile is not read yet


async def _ask(server: RoundTrips, api: Api, name: str, tries: int) -> str:
    """Ask the server about a consumer. Return why it is lost, or "" if it exists."""
    why = ""
    for _ in range(tries):
        try:
            await server.flush(CUT_OFF_S)
            answer = await api.call(f"CONSUMER.INFO.{name}")
        except (StreamError, UnavailableError) as error:
            why = f"the consumer is silent: {error}"
        except DisconnectedError as error:
            return f"the consumer is silent: {error}"
        except ApiError as error:
            return f"the consumer is gone: {error}"
        else:
            return "" if answer.get("push_bound") else "nobody receives the deliveries of the consumer"
    return why
