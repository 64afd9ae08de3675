"""Instances with one prefix and different keys: they say so, and `serve` does not start beside another. Real processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PROVIDER, Launch, NatsServer, Process, Provider, until
from tests.integration.test_metrics import ON, scraped
from tests.integration.test_replicated import jetstream

#: The provider with short intervals: others are reported after 2 s, and forgotten after 1.2 s.
HURRIED = f"""#!{sys.executable}
import sys
from keyvalue_provider.observe import other_instances
other_instances.INTERVAL_S = 0.3
from keyvalue_provider.__main__ import main
sys.exit(main())
"""
WARNING = "is also served, with other keys, by"
HEALTHY = {"healthy": True, "message": "serving"}

Serve = Callable[..., Process]


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream."""
    server = NatsServer(directory := tmp_path_factory.mktemp("nats"), jetstream(directory))
    yield server
    server.stop()


@pytest.fixture
def serve(nats_server: NatsServer, tmp_path: Path) -> Iterator[Serve]:
    """Start `keyvalue-inmemory serve` at a prefix, with flags."""
    started: list[Process] = []

    def start(prefix: str, *flags: str) -> Process:
        command = ("serve", "--nats", nats_server.url, "--prefix", prefix, *flags)
        started.append(Process([PROVIDER, *command], tmp_path, {}))
        return started[-1]

    yield start
    for process in started:
        process.kill()


async def health(raw: Client, provider: Provider) -> dict[str, object]:
    found: dict[str, object] = json.loads((await raw.request(provider.host_subject("health"), timeout=DEADLINE_S)).data)
    return found


@pytest.mark.parametrize("path", ["plain", "direct"])
async def test_serve_refuses_to_join_another_and_says_whom(
    path: str, launch: Launch, serve: Serve, nats_server: NatsServer
) -> None:
    first = launch(ON | {"transport": path})
    flags = "--redis-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"
    refused = serve(first.prefix, "--transport", path, *flags)
    assert refused.wait() == 1  # and no client could connect: it would log an address
    (line,) = refused.output.splitlines()
    assert f"not started: {first.prefix} {WARNING} process {first.process.pid} on " in line
    assert "allow_split=true" in line
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        for number in range(20):  # it has not taken any call
            await client.set("b", f"k{number}", b"v")
        assert len(await client.get_many("b", [f"k{number}" for number in range(20)])) == 20
    assert (await scraped(first)).value("other_instances") == 0, "it has not announced itself either"

    allowed = serve(first.prefix, "--allow-split", "true")
    allowed.wait_for("ready: serving")
    assert allowed.output.count(WARNING) == 1

    async def is_counted() -> bool:
        return (await scraped(first)).value("other_instances") == 1

    await until(is_counted, "the metric counts it")
    first.stop()
    again = serve(first.prefix)
    assert again.wait() == 1, "it runs without a host, and was there first"
    allowed.kill()
    serve(first.prefix).wait_for("ready: serving")


async def test_a_hosts_provider_starts_in_any_case_and_warns_of_one_that_stays(
    nats_server: NatsServer, tmp_path: Path, launch: Launch, raw: Client
) -> None:
    """A host's start is a restart or a roll-over, in which two instances run for a moment."""
    hurried = tmp_path / "hurried"
    hurried.write_text(HURRIED)
    hurried.chmod(0o755)
    first = launch(ON)
    providers = [Provider(first.host_data, tmp_path, {}, (hurried,)) for _ in range(2)]
    try:
        one, other = providers
        for provider in providers:
            provider.wait_for("ready: serving")
            provider.wait_for(WARNING)
        assert one.output.count(WARNING) < 3, "a line for each change, not for each announcement"
        answers = [await health(raw, first) for _ in range(20)]  # each of the three may answer
        assert all(answer["healthy"] for answer in answers)
        assert any(WARNING in str(answer["message"]) for answer in answers)
        assert WARNING not in first.output, "it has known them for less than a roll-over takes"
        other.kill()
        first.stop()
        one.wait_for("is no longer served with other keys")
        assert await health(raw, one) == HEALTHY
    finally:
        for provider in providers:
            provider.kill()


async def test_instances_of_one_bucket_share_a_prefix_and_others_do_not(launch: Launch, serve: Serve) -> None:
    first = launch({"store": "jetstream", "jetstream_bucket": "shared"} | ON)
    shared = "--store", "jetstream", "--jetstream-bucket", "shared"
    second = serve(first.prefix, *shared)
    second.wait_for("ready: serving")
    assert WARNING not in second.output
    memory = serve(first.prefix)
    assert memory.wait() == 1
    assert "(store=jetstream, jetstream_bucket=shared)" in memory.output
    assert "let all instances share their keys (store=jetstream)" in memory.output
    other_bucket = serve(first.prefix, "--store", "jetstream", "--jetstream-bucket", "another")
    assert other_bucket.wait() == 1
    assert "(store=jetstream, jetstream_bucket=shared): each call reaches only one instance" in other_bucket.output
    assert (
        "(the same jetstream_bucket, keys and jetstream_domain; this instance has store=jetstream, jetstream_bucket=another)"
        in other_bucket.output
    )
    plain = serve(first.prefix, "--store", "jetstream", "--keys", "plain")
    assert plain.wait() == 1
    assert "this instance has store=jetstream, keys=plain)" in plain.output
    assert (await scraped(first)).value("other_instances") == 0
    second.process.terminate()
    assert second.wait() == 0

    in_memory = launch()
    beside = serve(in_memory.prefix, *shared)
    assert beside.wait() == 1
    assert "(store=memory)" in beside.output


@pytest.mark.parametrize("path", ["plain", "direct"])
async def test_hostile_announcements_do_no_more_than_warn(path: str, launch: Launch, raw: Client) -> None:
    """Any client that may publish to inboxes can send them."""
    provider = launch(ON | {"transport": path})
    here = f"_INBOX.keyvalue-inmemory.{provider.prefix}.here"
    for number in range(5_000):
        announcement = {"instance": f"{number:016x}", "store": "x", "where": "y" * 400}
        await raw.publish(here, json.dumps(announcement).encode(), provider.subject("set"))
        await raw.publish(here, b"\xff" * (number % 2_000), "wasmbus.rpc.default.x")
    for reply in (here, here.replace(".here", ".who")):
        await raw.publish(provider.subject("get"), b"\x01b\x01k", reply)
    assert await health(raw, provider) == HEALTHY

    async def are_counted() -> bool:
        return (await scraped(provider)).value("nats_ignored_messages_total") == 5_001  # and a handshake

    await until(are_counted, "the malformed announcements are counted")
    assert (await scraped(provider)).value("other_instances") == 64
    assert provider.output.count("\n") < 20
