"""The NATS permissions in docs/operating.md: they are enough for each user, and keep others out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.subjects import invocation_subject
from tests.conftest import DEADLINE_S, PATHS, PROVIDER, Launch, NatsServer, Process, in_thread, settled

LATTICE, KEY = "default", "keyvalue-inmemory"
DOCUMENT = Path(__file__).parents[2] / "docs" / "operating.md"


def documented_permissions() -> str:
    """Return the configuration in the document. The password of each user is the user's name."""
    found = re.search(r"```text\n(authorization: .*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return re.sub(r"\$(\w+)_PASSWORD", lambda user: user[1].lower(), found[1])


@pytest.mark.parametrize("path", PATHS)
async def test_the_documented_permissions(
    path: str, new_nats_server: Callable[[str], NatsServer], launch: Launch, tmp_path: Path
) -> None:
    server = new_nats_server(documented_permissions())
    at = server.url.replace("//", "//{}@").format
    provider = launch(
        {"transport": path},
        provider_key=KEY,
        lattice_rpc_prefix=LATTICE,
        lattice_rpc_url=at("provider:provider"),
        host_xkey_public_key="",
        provider_xkey_private_key="",
    )
    host = await nats.connect(at("host:host"))
    watcher = await nats.connect(at("watcher:watcher"))
    events = await watcher.subscribe(invocation_subject(f"{LATTICE}.watcher", WATCHER, "on-set"))
    await settled(watcher)
    link = {"source_id": KEY, "target": "watcher", "name": "default", "source_config": {"watch": "SET@*"}}
    await host.publish(provider.host_subject("linkdefs.put"), json.dumps(link | {"interfaces": ["watcher"]}).encode())
    await settled(host)
    own = ConnectionOptions((at("caller:caller"),), inbox_prefix="_INBOX_caller", path="plain")
    caller = await Connection.open(own)
    async with KeyValueClient(at("host:host"), provider.prefix, timeout_s=DEADLINE_S) as client:
        value = b"v" * 3_000_000  # in several messages in both directions
        async with KeyValueClient(caller, provider.prefix, timeout_s=DEADLINE_S) as of_caller:
            await of_caller.set("b", "k", value)
            assert await of_caller.get("b", "k") == value
        assert await client.get("b", "k") == value
        await client.set("b", "small", b"v")
        event = await events.next_msg(DEADLINE_S)
        await watcher.publish(f"{event.reply}.results", b"")

        refusals: asyncio.Queue[Exception] = asyncio.Queue()
        monitor = await nats.connect(at("monitor:monitor"), inbox_prefix=b"_INBOX_monitor", error_cb=refusals.put)
        health = json.loads((await monitor.request(provider.host_subject("health"), timeout=DEADLINE_S)).data)
        assert health == {"healthy": True, "message": "serving"}
        await monitor.publish(provider.subject("set"), encode_set(b"b", b"k", b"forged"), "_INBOX_monitor.reply")
        await monitor.publish(provider.host_subject("config.update"), b'{"require_link": "true"}')
        await monitor.subscribe("_INBOX.>")
        await monitor.subscribe(f"{provider.prefix}.wrpc.>")
        for _ in range(4):
            assert "permissions violation" in str(await asyncio.wait_for(refusals.get(), DEADLINE_S)).lower()
        assert await client.get("b", "k") == value
        await monitor.close()
    second = Process([PROVIDER, "serve", "--nats", at("provider:provider"), "--prefix", provider.prefix], tmp_path)
    assert await in_thread(second.wait) == 1
    assert "is also served, with other keys" in second.output  # it may ask, and the first may answer
    await caller.close()
    assert watcher.last_error is None
    await watcher.close()
    await host.close()
