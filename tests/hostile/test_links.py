"""Many links end to end: the work of a change, the memory of their handles, and quotas over many buckets."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, Provider, settled

MIB = 1024 * 1024


def link(provider: Provider, source_id: str, **target_config: str) -> dict[str, object]:
    return {"source_id": source_id, "target": provider.key, "name": "default", "target_config": target_config}


async def put(raw: Client, provider: Provider, source_id: str, **target_config: str) -> None:
    definition = json.dumps(link(provider, source_id, **target_config)).encode()
    await raw.publish(provider.host_subject("linkdefs.put"), definition)


def caller(server: NatsServer, provider: Provider, source_id: str | None = None) -> KeyValueClient:
    return KeyValueClient(server.url, provider.prefix, source_id=source_id, link_name="default", timeout_s=DEADLINE_S)


async def fill(client: KeyValueClient, buckets: int) -> None:
    """Write a key to each bucket."""
    for start in range(0, buckets, 500):
        numbers = range(start, min(start + 500, buckets))
        await asyncio.gather(*[client.set(f"bucket-{number}", "k", b"v") for number in numbers])


def cpu_s(provider: Provider) -> float:
    """Return the processor time of a provider so far. Other processes do not change it, as they change a duration."""
    fields = Path(f"/proc/{provider.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(provider: Provider) -> int:
    text = Path(f"/proc/{provider.process.pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("path", PATHS)
async def test_links_with_quotas_cost_as_much_as_links(
    path: str, launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    """12,000 quotas over 3,000 buckets stopped the provider for 24 s. A quota looked at each bucket."""
    provider = launch({"transport": path})
    async with caller(nats_server, provider) as client, caller(nats_server, provider, "component-7") as limited:
        await fill(client, 1_000)
        before_s = cpu_s(provider)
        for number in range(3_000):
            await put(raw, provider, f"component-{number}", quota_keys=str(1_000 + number), bucket_prefix="bucket-")
        await settled(raw)
        with pytest.raises(OtherError, match="would hold 1008 keys; the limit is 1007"):
            await limited.set_many("1", {f"new-{number}": b"" for number in range(8)})
        await limited.set_many("1", {f"new-{number}": b"" for number in range(7)})
        await fill(client, 1_000)
        assert cpu_s(provider) - before_s < 4


async def test_all_links_together_keep_a_limited_number_of_handles(
    launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    """40 links with 1,000 names each took 94 MB."""
    provider = launch()
    long = "n" * 1_000
    sizes = []
    for number in range(14):
        source_id = f"component-{number}"
        await put(raw, provider, source_id)
        await settled(raw)
        async with caller(nats_server, provider, source_id) as client:
            await asyncio.gather(*[client.get(f"{index}{long}", "k") for index in range(1_000)])
        sizes.append(resident_bytes(provider))
    assert sizes[-1] - sizes[5] < 5 * MIB


@pytest.mark.parametrize("path", PATHS)
async def test_a_new_quota_over_many_buckets_limits_the_first_write(
    path: str, launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    """The count takes several steps. Calls wait for it, and no call sees the quota without its counts."""
    buckets = 9_000
    provider = launch({"transport": path})
    async with caller(nats_server, provider) as client, caller(nats_server, provider, "component") as limited:
        await fill(client, buckets)
        for rounds in range(3):
            await put(raw, provider, "component", quota_keys=str(buckets))
            await settled(raw)
            writes = [limited.set("bucket-0", f"new-{number}", b"") for number in range(20)]
            refused = await asyncio.gather(*writes, limited.set("bucket-0", "k", b"w"), return_exceptions=True)
            assert [type(each) for each in refused] == [OtherError] * 20 + [type(None)], rounds
            await raw.publish(provider.host_subject("linkdefs.del"), json.dumps(link(provider, "component")).encode())
            await settled(raw)
