"""Calls that wait for KV buckets to be read. Real servers: tests/integration/test_shared_buckets.py."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, cast

import pytest

from keyvalue_engine import StoreOptions
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.open_buckets import OpenBuckets
from keyvalue_replica.options import LinkedOptions, ReplicaOptions
from keyvalue_transport.wrpc.handler import Again
from tests.conftest import until
from tests.replica.test_follower import CONFIG, Wire


class PlainWire(Wire):
    """A connection to a server with any number of KV buckets of others."""

    def config_of(self, stream: str) -> dict[str, Any]:
        return CONFIG | {"name": stream, "subjects": [f"$KV.{stream.removeprefix('KV_')}.>"], "metadata": {}}

    async def reads(self, bucket: str) -> bool:
        """Return True if a KV bucket has a consumer."""
        await asyncio.sleep(0)
        return any(consumer["filter_subject"] == f"$KV.{bucket}.>" for consumer in self.consumers)

    def finish(self, bucket: str) -> None:
        """Deliver the only message of a KV bucket."""
        (consumer,) = (each for each in self.consumers if each["filter_subject"] == f"$KV.{bucket}.>")
        handle = self._handles[consumer["deliver_subject"]]
        handle(b"$KV.%b.k" % bucket.encode(), b"$JS.ACK.KV.c.1.1.1.1700000000000000000.0", b"", b"v")


@pytest.mark.timeout(30)
async def test_a_call_waits_for_its_turn_or_says_how_many_are_read_before() -> None:
    """The opening goes on after its call was refused, so that a later call finds the KV bucket open."""
    wire, options = PlainWire(), ReplicaOptions("", timeout_s=0.3)
    plain = OpenBuckets(cast(Any, wire), options, StoreOptions(), Again, 256, 600.0)
    names = [f"kv{number}" for number in range(7)]

    def get(name: str) -> Any:
        return plain.bucket(name.encode(), LinkedOptions(is_plain=True, reads_latest=False)).get(b"k")

    async def refusal(name: str) -> str:
        with pytest.raises(NotStoredError) as caught:
            await get(name)
        return str(caught.value).removeprefix(f"the KV bucket {name} can't be used: ")

    refusals = await asyncio.gather(*map(refusal, names))
    assert refusals[:4] == ["catching up, 1 left"] * 4
    assert refusals[4:] == [f"it is being opened, and {ahead} others are read before it" for ahead in (4, 5, 6)]
    for name in names:
        await until(functools.partial(wire.reads, name), f"it is the turn of {name}")
        wire.finish(name)
        assert await get(name) == b"v"
    await plain.stop()
