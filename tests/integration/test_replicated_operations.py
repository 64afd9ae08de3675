"""Operating the replicated store: what an administrator of NATS does with the bucket, and what the provider then does."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.request import urlopen

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_replica.layout import Layout
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread, settled, until
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


async def test_health_and_metrics_of_an_instance_that_catches_up_and_is_past_its_limit(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    keys = 40_000
    async with KeyValueClient(nats_server.url, launch({"jetstream_bucket": "many"}).prefix) as client:
        assert (await client.list_keys("b")).keys == []
    layout = Layout("many")
    for number in range(keys):
        await admin.publish(layout.subject(b"b", b"%d" % number).decode(), b"by others")
    await settled(admin)
    late = launch({"jetstream_bucket": "many", "keys_max": "39999", "metrics_address": "127.0.0.1:0"}, wait=False)
    told: list[str] = []

    async def is_serving() -> bool:
        with suppress(NoRespondersError):
            answer = json.loads((await admin.request(late.host_subject("health"), timeout=DEADLINE_S)).data)
            told.append(answer["message"])
            assert answer["healthy"] == answer["message"].startswith("serving")
        return bool(told) and told[-1].startswith("serving")

    await until(is_serving, "it has caught up")
    left = [int(found[1]) for message in told if (found := re.fullmatch(r"catching up, (\d+) left", message))]
    assert left == sorted(left, reverse=True) != []
    assert told[-1].startswith("serving; the KV bucket exceeds keys_max by 1: ")
    async with KeyValueClient(nats_server.url, late.prefix, timeout_s=DEADLINE_S) as client:
        with pytest.raises(OtherError, match=r"keys_max"):
            await client.set("b", "one more", b"v")
    at = late.wait_for("metrics at").split()[-1]
    found = await in_thread(lambda: urlopen(at, timeout=DEADLINE_S).read().decode())
    assert 'wrpc_keyvalue_replica_excess{limit="keys_max"} 1.0\n' in found
    for gauge, value in (("serving", 1), ("behind", 0)):
        assert f"wrpc_keyvalue_replica_{gauge} {value}.0\n" in found
    assert int(float(re.findall(r"^wrpc_keyvalue_replica_applied_sequence (.*)$", found, re.MULTILINE)[0])) >= keys
