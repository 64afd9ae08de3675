"""The store, over the wire: a client, a NATS server, and the provider's process as a host launches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.keyvalue.store import STORE, encode_get_result, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import InvocationEndedError
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, RawInvocation

MIB = 1024 * 1024
#: NATS' own largest message; the server of these tests keeps it.
MAX_PAYLOAD = MIB
#: A get result of a value this long is `ok`, `some` and three bytes of length longer.
RESULT_OVERHEAD = 5
U64_MAX = 2**64 - 1
HEADERS: dict[str, Any] = {"source_id": "holdout-component", "link_name": "default"}


@pytest.fixture
async def caller(nats_server: NatsServer, provider: Provider) -> AsyncIterator[KeyValueClient]:
    """A client that sends a host's headers."""
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S, **HEADERS) as client:
        yield client


def content(size: int) -> bytes:
    """Bytes of which no two pieces are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


async def test_every_function(client: KeyValueClient, bucket: str) -> None:
    assert await client.get(bucket, "k") is None
    assert await client.exists(bucket, "k") is False
    assert await client.list_keys(bucket) == ([], None)
    await client.set(bucket, "k", b"first")
    assert await client.get(bucket, "k") == b"first"
    await client.set(bucket, "k", b"second, and longer")
    assert await client.get(bucket, "k") == b"second, and longer"
    assert await client.exists(bucket, "k") is True
    assert await client.list_keys(bucket) == ([b"k"], None)
    await client.delete(bucket, "k")
    assert await client.get(bucket, "k") is None
    assert await client.exists(bucket, "k") is False
    assert await client.list_keys(bucket) == ([], None)
    await client.delete(bucket, "k")  # of an absent key: no error


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, 64, 127, 128, 16_383, 16_384),
        *(MAX_PAYLOAD - RESULT_OVERHEAD + more for more in (-1, 0, 1)),  # one message of result, filled; and two
        *(MIB, 2 * MAX_PAYLOAD - RESULT_OVERHEAD, 5 * MIB),
    ],
)
async def test_values_of_every_size(client: KeyValueClient, caller: KeyValueClient, bucket: str, size: int) -> None:
    value = content(size)
    await client.set(bucket, "plain", value)
    await caller.set(bucket, "with headers", value[::-1])
    assert await caller.get(bucket, "plain") == value
    assert await client.get(bucket, "with headers") == value[::-1]


async def first_piece_size(url: str, prefix: str, headers: bool) -> int:
    """How many bytes of a `set` a client puts into its first message; with headers, those of HEADERS."""
    connection = await Connection.open(ConnectionOptions((url,)))
    room = connection.max_payload - len(invocation_subject(prefix, STORE, "set")) - len(connection.new_inbox() + ".1")
    await connection.close()
    lines = (f"{name.replace('_', '-')}: {value}\r\n" for name, value in HEADERS.items())
    return room - (len("NATS/1.0\r\n" + "".join(lines) + "\r\n") if headers else 0)


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("more", [-1, 0, 1, 2])
async def test_parameters_at_the_edge_of_the_first_message(
    nats_server: NatsServer, provider: Provider, bucket: str, headers: bool, more: int
) -> None:
    size = await first_piece_size(nats_server.url, provider.prefix, headers) + more
    value = content(size - len(encode_set(bucket.encode(), b"k", b"")) - 2)  # the value's length takes three bytes
    assert len(encode_set(bucket.encode(), b"k", value)) == size
    names = HEADERS if headers else {}
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S, **names) as client:
        await client.set(bucket, "k", value)
        assert await client.get(bucket, "k") == value


@pytest.mark.parametrize("headers", [{"source-id": "component", "link-name": "default"}, {"traceparent": "00-1-2-01"}])
async def test_a_first_message_that_a_host_has_filled(
    provider: Provider, raw: Client, bucket: str, headers: dict[str, str]
) -> None:
    """A host puts as much into the first message as NATS takes, its headers counted."""
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


@pytest.mark.parametrize("key", ["", "k", "ключ", "键 with spaces", "\0", "a.b.*.>", "\r\nPING\r\n", "\U0001f511"])
async def test_keys_of_every_kind(client: KeyValueClient, bucket: str, key: str) -> None:
    await client.set(bucket, key, b"v")
    assert await client.get(bucket, key) == b"v"
    assert [key async for key in client.keys(bucket)] == [key]
    await client.delete(bucket, key)
    assert await client.exists(bucket, key) is False


@pytest.mark.parametrize("name", ["", "ведро", "桶 \U0001faa3", "a.b.*.>", "n" * 1024])
async def test_buckets_of_every_name(client: KeyValueClient, name: str) -> None:
    await client.set(name, "k", name.encode())
    await client.set(name[1:] + "*", "k", b"of another")
    assert await client.get(name, "k") == name.encode()


async def test_the_longest_key(client: KeyValueClient, bucket: str) -> None:
    key = "k" * 64 * 1024
    await client.set(bucket, key, b"v")
    assert await client.get(bucket, key) == b"v"
    assert await client.list_keys(bucket) == ([key.encode()], None)


@pytest.mark.parametrize(
    ("bucket_bytes", "key_bytes", "value_bytes", "message"),
    [
        (1025, 1, 0, "bucket name is 1025 bytes; the limit is 1024 (bucket_name_bytes_max)"),
        (1, 64 * 1024 + 1, 0, "key is 65537 bytes; the limit is 65536 (key_bytes_max)"),
        (1, 1, 16 * MIB + 1, "value is 16777217 bytes; the limit is 16777216 (value_bytes_max)"),
    ],
)
async def test_lengths_over_their_limits(
    client: KeyValueClient, bucket_bytes: int, key_bytes: int, value_bytes: int, message: str
) -> None:
    name, key = "b" * bucket_bytes, "k" * key_bytes
    with pytest.raises(OtherError) as caught:
        await client.set(name, key, bytes(value_bytes))
    assert caught.value.message == message
    assert await client.list_keys("b") == ([], None)
    if value_bytes:
        return
    for function in (client.get, client.delete, client.exists):
        with pytest.raises(OtherError) as caught:
            await function(name, key)
        assert caught.value.message == message


@pytest.mark.parametrize(
    ("bucket", "key", "value", "message"),
    [
        ("a", "k", bytes(1001), r"value is 1001 bytes; the limit is 1000 \(value_bytes_max\)"),
        ("a", "k" * 101, b"", r"key is 101 bytes; the limit is 100 \(key_bytes_max\)"),
        ("b" * 11, "k", b"", r"bucket name is 11 bytes; the limit is 10 \(bucket_name_bytes_max\)"),
        ("a", "a third", b"", r"the store would hold 3 keys; the limit is 2 \(keys_max\)"),
        ("c", "k", b"", r"the store would hold 3 buckets; the limit is 2 \(buckets_max\)"),
        ("a", "k", bytes(999), r"the store would take \d+ bytes of memory; the limit is 3200 \(memory_bytes_max\)"),
    ],
)
async def test_a_refused_set_leaves_the_store_as_it_was(
    launch: Launch, nats_server: NatsServer, bucket: str, key: str, value: bytes, message: str
) -> None:
    limits = {"value_bytes_max": "1_000", "key_bytes_max": "100", "bucket_name_bytes_max": "10", "keys_max": "2"}
    provider = launch(limits | {"buckets_max": "2", "memory_bytes_max": "3200"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set("a", "k", b"as before")
        await client.set("b", "k", b"as before")
        with pytest.raises(OtherError, match=f"^{message}$"):
            await client.set(bucket, key, value)
        for name in ("a", "b"):
            assert await client.list_keys(name) == ([b"k"], None)
            assert await client.get(name, "k") == b"as before"
        assert await client.list_keys("c") == ([], None)


# Listing


async def filled(client: KeyValueClient, bucket: str, number: int) -> set[str]:
    """The keys of a bucket that was filled with so many."""
    keys = [f"key {index}" for index in range(number)]
    for at in range(0, number, 500):
        await asyncio.gather(*(client.set(bucket, key, b"") for key in keys[at : at + 500]))
    return set(keys)


async def test_a_walk_gives_every_key_once(client: KeyValueClient, bucket: str) -> None:
    keys = await filled(client, bucket, 5000)
    found = [key async for key in client.keys(bucket)]
    assert len(found) == 5000
    assert set(found) == keys


async def test_pages(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch({"page_keys": "10"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        keys = await filled(client, "b", 25)
        sizes, found, cursor = [], set[bytes](), None
        while True:
            page = await client.list_keys("b", cursor)
            assert await client.list_keys("b", cursor) == page  # no state between pages
            sizes.append(len(page.keys))
            found |= set(page.keys)
            if page.cursor is None:
                break
            assert cursor is None or page.cursor > cursor
            cursor = page.cursor
        assert sizes == [10, 10, 5]
        assert found == {key.encode() for key in keys}


async def test_pages_are_bounded_by_bytes(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch({"page_bytes": "1000"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        for index in range(12):
            await client.set("b", f"{index:0400}", b"")
        first = await client.list_keys("b")
        assert len(first.keys) == 2
        assert first.cursor is not None
        assert len([key async for key in client.keys("b")]) == 12


async def test_any_cursor_is_valid(client: KeyValueClient, bucket: str) -> None:
    keys = {key.encode() for key in await filled(client, bucket, 200)}
    everything = await client.list_keys(bucket)
    assert set(everything.keys) == keys
    assert await client.list_keys(bucket, 0) == everything
    before = len(everything.keys)
    for cursor in (1, 127, 128, 2**32, 2**62, 2**63, 3 * 2**62, U64_MAX - 1, U64_MAX):
        page = await client.list_keys(bucket, cursor)
        assert list(page.keys) == list(everything.keys)[len(keys) - len(page.keys) :]  # the rest, in the same order
        assert len(page.keys) <= before
        before = len(page.keys)
        assert page.cursor is None
    assert before == 0


@pytest.mark.parametrize("cursor", [-1, U64_MAX + 1])
async def test_a_cursor_that_is_no_u64_is_not_sent(client: KeyValueClient, bucket: str, cursor: int) -> None:
    with pytest.raises(ValueError, match=rf"^cursor: found {cursor}, allowed 0 to 2\*\*64 - 1$"):
        await client.list_keys(bucket, cursor)


@pytest.mark.parametrize("text", [b"\xff", b"ab\xc3", b"\xed\xa0\x80"])
async def test_text_that_is_not_utf_8_is_damage(client: KeyValueClient, bucket: str, text: bytes) -> None:
    for function in (client.get, client.delete, client.exists):
        with pytest.raises(InvocationEndedError):
            await function(bucket, text)
        with pytest.raises(InvocationEndedError):
            await function(text, "k")
    with pytest.raises(InvocationEndedError):
        await client.set(bucket, text, b"v")
    assert await client.list_keys(bucket) == ([], None)


# Many


async def test_64_clients_read_what_they_wrote(nats_server: NatsServer, provider: Provider, bucket: str) -> None:
    async def work(client: KeyValueClient, number: int) -> None:
        for turn in range(10):
            key, value = f"{number} {turn % 3}", b"%d of %d" % (turn, number) * (turn + 1)
            await client.set(bucket, key, value)
            assert await client.get(bucket, key) == value
            assert await client.exists(bucket, key)
        await client.delete(bucket, f"{number} 0")

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S))
            for _ in range(64)
        ]
        await asyncio.gather(*(work(client, number) for number, client in enumerate(clients)))
        assert {key async for key in clients[0].keys(bucket)} == {f"{n} {turn}" for n in range(64) for turn in (1, 2)}


async def test_one_client_many_calls_at_once(client: KeyValueClient, bucket: str) -> None:
    values = {f"k{number}": content(number * 37) for number in range(500)}
    await asyncio.gather(*(client.set(bucket, key, value) for key, value in values.items()))
    found = await asyncio.gather(*(client.get(bucket, key) for key in values))
    assert found == list(values.values())


async def test_large_values_at_once(client: KeyValueClient, bucket: str) -> None:
    values = {f"k{number}": bytes([number]) * (3 * MIB + number) for number in range(8)}
    await asyncio.gather(*(client.set(bucket, key, value) for key, value in values.items()))
    assert await asyncio.gather(*(client.get(bucket, key) for key in values)) == list(values.values())


# Strict about buckets


async def test_strict_buckets(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch({"strict_buckets": "true"})
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        for function in (client.get, client.delete, client.exists):
            with pytest.raises(NoSuchStoreError):
                await function("b", "k")
        assert await client.list_keys("b") == ([], None)
        await client.set("b", "k", b"v")
        assert await client.get("b", "k") == b"v"
        await client.delete("b", "k")
        assert await client.get("b", "k") is None  # an emptied bucket stays known
        with pytest.raises(NoSuchStoreError):
            await client.get("another", "k")
