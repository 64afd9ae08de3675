"""The direct path over TLS: nats-py upgrades the connection after the server's INFO, or before it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from engine import Store
from provider.service import Service
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation
from transport.direct import PARAMS, DirectProtocol, DirectRoutes, DirectTransport
from transport.invocation import Invocations
from transport.keyvalue import encode_bucket_key, encode_get_result, encode_set, store_handlers
from transport.subjects import params_subject

MAX_PAYLOAD = 100_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    paths = directory / "certificate.pem", directory / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", paths[1])
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-out", paths[0], "-days", "2", *names], check=True, capture_output=True
    )
    return paths


@pytest.fixture(params=[False, True], ids=["after INFO", "before INFO"])
def handshake_first(request: pytest.FixtureRequest) -> bool:
    """Whether TLS begins before the server's INFO."""
    first: bool = request.param
    return first


@pytest.fixture
def tls_server(
    new_nats_server: Callable[[str], NatsServer], certificate: tuple[Path, Path], handshake_first: bool
) -> NatsServer:
    """A NATS server that takes TLS alone, and messages smaller than others do."""
    files = (
        f'cert_file: "{certificate[0]}", key_file: "{certificate[1]}", handshake_first: {str(handshake_first).lower()}'
    )
    return new_nats_server(f"max_payload: {MAX_PAYLOAD}\ntls {{ {files} }}\n")


async def never(message: object) -> None:
    raise AssertionError("nats-py saw a message of a subscription that is routed")


async def test_the_direct_path_over_tls(
    tls_server: NatsServer, certificate: tuple[Path, Path], handshake_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    context = ssl.create_default_context(cafile=str(certificate[0]))
    reconnected = asyncio.Event()

    async def note() -> None:
        reconnected.set()

    async def ignore(error: Exception) -> None:
        pass  # of attempts to reconnect

    routes = DirectRoutes()
    provider, caller = Client(), Client()
    provider._transport = carried = DirectTransport(routes)
    times = {"reconnect_time_wait": 0.01, "max_reconnect_attempts": -1}
    for client, on_reconnected in ((provider, note), (caller, None)):
        await client.connect(
            tls_server.url.replace("nats:", "tls:"),
            tls=context,
            tls_handshake_first=handshake_first,
            reconnected_cb=on_reconnected,
            error_cb=ignore,
            **times,  # type: ignore[arg-type] # takes any number
        )
    inbox = provider.new_inbox()
    routes.invocations = Invocations(inbox, provider.new_inbox(), lambda: "token", None, provider.max_payload)
    service = Service(Store())
    for name, handler in store_handlers(service, service.parameter_limits).items():
        subscription = await provider.subscribe(name, cb=never)
        routes.add(subscription._id, handler)
    pieces = await provider.subscribe(params_subject(f"{inbox}.*"), cb=never)
    routes.add(pieces._id, PARAMS)
    await provider.flush()

    value = bytes(number % 251 for number in range(3 * MAX_PAYLOAD))
    params = encode_set(b"b", b"k", value)
    for _ in range(2):
        begun = await RawInvocation.begin(caller, "set", params[:MAX_PAYLOAD])
        rest = (params[at : at + MAX_PAYLOAD] for at in range(MAX_PAYLOAD, len(params), MAX_PAYLOAD))
        await begun.send(await begun.handshake(), *rest, b"")
        assert await begun.result() == b"\x00"
        begun = await RawInvocation.begin(caller, "get", encode_bucket_key(b"b", b"k"), {"source-id": "a"})
        assert await begun.result() == encode_get_result(value)
        assert routes.callers.callers

        writer = carried._io_writer
        assert writer is not None
        assert writer.get_extra_info("cipher") is not None
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, DirectProtocol)
        assert protocol._max_payload == MAX_PAYLOAD
        # Then all once more, over the next connection.
        reconnected.clear()
        writer.transport.abort()
        await asyncio.wait_for(reconnected.wait(), DEADLINE_S)
    await provider.close()
    await caller.close()
