"""Pages of keys where NATS allows only small messages. Go's bindings misread a page that is cut into several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from keyvalue_transport.keyvalue.store import decode_key_response, encode_list_keys
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PATHS, NatsServer, RawInvocation, in_thread, launching


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_fits_in_one_message(
    path: str, new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    server = new_nats_server("max_payload: 4096\n")
    keys = {f"key-{number}".encode() for number in range(1_500)} | {b"long" * 1_000}
    with launching(server.url, tmp_path) as launch:
        provider = launch({"transport": path})
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            for key in sorted(keys):
                await client.set("b", key.decode(), b"")
        for restarts, limit in enumerate((4096, 1024, 8192)):
            if restarts:
                server.stop()
                server.start(f"max_payload: {limit}\n")
                await in_thread(provider.wait_for, "connected again", restarts)
            raw = await nats.connect(server.url)
            found: list[bytes] = []
            cursor: int | None = None
            while cursor is not None or not found:
                invocation = await RawInvocation.begin(
                    raw, provider.subject("list-keys"), encode_list_keys(b"b", cursor)
                )
                page = await invocation.result()
                (page_keys, cursor), _ = decode_key_response(page, 0, len(page))
                assert len(page) <= limit or len(page_keys) == 1
                found += page_keys
            assert len(found) == len(keys)
            assert set(found) == keys
            await raw.close()
