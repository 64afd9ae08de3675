"""Operating the replicated store: what an administrator of NATS does with the bucket, and what the provider then does."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, until
from tests.integration.test_replicated import admin, launch, nats_server

__all__ = ["admin", "launch", "nats_server"]  # fixtures


async def api(client: Client, name: str, parameters: Mapping[str, Any] | None = None, domain: str = "") -> Any:
    """Call a function of the JetStream API, which must not fail."""
    prefix = f"$JS.{domain}.API" if domain else "$JS.API"
    answer = json.loads((await client.request(f"{prefix}.{name}", json.dumps(parameters or {}).encode(), 10)).data)
    assert "error" not in answer, answer
    return answer


async def test_barriers_of_an_ended_instance_go_away(launch: Launch, nats_server: NatsServer, admin: Client) -> None:
    """The server removes a barrier after a minute. The test publishes one with a second in place of the minute."""
    provider = launch({"jetstream_bucket": "barriers"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.get("b", "k")

    async def subjects() -> dict[str, int]:
        info = await api(admin, "STREAM.INFO.KV_barriers", {"subjects_filter": "$KV.barriers.i.>"})
        return dict(info["state"].get("subjects") or {})

    (subject,) = await subjects()
    message = (await api(admin, "STREAM.MSG.GET.KV_barriers", {"last_by_subj": subject}))["message"]
    headers = base64.b64decode(message["hdrs"])
    assert headers.count(b"Nats-TTL: 60s") == 1
    fields = dict(line.split(": ") for line in headers.replace(b"60s", b"1s").decode().split("\r\n")[1:] if line)
    await admin.request("$KV.barriers.i.ended", b"1", headers=fields, timeout=DEADLINE_S)
    assert (await subjects()).keys() == {subject, "$KV.barriers.i.ended"}

    async def is_gone() -> bool:
        return (await subjects()).keys() == {subject}

    await until(is_gone, "the barrier is removed, and leaves no marker")
