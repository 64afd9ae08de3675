"""Pages of keys: many calls at once, and small messages. Go's bindings misread a page that is cut into several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import decode_key_response, encode_list_keys
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, RawInvocation, in_thread, launching

PAGES = 1_000


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_fits_in_one_message(
    path: str, new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    server = new_nats_server("max_payload: 4096\n")
    keys = {f"key-{number}".encode() for number in range(1_500)} | {b"long" * 1_000}
    with launching(server.url, tmp_path) as launch:
        provider = launch({"transport": path})
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            for key in sorted(keys):
                await client.set("b", key.decode(), b"")
        for restarts, limit in enumerate((4096, 1024, 8192)):
            if restarts:
                server.stop()
                server.start(f"max_payload: {limit}\n")
                await in_thread(provider.wait_for, "connected again", restarts)
            raw = await nats.connect(server.url)
            found: list[bytes] = []
            cursor: int | None = None
            while cursor is not None or not found:
                invocation = await RawInvocation.begin(
                    raw, provider.subject("list-keys"), encode_list_keys(b"b", cursor)
                )
                page = await invocation.result()
                (page_keys, cursor), _ = decode_key_response(page, 0, len(page))
                assert len(page) <= limit or len(page_keys) == 1
                found += page_keys
            assert len(found) == len(keys)
            assert set(found) == keys
            await raw.close()


async def test_many_pages_of_one_caller_leave_time_to_others(
    launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    """The calls arrive in one read, and all pages were made before anything else happened.

    200 calls took 20 s, with long keys in a full store, which keeps no order of them.
    """
    provider = launch({"memory_bytes_max": "1_400_000"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for start in range(0, 8_000, 1_000):
            await client.set_many("b", {f"key-{number}": b"" for number in range(start, start + 1_000)})
    inbox = raw.new_inbox()
    results = await raw.subscribe(f"{inbox}.*.results")

    async def call(function: str, params: bytes, source_id: str, reply: str) -> None:
        await raw.publish(provider.subject(function), params, f"{inbox}.{reply}", {"source-id": source_id})

    for number in range(PAGES):
        await call("list-keys", encode_list_keys(b"b", None), "greedy", f"greedy-{number}")
    await call("list-keys", encode_list_keys(b"b", None), "modest", "page")
    await call("get", encode_bucket_key(b"b", b"key-1"), "modest", "value")
    await raw.flush()
    ended: list[str] = []
    while len(ended) < PAGES + 2:
        message = await results.next_msg(DEADLINE_S)
        if not message.data:
            ended.append(message.subject.split(".")[-2])
    assert {*ended} == {"page", "value", *(f"greedy-{number}" for number in range(PAGES))}
    assert ended.index("value") < PAGES / 2
    assert ended.index("page") < PAGES / 2
