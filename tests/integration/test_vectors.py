"""The captured client once more, against the running provider: whole, and cut at every byte where it is small."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Provider
from tests.vectors import Replay, Vector, load, preparation, results_allowed

#: Above this the parameters are cut as they were captured, and not at every byte.
SMALL_BYTES_MAX = 64

VECTORS = [vector for vector in load() if not vector.fixed]
SMALL = [vector for vector in VECTORS if 0 < len(vector.params) <= SMALL_BYTES_MAX]


def each(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=[vector.name for vector in vectors])


async def prepare(client: KeyValueClient, vector: Vector) -> None:
    """Bring the provider, which may hold keys of other vectors, into the state before."""
    named = vector.arguments[0] if vector.arguments else None
    for bucket in {*vector.state, *([named] if isinstance(named, bytes) else [])}:
        for key in [key async for key in client.keys(bucket)]:
            await client.delete(bucket, key)
    for function, arguments in preparation(vector.state):
        await getattr(client, function)(*arguments)


async def played(replay: Replay, client: Client, inbox: str) -> Replay:
    """The replay, at its end."""
    messages: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await client.subscribe(f"{inbox.rpartition('.')[0]}.>", cb=messages.put)
    first = replay.start()
    await client.publish(first.subject, first.payload, first.reply, first.headers)
    async with asyncio.timeout(DEADLINE_S):
        while not replay.ended:
            message = await messages.get()
            for send in replay.receive(message.subject, message.data, message.reply):
                await client.publish(send.subject, send.payload)
    await subscription.unsubscribe()
    return replay


def check(vector: Vector, replay: Replay) -> None:
    allowed = results_allowed(vector)
    if allowed:
        assert replay.result in allowed
        assert [what for what, _ in replay.answer][:2] == ["handshake", "result"]
    else:
        assert replay.answer == [("handshake", b""), ("result-end", b"")]


@each(VECTORS)
async def test_the_provider_answers_as_the_captured_one(
    vector: Vector, provider: Provider, client: KeyValueClient, raw: Client
) -> None:
    for closing_last in vector.closings_last:
        await prepare(client, vector)
        inbox = f"{raw.new_inbox()}.client"
        replay = Replay(vector, inbox, prefix=provider.prefix, closing_last=closing_last)
        check(vector, await played(replay, raw, inbox))


@each(SMALL)
async def test_the_provider_answers_alike_wherever_the_parameters_are_cut(
    vector: Vector, provider: Provider, client: KeyValueClient, raw: Client
) -> None:
    for cut in range(len(vector.params)):
        await prepare(client, vector)
        inbox = f"{raw.new_inbox()}.client"
        pieces = [vector.params[:cut], vector.params[cut:]]
        replay = Replay(vector, inbox, prefix=provider.prefix, pieces=pieces)
        check(vector, await played(replay, raw, inbox))
