"""What goes wrong on the wire and around it: clients that send damage or half of it, NATS that dies, signals under load."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_error, encode_unit_result
from keyvalue_transport.keyvalue.store import STORE, encode_get_result, encode_list_keys, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject, params_subject
from keyvalue_transport.wrpc.errors import NoProviderError
from keyvalue_transport.wrpc.values import write_length
from tests.conftest import DEADLINE_S, HOST_CAPTURE, HOST_ID, Launch, NatsServer, Provider, RawInvocation, in_thread

MIB = 1024 * 1024
OK = encode_unit_result(None)
#: A stop that is limited to 200 ms takes less on any machine.
STOP_S = 2.0


def whole(function: str, bucket: bytes) -> bytes:
    """Good parameters of a function."""
    if function == "set":
        return encode_set(bucket, b"k", b"value")
    return encode_list_keys(bucket, 2**40) if function == "list-keys" else encode_bucket_key(bucket, b"k")


FUNCTIONS = ("get", "set", "delete", "exists", "list-keys")
WITH_KEY = ("get", "set", "delete", "exists")


# A client that goes silent


async def test_half_a_set_holds_up_nobody_and_expires(launch: Launch, nats_server: NatsServer, raw: Client) -> None:
    provider = launch({"half_open_timeout_ms": "100"})
    params = encode_set(b"b", b"k", bytes(1000))
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        silent = await RawInvocation.begin(raw, provider.subject("set"), params[:500])
        server_inbox = await silent.handshake()
        await client.set("b", "of another", b"v")
        assert await client.get("b", "of another") == b"v"
        assert await silent.result() == b""
        await silent.send(server_inbox, params[500:], b"")  # too late
        assert await client.list_keys("b") == ([b"of another"], None)
    assert silent.unread == (0, 0)


async def test_pieces_of_many_clients_do_not_meet(provider: Provider, raw: Client, bucket: str) -> None:
    sets = {b"k%d" % number: bytes([number]) * (number + 20) for number in range(10)}
    params = [encode_set(bucket.encode(), key, value) for key, value in sets.items()]
    invocations = [await RawInvocation.begin(raw, provider.subject("set"), param[:9]) for param in params]
    inboxes = [await invocation.handshake() for invocation in invocations]
    assert len(set(inboxes)) == 10
    for at in (9, 10, 11):
        for invocation, inbox, param in zip(invocations, inboxes, params, strict=True):
            await invocation.send(inbox, param[at : at + 1])
    for invocation, inbox, param in reversed(list(zip(invocations, inboxes, params, strict=True))):
        await invocation.send(inbox, param[12:], b"")
        assert await invocation.result() == OK
    for key, value in sets.items():
        get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(bucket.encode(), key))
        assert await get.result() == encode_get_result(value)


async def test_a_client_that_is_gone_in_the_middle(
    client: KeyValueClient, nats_server: NatsServer, bucket: str
) -> None:
    large = bytes(5 * MIB)
    await client.set(bucket, "large", large)
    for _ in range(5):
        gone = await nats.connect(nats_server.url)
        name = bucket.encode()
        await RawInvocation.begin(
            gone, invocation_subject(client.prefix, STORE, "set"), encode_set(name, b"k", b"v")[:-1]
        )
        await RawInvocation.begin(
            gone, invocation_subject(client.prefix, STORE, "get"), encode_bucket_key(name, b"large")
        )
        await gone.close()
    assert await client.get(bucket, "large") == large
    assert await client.exists(bucket, "k") is False


# Damage


DAMAGED = [
    *((function, "bucket is not UTF-8", b"\x02\xc3\x28\x01k\x01v") for function in FUNCTIONS),
    *((function, "key is not UTF-8", b"\x01b\x01\xff\x01v") for function in WITH_KEY),
    *((function, "length of more than 32 bits", b"\xff\xff\xff\xff\x10") for function in FUNCTIONS),
    *((function, "key's length of six bytes", b"\x01b\x80\x80\x80\x80\x80\x01") for function in WITH_KEY),
    ("set", "value's length of more than 32 bits", b"\x01b\x01k\xff\xff\xff\xff\x7f"),
    ("list-keys", "tag 2 of an option", b"\x01b\x02"),
    ("list-keys", "tag 255 of an option", b"\x01b\xff"),
    ("list-keys", "cursor of more than 64 bits", b"\x01b\x01" + b"\xff" * 9 + b"\x02"),
]


@pytest.mark.parametrize(("function", "params"), [pytest.param(f, p, id=f"{f}: {what}") for f, what, p in DAMAGED])
async def test_damaged_parameters_end_the_invocation_at_once(
    provider: Provider, client: KeyValueClient, raw: Client, function: str, params: bytes
) -> None:
    await client.set("b", "k", b"as before")
    in_one = await RawInvocation.begin(raw, provider.subject(function), params)
    assert await in_one.result() == b""
    in_two = await RawInvocation.begin(raw, provider.subject(function), params[:1])
    await in_two.send(await in_two.handshake(), params[1:])
    assert await in_two.result() == b""
    assert await client.get("b", "k") == b"as before"
    assert in_one.unread == (1, 0)
    assert in_two.unread == (0, 0)


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_parameters_that_end_too_soon(
    provider: Provider, client: KeyValueClient, raw: Client, bucket: str, function: str
) -> None:
    params = whole(function, bucket.encode())
    for length in (0, 1, len(params) // 2, len(params) - 1):
        cut = await RawInvocation.begin(raw, provider.subject(function), params[:length])
        server_inbox = await cut.handshake()
        assert cut.unread == (0, 0)
        await cut.send(server_inbox, b"")
        assert await cut.result() == b""
    assert await client.list_keys(bucket) == ([], None)


async def test_damage_is_logged_at_a_limited_rate(launch: Launch, raw: Client) -> None:
    provider = launch()
    for _ in range(20):
        damaged = await RawInvocation.begin(raw, provider.subject("get"), b"\x01\xff")
        assert await damaged.result() == b""
    assert provider.stop() == 0
    assert provider.output.count("malformed parameters: found a string that is not UTF-8 at its byte 0") == 5


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("pieces", [1, 2])
async def test_bytes_behind_the_parameters_are_ignored(
    provider: Provider, raw: Client, bucket: str, function: str, pieces: int
) -> None:
    params = whole(function, bucket.encode())
    results = []
    for trailing in (b"", b"\xff and more"):
        if pieces == 1:
            invocation = await RawInvocation.begin(raw, provider.subject(function), params + trailing)
        else:
            invocation = await RawInvocation.begin(raw, provider.subject(function), params[:3])
            await invocation.send(await invocation.handshake(), params[3:] + trailing)
        results.append(await invocation.result())
    assert results[0] == results[1]
    assert results[0].startswith(OK)


# Limits


@pytest.mark.parametrize(
    ("function", "begin", "message"),
    [
        *(
            (function, write_length(1025), "bucket name is 1025 bytes; the limit is 1024 (bucket_name_bytes_max)")
            for function in FUNCTIONS
        ),
        *(
            (f, b"\x01b" + write_length(65_537), "key is 65537 bytes; the limit is 65536 (key_bytes_max)")
            for f in WITH_KEY
        ),
        (
            "set",
            b"\x01b\x01k" + write_length(2**32 - 1),
            "value is 4294967295 bytes; the limit is 16777216 (value_bytes_max)",
        ),
    ],
)
async def test_a_length_over_its_limit_is_refused_before_its_bytes_are_there(
    provider: Provider, raw: Client, function: str, begin: bytes, message: str
) -> None:
    in_one = await RawInvocation.begin(raw, provider.subject(function), begin)
    assert await in_one.result() == encode_error(OtherError(message))
    in_two = await RawInvocation.begin(raw, provider.subject(function), begin[:-1])
    await in_two.send(await in_two.handshake(), begin[-1:])
    assert await in_two.result() == encode_error(OtherError(message))


async def test_too_many_half_open_invocations_are_refused(launch: Launch, raw: Client) -> None:
    provider = launch({"half_open_max": "3"})
    params = encode_set(b"b", b"k", b"v")
    held = [await RawInvocation.begin(raw, provider.subject("set"), params[:-1]) for _ in range(3)]
    inboxes = [await invocation.handshake() for invocation in held]
    for _ in range(3):
        refused = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
        assert await refused.result() == b""
        server_inbox = await refused.handshake()  # a client that waits for it goes on, too
        await refused.send(server_inbox, params[-1:], b"")
    at_once = await RawInvocation.begin(raw, provider.subject("set"), encode_set(b"b", b"whole", b""))
    assert await at_once.result() == OK
    for invocation, server_inbox in zip(held, inboxes, strict=True):
        assert invocation.unread == (0, 0)
        await invocation.send(server_inbox, params[-1:])
        assert await invocation.result() == OK
    again = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    await again.send(await again.handshake(), params[-1:])
    assert await again.result() == OK


async def test_bytes_held_for_half_open_invocations_are_bounded(launch: Launch, raw: Client) -> None:
    provider = launch({"half_open_bytes_max": "1000"})
    params = encode_set(b"b", b"k", bytes(950))
    grows = await RawInvocation.begin(raw, provider.subject("set"), params[:400])
    server_inbox = await grows.handshake()
    too_much = await RawInvocation.begin(raw, provider.subject("set"), params[:601])
    assert await too_much.result() == b""
    just_fits = await RawInvocation.begin(raw, provider.subject("set"), params[:600])
    server_inbox_fits = await just_fits.handshake()
    await grows.send(server_inbox, b"v")
    assert await grows.result() == b""
    await just_fits.send(server_inbox_fits, params[600:])
    assert await just_fits.result() == OK


# Subjects


async def test_an_invocation_without_a_reply_is_not_carried_out(provider: Provider, raw: Client, bucket: str) -> None:
    params = encode_set(bucket.encode(), b"k", b"v")
    await raw.publish(provider.subject("set"), params)
    await raw.publish(provider.subject("set"), params[:-1])
    get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(bucket.encode(), b"k"))
    assert await get.result() == encode_get_result(None)


async def test_nobody_listens_on_a_function_that_is_none(
    nats_server: NatsServer, provider: Provider, raw: Client
) -> None:
    with pytest.raises(NoRespondersError):
        await raw.request(provider.subject("increment"), b"", timeout=DEADLINE_S)
    async with KeyValueClient(nats_server.url, provider.prefix + "-of-nobody") as client:
        with pytest.raises(NoProviderError, match="nobody serves this function"):
            await client.get("b", "k")


async def test_stray_pieces_are_ignored(provider: Provider, raw: Client, bucket: str) -> None:
    params = encode_set(bucket.encode(), b"k", b"v")
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    server_inbox = await half.handshake()
    stem, _, _ = server_inbox.rpartition(".")
    for stray in (f"{stem}.0", f"{stem}.{'f' * 16}"):
        await raw.publish(params_subject(stray), params[-1:])
        await raw.publish(params_subject(stray), b"")
    await raw.publish(f"{stem}.params", b"")
    await half.send(server_inbox, params[-1:], b"", b"again", b"")
    assert await half.result() == OK
    get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(bucket.encode(), b"k"))
    assert await get.result() == encode_get_result(b"v")
    assert half.unread == (0, 0)


# NATS dies


async def test_nats_is_killed_and_comes_back(new_nats_server: Callable[[], NatsServer], launch: Launch) -> None:
    server = new_nats_server()
    provider = launch(lattice_rpc_url=server.url)
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target": provider.key}
    async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"kept")
        await in_thread(server.kill)
        await in_thread(provider.wait_for, "the connection is lost")
        await in_thread(server.start)
        line = await in_thread(provider.wait_for, "connected again")
        assert server.url in line
        assert await client.get("b", "k") == b"kept"  # the client's connection came back as well
    raw = await nats.connect(server.url)
    health = await raw.request(provider.host_subject("health"), timeout=DEADLINE_S)
    assert health.data == b'{"healthy": true, "message": "serving"}'
    await raw.publish(
        provider.host_subject("linkdefs.put"), str(link).replace("'", '"').replace("None", "null").encode()
    )
    await in_thread(provider.wait_for, "link put")
    await raw.request(
        provider.host_subject("default.shutdown"), f'{{"host_id": "{HOST_ID}"}}'.encode(), timeout=DEADLINE_S
    )
    await raw.close()
    assert await in_thread(provider.wait) == 0
    assert provider.output.count("the connection is lost") == 1
    assert provider.output.count("connected again") == 1


async def test_a_half_open_invocation_goes_on_over_a_reconnect(
    new_nats_server: Callable[[], NatsServer], launch: Launch
) -> None:
    server = new_nats_server()
    provider = launch(lattice_rpc_url=server.url)
    params = encode_set(b"b", b"k", b"value")
    raw = await nats.connect(server.url)
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    server_inbox = await half.handshake()
    await raw.close()
    await in_thread(server.kill)
    await in_thread(provider.wait_for, "the connection is lost")
    await in_thread(server.start)
    await in_thread(provider.wait_for, "connected again")
    raw = await nats.connect(server.url)
    await raw.publish(params_subject(server_inbox), params[-1:])
    get = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(b"b", b"k"))
    assert await get.result() == encode_get_result(b"value")
    await raw.close()


async def test_stop_while_nats_is_away(new_nats_server: Callable[[], NatsServer], launch: Launch) -> None:
    server = new_nats_server()
    provider = launch({"stop_timeout_ms": "200"}, lattice_rpc_url=server.url)
    await in_thread(server.kill)
    await in_thread(provider.wait_for, "the connection is lost")
    began_s = time.monotonic()
    assert await in_thread(provider.stop) == 0
    assert time.monotonic() - began_s < STOP_S


async def test_stop_while_nats_says_nothing(new_nats_server: Callable[[], NatsServer], launch: Launch) -> None:
    server = new_nats_server()
    provider = launch({"stop_timeout_ms": "200"}, lattice_rpc_url=server.url)
    with server.silence():
        began_s = time.monotonic()
        assert await in_thread(provider.stop) == 0
        assert time.monotonic() - began_s < STOP_S


# Signals


async def test_sigterm_under_load(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch()
    succeeded = 0
    refused: list[type[Exception]] = []
    loaded = asyncio.Event()

    async def work(client: KeyValueClient, number: int) -> None:
        nonlocal succeeded
        value = bytes(2 * MIB if number % 50 == 0 else 64)  # large ones are half-open for a while
        while True:
            try:
                await client.set("b", f"{number}", value)
            except Exception as error:  # all of it is compared with what is allowed
                refused.append(type(error))
                return
            succeeded += 1
            if succeeded >= 1000:
                loaded.set()

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S))
            for _ in range(4)
        ]
        workers = [asyncio.create_task(work(clients[number % 4], number)) for number in range(200)]
        await loaded.wait()
        provider.signal(signal.SIGTERM)
        await asyncio.gather(*workers)
    assert refused == [NoProviderError] * 200
    assert await in_thread(provider.wait) == 0
    answered = re.search(r"stopped: (\d+) invocations answered", provider.output)
    assert answered is not None
    assert int(answered[1]) == succeeded  # none was taken and not answered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_waits_for_what_is_in_flight(launch: Launch, raw: Client, number: signal.Signals) -> None:
    provider = launch()
    params = encode_set(b"b", b"k", b"v")
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    server_inbox = await half.handshake()
    provider.signal(number)
    await in_thread(provider.wait_for, f"{number.name}: stopping")
    await half.send(server_inbox, params[-1:], b"")
    assert await half.result() == OK
    assert await in_thread(provider.wait) == 0
    with pytest.raises(NoRespondersError):
        await raw.request(provider.subject("get"), timeout=DEADLINE_S)


async def test_a_signal_ends_what_is_never_answered(launch: Launch, raw: Client) -> None:
    provider = launch({"stop_timeout_ms": "100"})
    half = await RawInvocation.begin(raw, provider.subject("set"), encode_set(b"b", b"k", b"v")[:-1])
    await half.handshake()
    provider.signal(signal.SIGTERM)
    assert await half.result() == b""
    assert await in_thread(provider.wait) == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(
    launch: Launch, raw: Client, first: signal.Signals, second: signal.Signals
) -> None:
    provider = launch({"stop_timeout_ms": "60_000"})
    half = await RawInvocation.begin(raw, provider.subject("set"), encode_set(b"b", b"k", b"v")[:-1])
    await half.handshake()
    provider.signal(first)
    await in_thread(provider.wait_for, f"{first.name}: stopping; a second signal ends at once")
    assert provider.running
    provider.signal(second)
    assert await in_thread(provider.wait) == 128 + second


# Two of one prefix


async def test_providers_of_one_prefix_share_the_load(launch: Launch, nats_server: NatsServer) -> None:
    first = launch()
    second = launch(provider_key=first.key)
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        await asyncio.gather(*(client.set("b", f"{number}", b"") for number in range(300)))
        assert await in_thread(first.stop) == 0
        await asyncio.gather(*(client.set("b", f"{number}", b"") for number in range(100)))
    assert await in_thread(second.stop) == 0
    answered = [re.search(r"stopped: (\d+)", provider.output) for provider in (first, second)]
    counts = [int(found[1]) for found in answered if found is not None]
    assert sum(counts) == 400
    assert 50 < counts[0] < 250
