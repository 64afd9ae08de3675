"""Faults on the wire and around it: clients that send malformed or incomplete data, a NATS server that dies, a signal under load.

tests/transport tests parameters, limits and half-open invocations. Here they meet a running provider, whose state is
checked.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_error, encode_unit_result
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import params_subject
from keyvalue_transport.wrpc.errors import NoProviderError
from keyvalue_transport.wrpc.values import write_length
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, Provider, RawInvocation, in_thread
from tests.integration.test_host import HEALTHY, STOPPED, ask, health, link_to, stop_request, tell
from tests.integration.test_metrics import ON, Endpoint, Reply, scraped

MIB = 1024 * 1024
OK = encode_unit_result(None)


async def test_a_client_that_disappears_in_the_middle_of_a_call(
    provider: Provider, client: KeyValueClient, nats_server: NatsServer, bucket: str
) -> None:
    large, name = bytes(5 * MIB), bucket.encode()
    await client.set(bucket, "large", large)
    for _ in range(5):
        gone = await nats.connect(nats_server.url)
        await RawInvocation.begin(gone, provider.subject("set"), encode_set(name, b"k", b"v")[:-1])
        await RawInvocation.begin(gone, provider.subject("get"), encode_bucket_key(name, b"large"))
        await gone.close()
    assert await client.get(bucket, "large") == large
    assert await client.exists(bucket, "k") is False


@pytest.mark.parametrize(
    ("function", "params", "result"),
    [
        ("set", b"\x01b\x01\xff\x01v", b""),
        ("get", b"\xff\xff\xff\xff\x10", b""),
        ("list-keys", b"\x01b\x02", b""),
        (
            "get",
            write_length(1025),
            encode_error(OtherError("bucket name is 1025 bytes; the limit is 1024 (bucket_name_bytes_max)")),
        ),
        (
            "exists",
            b"\x01b" + write_length(65_537),
            encode_error(OtherError("key is 65537 bytes; the limit is 65536 (key_bytes_max)")),
        ),
        (
            "set",
            b"\x01b\x01k" + write_length(2**32 - 1),
            encode_error(OtherError("value is 4294967295 bytes; the limit is 16777216 (value_bytes_max)")),
        ),
        ("delete", b"\x01b\x06absent\xff and more", OK),
    ],
)
async def test_malformed_data_and_lengths_over_their_limits_end_the_invocation_at_once(
    provider: Provider, client: KeyValueClient, raw: Client, function: str, params: bytes, result: bytes
) -> None:
    await client.set("b", "k", b"as before")
    in_one = await RawInvocation.begin(raw, provider.subject(function), params)
    assert await in_one.result() == result
    in_two = await RawInvocation.begin(raw, provider.subject(function), params[:1])
    await in_two.send(await in_two.handshake(), params[1:])
    assert await in_two.result() == result
    too_short = await RawInvocation.begin(raw, provider.subject(function), params[:1])
    await too_short.send(await too_short.handshake(), b"")
    assert await too_short.result() == b""
    assert await client.get("b", "k") == b"as before"


# NATS dies


@pytest.mark.parametrize("path", PATHS)
async def test_nats_is_killed_and_comes_back(
    new_nats_server: Callable[[], NatsServer], launch: Launch, path: str
) -> None:
    """Keep stored keys and half-open invocations, report the loss in probes, and receive the host's messages again."""
    server = new_nats_server()
    provider = launch(ON | {"transport": path}, lattice_rpc_url=server.url)
    endpoint = Endpoint.of(provider)
    serving = Reply(200, "application/json", '{"ok": true, "message": "serving"}\n')
    away = Reply(503, "application/json", '{"ok": false, "message": "NATS is not connected"}\n')
    raw = await nats.connect(server.url)
    half = await RawInvocation.begin(raw, provider.subject("set"), encode_set(b"b", b"half", b"value")[:-1])
    server_inbox = await half.handshake()
    await raw.close()
    async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"kept")
        assert await in_thread(endpoint.get, "/readyz") == serving
        await in_thread(server.kill)
        await in_thread(provider.wait_for, "the connection is lost")
        assert await in_thread(endpoint.get, "/readyz") == away
        assert await in_thread(endpoint.get, "/livez") == Reply(
            200, "application/json", '{"ok": true, "message": "alive"}\n'
        )
        scrape = await scraped(provider)
        assert (scrape.value("nats_connected"), scrape.value("nats_reconnects_total")) == (0, 0)
        await in_thread(server.start)
        line = await in_thread(provider.wait_for, "connected again")
        assert server.url in line
        assert await client.get("b", "k") == b"kept"  # the client's connection came back as well
    scrape = await scraped(provider)
    assert (scrape.value("nats_connected"), scrape.value("nats_reconnects_total")) == (1, 1)
    assert await in_thread(endpoint.get, "/readyz") == serving
    raw = await nats.connect(server.url)
    await raw.publish(params_subject(server_inbox), b"e")
    get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(b"b", b"half"))
    assert await get.result() == encode_get_result(b"value")
    await tell(raw, provider, "linkdefs.put", link_to(provider))
    assert await health(raw, provider) == HEALTHY
    await tell(raw, provider, "linkdefs.put", link_to(provider, target_config={"bucket": 1}))
    told = await health(raw, provider)
    ready = await in_thread(endpoint.get, "/readyz")
    assert (ready.status, json.loads(ready.text)) == (200, {"ok": True, "message": told["message"]})
    scrape = await scraped(provider)
    assert (told["healthy"], scrape.value("healthy"), scrape.value("unusable_links")) == (False, 0, 1)
    assert await ask(raw, provider, "default.shutdown", stop_request()) == STOPPED
    await raw.close()
    assert await in_thread(provider.wait) == 0
    for text in ("the connection is lost", "connected again", "link put"):
        assert provider.output.count(text) == 1


@pytest.mark.parametrize("says", ["nothing", "that it is gone"])
async def test_a_stop_does_not_wait_for_nats(
    new_nats_server: Callable[[], NatsServer], launch: Launch, says: str
) -> None:
    server = new_nats_server()
    provider = launch({"stop_timeout_ms": "200"}, lattice_rpc_url=server.url)
    if says == "nothing":
        with server.silence():
            assert await in_thread(provider.stop) == 0
    else:
        await in_thread(server.kill)
        await in_thread(provider.wait_for, "the connection is lost")
        assert await in_thread(provider.stop) == 0


# Signals


@pytest.mark.parametrize("path", PATHS)
async def test_sigterm_under_load(launch: Launch, nats_server: NatsServer, path: str) -> None:
    """Answer each call, unless NATS refuses it because nobody listens any more."""
    provider = launch({"transport": path})
    succeeded = 0
    refused: list[type[Exception]] = []
    loaded = asyncio.Event()

    async def work(client: KeyValueClient, number: int) -> None:
        nonlocal succeeded
        value = bytes(2 * MIB if number % 50 == 0 else 64)  # large ones are half-open for a while
        while True:
            try:
                await client.set("b", f"{number}", value)
            except Exception as error:  # all errors are compared with those that are allowed
                refused.append(type(error))
                return
            succeeded += 1
            if succeeded >= 500:
                loaded.set()

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S))
            for _ in range(4)
        ]
        workers = [asyncio.create_task(work(clients[number % 4], number)) for number in range(100)]
        await asyncio.wait_for(loaded.wait(), DEADLINE_S)
        provider.signal(signal.SIGTERM)
        await asyncio.gather(*workers)
    assert refused == [NoProviderError] * 100
    assert await in_thread(provider.wait) == 0
    answered = re.search(r"stopped: (\d+) invocations answered", provider.output)
    assert answered is not None
    assert int(answered[1]) == succeeded  # no call was accepted without being answered
