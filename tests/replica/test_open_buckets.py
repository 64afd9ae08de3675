"""Calls that wait for KV buckets to be read. Real servers: tests/integration/test_shared_buckets.py."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable
from typing import Any, cast

import pytest

from keyvalue_engine import LimitError, Revision, StoreError, StoreOptions
from keyvalue_replica import catching_up, open_buckets
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.open_buckets import OpenBuckets
from keyvalue_replica.options import LinkedOptions, ReplicaOptions
from keyvalue_replica.reading_order import LARGE_BYTES
from keyvalue_transport.wrpc.handler import Again
from tests.conftest import until
from tests.replica.test_follower import CONFIG, Wire


class PlainWire(Wire):
    """A connection to a server with any number of KV buckets of others.

    :ivar missing: the streams that do not exist
    :ivar created_streams: number of requests that would create a stream
    :ivar full: the KV buckets with three replicas, which refuse all messages
    """

    def __init__(self) -> None:
        super().__init__()
        self.missing, self.full = set[str](), set[str]()
        self.created_streams = 0

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        await asyncio.sleep(0)
        if ".STREAM.CREATE." in subject:
            self.created_streams += 1
            raise TimeoutError
        if subject.removeprefix("$JS.API.STREAM.INFO.") in self.missing:
            return json.dumps({"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}).encode()
        return await super().request(subject, payload, timeout_s)

    def config_of(self, stream: str) -> dict[str, Any]:
        bucket = stream.removeprefix("KV_")
        replicas = 3 if bucket in self.full else 1
        return CONFIG | {"name": stream, "subjects": [f"$KV.{bucket}.>"], "metadata": {}, "num_replicas": replicas}

    def write_now(self, frames: bytes) -> bool:
        error = {"error": {"code": 400, "err_code": 10077, "description": "maximum bytes exceeded"}}
        for bucket, reply in re.findall(rb"^HPUB \$KV\.(\w+)\.\S+ (\S+) ", frames, re.MULTILINE):
            assert bucket.decode() in self.full
            handle = self._handles[reply.decode().rsplit(".", 2)[0] + ".*.*"]
            asyncio.get_running_loop().call_soon(handle, reply, b"", b"", json.dumps(error).encode())
        return True

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


@pytest.mark.timeout(30)
async def test_only_a_kv_bucket_that_exists_displaces_an_unused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers can invent names. Each of them is looked up, but none takes room."""
    monkeypatch.setattr(open_buckets, "LOOK_S", -1.0)  # all are unused
    monkeypatch.setattr(open_buckets, "LOOKED_UP_MAX", 20)
    wire = PlainWire()
    wire.missing = {f"KV_invented{number}" for number in range(40)}
    plain = OpenBuckets(cast(Any, wire), ReplicaOptions("", timeout_s=5.0), StoreOptions(), Again, 2, 600.0)

    def get(name: str, creates: bool = False) -> Any:
        options = LinkedOptions(is_plain=True, reads_latest=False, creates=creates)
        return plain.bucket(name.encode(), options).get(b"k")

    async def open_one(name: str) -> None:
        call = asyncio.ensure_future(get(name))
        await until(functools.partial(wire.reads, name), f"{name} is read")
        wire.finish(name)
        assert await call == b"v"

    await open_one("old")
    await open_one("new")
    refusals = await asyncio.gather(*(get(f"invented{number}") for number in range(40)), return_exceptions=True)
    assert [str(refusal) for refusal in refusals] == [
        f"the KV bucket invented{number} does not exist"
        if number < 20
        else "23 KV buckets would be open or looked up; the limit is 22 (open_buckets_max and 1024 more)"
        for number in range(40)
    ]
    assert await get("invented1", creates=True) is None
    assert get("old") == get("new") == b"v", "they are still served, so there is nothing to wait for"
    await open_one("third")
    assert (plain.open_count, get("new")) == (2, b"v")
    monkeypatch.setattr(open_buckets, "LOOK_S", 5.0)
    with pytest.raises(LimitError, match="would hold 3 KV buckets open"):
        await get("old")
    assert plain.open_count == 2
    await plain.stop()


@pytest.mark.timeout(30)
async def test_a_kv_bucket_that_refuses_barriers_keeps_no_turn_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "PROBE_S", 0.0)
    wire, options = PlainWire(), LinkedOptions(is_plain=True, reads_latest=False)
    wire.stream_bytes, wire.full = LARGE_BYTES, {"full"}
    plain = OpenBuckets(cast(Any, wire), ReplicaOptions("", timeout_s=2.0), StoreOptions(), Again, 2, 600.0)
    calls = []
    for name in ("full", "other"):
        calls.append(asyncio.ensure_future(plain.bucket(name.encode(), options).get(b"k")))
        await until(functools.partial(wire.reads, name), f"it is the turn of {name}")
        wire.finish(name)
    assert await calls[1] == b"v"
    with pytest.raises(NotStoredError, match="but a barrier failed: the KV bucket is full: maximum bytes exceeded"):
        await calls[0]
    monkeypatch.setattr(open_buckets, "LOOK_S", -1.0)
    assert plain.bucket(b"other", options).get(b"k") == b"v"
    calls.append(asyncio.ensure_future(plain.bucket(b"third", options).get(b"k")))
    await until(functools.partial(wire.reads, "third"), "it displaces the one that can't be used")
    wire.finish("third")
    assert [await calls[2], plain.bucket(b"other", options).get(b"k")] == [b"v", b"v"]
    await plain.stop()


@pytest.mark.timeout(30)
async def test_a_stop_ends_the_calls_that_wait() -> None:
    wire, options = PlainWire(), LinkedOptions(is_plain=True, creates=True)
    plain = OpenBuckets(cast(Any, wire), ReplicaOptions("", timeout_s=20.0), StoreOptions(), Again, 256, 600.0)
    calls = [asyncio.ensure_future(plain.bucket(name, options).set(b"k", b"v")) for name in (b"read", b"looked_up")]
    await until(functools.partial(wire.reads, "read"), "one of them is read")
    calls.append(asyncio.ensure_future(plain.bucket(b"later", options).set(b"k", b"v")))
    await plain.stop()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["the provider stops: nothing was sent"] * 3
    assert plain.open_count == 0


@pytest.mark.parametrize("is_atomic", [True, False])
@pytest.mark.parametrize(
    ("write", "answer"),
    [
        (lambda handle: handle.set(b"k", b"large"), "value is 5 bytes"),
        (lambda handle: handle.increment(b"k", -1), "outside the range"),
        (lambda handle: handle.update(b"k", lambda *_: b"large"), "value is 5 bytes"),
        (lambda handle: handle.update(b"k", lambda entry, *_: entry), Revision(None, None)),
        (lambda handle: handle.set_missing({b"k": b"large"}), "value is 5 bytes"),
        (lambda handle: handle.set_missing({b"k": b"v", b"l": b"large"}), "value is 5 bytes"),
        (lambda handle: handle.set_many({}), None),
        (lambda handle: handle.set_many({b"k": b"v", b"l": b"large"}), "value is 5 bytes"),
        (lambda handle: handle.set(b"k", b"v"), "it is being opened"),
        (lambda handle: handle.increment(b"k", 1), "it is being opened"),
        (lambda handle: handle.update(b"k", lambda *_: b"v"), "it is being opened"),
        (lambda handle: handle.set_missing({b"k": b"v", b"l": b"v"}), "it is being opened"),
    ],
)
@pytest.mark.timeout(30)
async def test_a_write_that_stores_nothing_creates_no_kv_bucket(
    write: Callable[[Any], Any], answer: object, is_atomic: bool
) -> None:
    wire, limits = PlainWire(), StoreOptions(value_bytes_max=3)
    wire.missing = {"KV_kv"}
    options = ReplicaOptions("", timeout_s=0.1, is_atomic=is_atomic)
    plain = OpenBuckets(cast(Any, wire), options, limits, Again, 256, 600.0)
    handle = plain.bucket(b"kv", LinkedOptions(is_plain=True, creates=True))
    if isinstance(answer, str):
        with pytest.raises(StoreError, match=answer):
            await write(handle)
    else:
        assert await write(handle) == answer
    assert bool(wire.created_streams) is (answer == "it is being opened")
    await plain.stop()
    assert plain.reservations.excess()["keys_max"] == len(plain.store) == 0
