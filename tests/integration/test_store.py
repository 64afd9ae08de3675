"""The store over the wire: a client, a NATS server, and the provider's process as a host launches it.

The engine's tests cover the functions, and the transport's tests their encoding. Here are sizes that only a real
server reaches, and each function once, to check that the parts fit together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, Naming, NatsServer, Provider, RawInvocation
from tests.vectors import Replay, Vector, load, preparation, results_allowed

MIB = 1024 * 1024
#: NATS' own largest message. The server of these tests uses this default.
MAX_PAYLOAD = MIB
#: A get result of a value this long is `ok`, `some` and three bytes of length longer.
RESULT_OVERHEAD = 5
HEADERS: dict[str, Any] = {"source_id": "holdout-component", "link_name": "default"}


@pytest.fixture
async def caller(nats_server: NatsServer, provider: Provider) -> AsyncIterator[KeyValueClient]:
    """Open a client that sends a host's headers."""
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S, **HEADERS) as client:
        yield client


def content(size: int) -> bytes:
    """Return bytes that do not repeat."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


async def test_every_function(client: KeyValueClient, bucket: str) -> None:
    assert await client.get(bucket, "k") is None
    assert await client.exists(bucket, "k") is False
    for value in (b"first", b"second, and longer"):
        await client.set(bucket, "k", value)
        assert await client.get(bucket, "k") == value
    assert await client.exists(bucket, "k") is True
    assert await client.list_keys(bucket) == ([b"k"], None)
    for _ in range(2):  # the second delete of a missing key is no error
        await client.delete(bucket, "k")
        assert await client.get(bucket, "k") is None
        assert await client.list_keys(bucket) == ([], None)


@pytest.mark.parametrize(
    "size",
    [
        *(0, 64, 16_384),
        *(
            MAX_PAYLOAD - RESULT_OVERHEAD + more for more in (0, 1)
        ),  # a result that fills one message, and one that takes two
        *(2 * MAX_PAYLOAD - RESULT_OVERHEAD, 5 * MIB),
    ],
)
async def test_values_of_every_size(
    client: KeyValueClient, caller: KeyValueClient, bucket: str, named: Naming, size: int
) -> None:
    value, key = content(size), named("with headers")
    await client.set(bucket, "plain", value)
    await caller.set(bucket, key, value[::-1])
    assert await caller.get(bucket, "plain") == value
    assert await client.get(bucket, key) == value[::-1]


async def test_a_first_message_that_a_host_has_filled(provider: Provider, raw: Client, bucket: str) -> None:
    """A host fills the first message up to the limit of NATS, headers included."""
    headers = {"source-id": "component", "link-name": "default", "traceparent": "00-1-2-01"}
    value = content(2 * MIB)
    params = encode_set(bucket.encode(), b"k", value)
    first = MAX_PAYLOAD - len("NATS/1.0\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n")
    invocation = await RawInvocation.begin(raw, provider.subject("set"), params[:first], headers)
    await invocation.send(
        await invocation.handshake(), params[first : first + MAX_PAYLOAD], params[first + MAX_PAYLOAD :], b""
    )
    assert await invocation.result() == encode_unit_result(None)
    get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(bucket.encode(), b"k"), headers)
    assert await get.result() == encode_get_result(value)


async def test_names_of_every_kind(client: KeyValueClient) -> None:
    kinds = ("", "k", "ключ", "键 with spaces", "\0", "a.b.*.>", "\r\nPING\r\n", "\U0001f511", "n" * 1024)
    for name in kinds:
        await client.set(name, name * 64, name.encode())
        await client.set(name[1:] + "*", name * 64, b"of another")
    for name in kinds:
        assert await client.get(name, name * 64) == name.encode()
        assert await client.list_keys(name) == ([name.encode() * 64], None)


async def test_limits_refuse_a_write_and_leave_the_store_unchanged(
    launch: Launch, nats_server: NatsServer, named: Naming
) -> None:
    limits = {"value_bytes_max": "1_000", "key_bytes_max": "100", "bucket_name_bytes_max": "10", "keys_max": "2"}
    provider = launch(limits | {"buckets_max": "2", "memory_bytes_max": "3200", "strict_buckets": "true"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        for name in ("limits-a", "limits-b"):
            await client.set(name, "k", b"as before")
        for bucket, key, value, message in (
            ("limits-a", "k", bytes(1001), r"value is 1001 bytes; the limit is 1000 \(value_bytes_max\)"),
            ("limits-a", "k" * 101, b"", r"key is 101 bytes; the limit is 100 \(key_bytes_max\)"),
            ("b" * 11, "k", b"", r"bucket name is 11 bytes; the limit is 10 \(bucket_name_bytes_max\)"),
            ("limits-a", named("a third"), b"", r"the store would hold 3 keys; the limit is 2 \(keys_max\)"),
            ("limits-c", "k", b"", r"the store would hold 3 buckets; the limit is 2 \(buckets_max\)"),
            (
                "limits-a",
                "k",
                bytes(999),
                r"the store would take \d+ bytes of memory; the limit is 3200 \(memory_bytes_max\)",
            ),
        ):
            with pytest.raises(OtherError, match=f"^{message}$"):
                await client.set(bucket, key, value)
        for name in ("limits-a", "limits-b"):
            assert await client.list_keys(name) == ([b"k"], None)
            assert await client.get(name, "k") == b"as before"
        with pytest.raises(NoSuchStoreError):
            await client.get("limits-c", "k")


# Listing


async def test_pages(launch: Launch, nats_server: NatsServer, bucket: str, named: Naming) -> None:
    provider = launch({"page_keys": "10"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        keys = [named(f"key {number}") for number in range(25)]
        await asyncio.gather(*(client.set(bucket, key, b"") for key in keys))
        sizes, found, cursor = [], set[bytes](), None
        while True:
            page = await client.list_keys(bucket, cursor)
            assert await client.list_keys(bucket, cursor) == page  # no state between pages
            sizes.append(len(page.keys))
            found |= set(page.keys)
            if page.cursor is None:
                break
            assert cursor is None or page.cursor > cursor
            cursor = page.cursor
        assert sizes == [10, 10, 5]
        assert found == {key.encode() for key in keys}
        assert await client.list_keys(bucket, 2**64 - 1) == ([], None)


# Many


async def test_one_client_makes_many_calls_at_once(client: KeyValueClient, bucket: str, named: Naming) -> None:
    values = {f"k{number}": content(number * 37) for number in range(200)}
    values |= {named(f"large {number}"): bytes([number]) * (3 * MIB + number) for number in range(8)}
    await asyncio.gather(*(client.set(bucket, key, value) for key, value in values.items()))
    assert await asyncio.gather(*(client.get(bucket, key) for key in values)) == list(values.values())


# Captured


@pytest.fixture
def vectors() -> list[Vector]:
    """Return the captured invocations that the store under test can answer."""
    return [vector for vector in load() if not vector.fixed]


async def test_the_provider_answers_like_the_captured_one(
    vectors: list[Vector], provider: Provider, client: KeyValueClient, raw: Client
) -> None:
    """Replay each captured invocation. tests/transport/keyvalue/test_vectors.py cuts them at every byte."""
    for vector in vectors:
        for closing_last in vector.closings_last:
            named = vector.arguments[0] if vector.arguments else None
            for bucket in {*vector.state, *([named] if isinstance(named, bytes) else [])}:
                for key in [key async for key in client.keys(bucket)]:
                    await client.delete(bucket, key)
            for function, arguments in preparation(vector.state):
                await getattr(client, function)(*arguments)
            inbox = f"{raw.new_inbox()}.client"
            replay = Replay(vector, inbox, prefix=provider.prefix, closing_last=closing_last)
            await play(replay, raw, inbox)
            if allowed := results_allowed(vector):
                assert replay.result in allowed, vector.name
                assert [what for what, _ in replay.answer][:2] == ["handshake", "result"], vector.name
            else:
                assert replay.answer == [("handshake", b""), ("result-end", b"")], vector.name


async def play(replay: Replay, client: Client, inbox: str) -> None:
    """Send the captured client's messages up to the end of the invocation."""
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
