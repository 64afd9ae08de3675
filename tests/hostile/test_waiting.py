"""A caller with more writes at once than may wait for the KV bucket. A refused write must change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nats

from keyvalue_transport.keyvalue.interface import encode_unit_result
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, NatsServer, launching, until
from tests.hostile.test_half_open import stopped
from tests.integration.test_metrics import ON, scraped

SETS = 12_000
OK = encode_unit_result(None)


async def test_a_refused_write_is_not_published(new_nats_server: Callable[[str], NatsServer], tmp_path: Path) -> None:
    """All sets arrive together, since the provider is stopped while they are sent."""
    server = new_nats_server(f"jetstream {{ store_dir: {json.dumps(str(tmp_path))} }}\n")
    with launching(server.url, tmp_path) as launch:
        provider = launch(ON | {"store": "jetstream", "stop_timeout_ms": "500"})
        client = await nats.connect(server.url)
        inbox = client.new_inbox()
        results = await client.subscribe(f"{inbox}.*.results", pending_msgs_limit=4 * SETS)
        with stopped(provider):
            for number in range(SETS):
                await client.publish(
                    provider.subject("set"), encode_set(b"b", b"%d" % number, b"v"), f"{inbox}.{number}"
                )
            await client.flush()
        written, ended = set[int](), set[int]()
        while len(ended) < SETS:
            message = await results.next_msg(DEADLINE_S)
            number = int(message.subject.split(".")[-2])
            if message.data:
                assert message.data == OK
                written.add(number)
            else:
                ended.add(number)
        await client.close()
        found = await scraped(provider)
        assert found.value("refused_invocations_total") == SETS - len(written) > 0
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as reader:

            async def caught_up() -> bool:
                return {int(key) async for key in reader.keys("b")} >= written

            await until(caught_up, "the provider shows all keys that were written")
            assert {int(key) async for key in reader.keys("b")} == written
