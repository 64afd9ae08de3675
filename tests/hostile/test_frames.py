"""Raw frames that no client library sends: none makes the provider deaf, speak for a caller, or flood its log."""

from __future__ import annotations

import json
from collections.abc import Callable

import nats
import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, in_thread, settled, until
from tests.hostile.frames import CONFIG, besiege
from tests.integration.test_metrics import ON, Endpoint, scraped

PARAMS = encode_bucket_key(b"b", b"k")


@pytest.mark.parametrize("path", PATHS)
def test_no_frame_makes_the_provider_deaf(path: str, launch: Launch, nats_server: NatsServer) -> None:
    """A header block `x` to the health subject ended nats-py's reading, and a reply subject `>` its connection."""
    assert besiege(launch(CONFIG | {"transport": path}), nats_server.port, seed=1, seconds=0, batches_min=4) > 800


@pytest.mark.parametrize("path", PATHS)
async def test_no_caller_speaks_as_the_provider(path: str, launch: Launch, raw: Client) -> None:
    """20,000 calls with reply subject `...linkdefs.put` wrote 20,001 log lines."""
    provider = launch(ON | {"transport": path})
    heard = await raw.subscribe("wasmbus.rpc.default.other.>")
    targets = (*map(provider.host_subject, ("config.update", "linkdefs.put")), provider.subject("set"))
    for target in (*targets, "wasmbus.rpc.default.other.x", "$JS.API.INFO"):
        for subject in (provider.subject("get"), provider.host_subject("health")):
            for _ in range(200):
                await raw.publish(subject, PARAMS, target)
    await settled(raw)
    health = json.loads((await raw.request(provider.host_subject("health"), timeout=DEADLINE_S)).data)
    assert health == {"healthy": True, "message": "serving"}
    assert (await scraped(provider)).value("refused_replies_total") == 2_000
    assert heard.pending_msgs == 0
    assert provider.output.count("\n") < 20


@pytest.mark.parametrize("path", PATHS)
async def test_a_denied_answer_is_reported(
    path: str, new_nats_server: Callable[[str], NatsServer], launch: Launch
) -> None:
    """Callers timed out, and health, the log and the metrics said that all was well."""
    users = """
        { user: host, password: p },
        { user: provider, password: p, permissions: { publish: { deny: "denied.>" }, subscribe: ">" } },
        { user: mute, password: p, permissions: { publish: { deny: "_INBOX.>" }, subscribe: ">" } },
    """
    server = new_nats_server(f"authorization {{ users: [ {users} ] }}")
    url = server.url.replace("//", "//{}:p@").format
    config = ON | {"transport": path}
    provider = launch(config, lattice_rpc_url=url("provider"))
    host = await nats.connect(url("host"))
    for number in range(100):
        await host.publish(provider.subject("get"), PARAMS, f"denied.{number}")
    await settled(host)
    refused = 'Permissions Violation for Publish to "denied.99.results"'

    async def says_why() -> bool:
        health = json.loads((await host.request(provider.host_subject("health"), timeout=DEADLINE_S)).data)
        assert health["healthy"], "any caller could make it unhealthy"
        return refused in health["message"]

    await until(says_why, "health names the refused subject")
    assert (await scraped(provider)).value("nats_denied_messages_total") == 300
    assert 0 < provider.output.count("Permissions Violation") < 20
    mute = launch(config, lattice_rpc_url=url("mute"))
    ready = await in_thread(Endpoint.of(mute).get, "/readyz")
    assert ready.status == 503
    assert "no call can be answered" in ready.text
    await host.close()
