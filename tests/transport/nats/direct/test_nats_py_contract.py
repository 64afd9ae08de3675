"""The internals of nats-py that the direct path uses, in the oldest and the newest supported version.

If one of these tests fails, read `keyvalue_transport.nats.direct.transport` again before you change its
NATS_PY_VERSIONS.
"""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport, Transport

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.store import STORE, store_handlers
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.direct import transport as direct_transport
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.direct.transport import NATS_PY_VERSIONS, DirectTransport, direct_path_unknown
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.nats.tls import TlsOptions
from keyvalue_transport.wrpc.errors import ConnectError
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation, in_thread
from tests.transport.nats.in_process import until

ROOT = Path(__file__).parents[4]
#: The program that is run with the oldest version too.
FILES = (
    "tests/transport/nats/direct/test_nats_py_contract.py",
    "tests/transport/nats/direct/test_alike.py",
    "tests/transport/nats/direct/test_protocol.py",
    "tests/transport/nats/test_headers.py",
    "tests/transport/nats/test_nats_py_errors.py",
    "tests/integration/test_tls.py",
)
PREFIX = "default.contract"
MIB = 1024 * 1024


# The classes.


def test_the_methods_of_a_transport() -> None:
    assert Transport.__abstractmethods__ == {
        *("connect", "connect_tls", "write", "writelines", "read", "readline", "drain"),
        *("wait_closed", "close", "at_eof", "__bool__"),
    }
    assert set(vars(TcpTransport)) >= Transport.__abstractmethods__


def test_the_attributes_of_a_tcp_transport() -> None:
    carried = TcpTransport()  # type: ignore[no-untyped-call]
    names = {"_io_reader", "_io_writer", "_bare_io_reader", "_bare_io_writer"}
    assert Client()._transport is None
    assert vars(carried) == dict.fromkeys(names)
    ours = DirectTransport(DirectRoutes())
    assert vars(ours).keys() == names | {
        *("_routes", "_tls_required", "_has_certificate", "_clear", "_info", "_judged"),
    }
    assert bool(ours) is True
    ours.close()  # although it never connected


@pytest.mark.parametrize("name", ["connect", "connect_tls", "readline", "drain", "write", "writelines", "close"])
def test_overridden_methods_are_called_as_before(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (DirectTransport, TcpTransport))
    assert list(ours) == list(theirs)
    assert inspect.iscoroutinefunction(getattr(DirectTransport, name)) is (
        name in ("connect", "connect_tls", "readline", "drain")
    )


# Over a NATS server.


async def test_a_preset_transport_survives_reconnects(new_nats_server: Callable[[], NatsServer]) -> None:
    """The id of a subscription is the one on the wire, and stays the same: nats-py sees no message of the routed ones."""
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,)))
    carried = connection._client._transport
    assert type(carried) is DirectTransport
    provider = Server(connection, PREFIX)
    results = {f"function-{number}": b"%d" % number for number in range(12)}
    provider.add("contract", {name: lambda *_, result=result: result for name, result in results.items()})
    await provider.start()
    for reconnects in (1, 2):
        writer = carried._io_writer
        await in_thread(server.kill)
        await in_thread(server.start)
        await until(lambda reconnects=reconnects: connection.reconnects == reconnects)  # type: ignore[misc] # a default
        assert connection._client._transport is carried
        assert carried._io_writer is not writer
        raw = await nats.connect(server.url)
        for name, result in results.items():
            invocation = await RawInvocation.begin(raw, invocation_subject(PREFIX, "contract", name), b"")
            assert await invocation.result() == result
        await raw.close()
    assert connection._client.stats["in_msgs"] == 0
    await provider.stop(DEADLINE_S)
    await connection.close()


async def serve(server: NatsServer, connection: Connection) -> None:
    """Set and get over a connection, then close it."""
    service = Service(Store())
    provider = Server(connection, PREFIX)
    provider.add(STORE, store_handlers(service, service.parameter_limits))
    await provider.start()
    await connection.flush(DEADLINE_S)
    seen_by_nats_py = connection._client.stats["in_msgs"]
    async with KeyValueClient(server.url, PREFIX, timeout_s=DEADLINE_S, source_id="a", link_name="default") as client:
        for size in (0, 64, MIB, 5 * MIB):
            value = os.urandom(size)
            await client.set("b", "k", value)
            assert await client.get("b", "k") == value
    seen_by_nats_py = connection._client.stats["in_msgs"] - seen_by_nats_py
    assert (seen_by_nats_py == 0) is (connection.direct is not None)
    assert provider.counts.answered == 8
    await provider.stop(DEADLINE_S)
    await connection.close()


# Versions.


def test_known_versions() -> None:
    assert direct_path_unknown() is None, "the installed one"
    assert NATS_PY_VERSIONS == ((2, 10), (2, 16))
    for installed in ("2.10.0", "2.10.0rc1", "2.11", "2.16.0", "2.16.99", "2.16.0.post1"):
        assert direct_path_unknown(installed) is None, installed
    for installed in ("2.9.1", "1.10.0", "2.17.0", "2.100.0", "3.0.0", "3.12.0", "0.0.0"):
        found = direct_path_unknown(installed)
        assert found == f"the direct path does not support nats-py {installed}, only 2.10 to 2.16"


async def test_a_known_version_takes_the_direct_path_and_others_the_plain_path(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keyvalue_transport")
    await serve(nats_server, await Connection.open(ConnectionOptions((nats_server.url,))))
    with monkeypatch.context() as patches:
        patches.setattr(direct_transport, "version", lambda name: "9.9.9")
        connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    assert connection.direct is None
    await serve(nats_server, connection)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the direct path does not support nats-py 9.9.9, only 2.10 to 2.16; using the plain path")
    ]
    caplog.clear()
    connection = Connection(ConnectionOptions((nats_server.url,), path="plain"))
    assert connection.direct is None
    assert caplog.records == []


@pytest.mark.parametrize("path", ["direct", "plain"])
@pytest.mark.parametrize("options", [{"tls": TlsOptions()}, {"urls": ("tls://127.0.0.1:1",)}])
def test_only_known_versions_may_require_tls(
    path: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials are held back by a transport that nats-py must accept."""
    monkeypatch.setattr(direct_transport, "version", lambda name: "9.9.9")
    with pytest.raises(ConnectError, match=r"does not support nats-py 9\.9\.9, .*; TLS needs one of these versions"):
        Connection(ConnectionOptions(**{"urls": ("nats://127.0.0.1:1",), "path": path} | options))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_direct_path_over_the_oldest_version(tmp_path: Path) -> None:
    oldest = ".".join(map(str, NATS_PY_VERSIONS[0]))
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", tmp_path)
    subprocess.run([sys.executable, *install, f"nats-py=={oldest}.*"], check=True, timeout=120)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = "import importlib.metadata, nats; print(importlib.metadata.version('nats-py'), nats.__file__)"
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.startswith(f"{oldest}."), found.stdout
    assert str(tmp_path) in found.stdout
    assert not version("nats-py").startswith(f"{oldest}."), "the other tests run over the newest"
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES, "-k", "not over_the_oldest")
    run = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
    )
    assert run.returncode == 0, run.stdout + run.stderr


async def test_the_internals_that_drain_uses(nats_server: NatsServer) -> None:
    """It needs an UNSUB that keeps the subscription known, and the queue of messages that are not handled yet."""
    client = Client()
    await client.connect(servers=[nats_server.url])
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    subscription = await client.subscribe("contract.drain", cb=hear)
    await client.publish("contract.drain", b"before")
    await client._send_unsubscribe(subscription._id)
    await client.flush()
    await client.flush()
    await subscription._pending_queue.join()
    assert heard == [b"before"]
    await subscription.unsubscribe()
    await client.close()


@pytest.mark.skipif(
    "skip_subject_validation" not in inspect.signature(Client.connect).parameters,
    reason="this nats-py has no such check",
)
async def test_nats_py_does_not_check_subjects_again(nats_server: NatsServer) -> None:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    try:
        assert connection._client._skip_subject_validation is True
    finally:
        await connection.close()
