"""The follower on a connection whose server does what the test says. Real servers: tests/integration/test_replicated.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import pytest

from keyvalue_engine import StoreOptions
from keyvalue_replica import follower as following
from keyvalue_replica.follower import Follower
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.stream import StreamState

LAYOUT = Layout("kv")
CONFIG = {
    "name": "KV_kv",
    "subjects": [LAYOUT.subjects],
    "discard": "new",
    "max_msgs_per_subject": 1,
    "allow_rollup_hdrs": True,
    "allow_msg_ttl": True,
    "subject_delete_marker_ttl": 1,
    "allow_atomic": True,
    "metadata": {"wrpc-keyvalue-secret": "00" * 16},
}
Handle = Callable[[bytes, bytes, bytes, bytes], None]


class Wire:
    """A connection to a server with one stream.

    :ivar on_the_way: called while a subscription ends
    :ivar on_request: called with each request
    :ivar stream_bytes: the size of each stream
    :ivar message_bytes_max: the limit of the stream for a message, or -1
    :ivar late: number of consumers that are created without an answer in time
    :ivar last_sequence: that of the stream's last message
    :ivar time: the server's
    :ivar consumers: the configurations of all consumers that were created
    """

    connected = True
    max_payload = 1024 * 1024

    def __init__(self) -> None:
        self.on_the_way: Callable[[], None] = lambda: None
        self.on_request: Callable[[], None] = lambda: None
        self.late = self.last_sequence = self.stream_bytes = 0
        self.time = "2026-01-01T00:00:01Z"
        self.message_bytes_max = -1
        self.consumers: list[dict[str, Any]] = []
        self.on_lost: list[Callable[[], None]] = []
        self.created = asyncio.Event()
        self._handles: dict[str, Handle] = {}
        self._numbers = count()

    def new_inbox(self) -> str:
        return f"_INBOX.{next(self._numbers)}"

    async def wait_connected(self) -> None: ...

    def write_now(self, frames: bytes) -> bool:
        return True

    def call_soon(self, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(act)

    async def subscribe_frames(self, subject: str, handle: Handle, quick: object = ()) -> str:
        self._handles[subject] = handle
        return subject

    async def drain(self, subjects: Sequence[str], timeout_s: float) -> None:
        await asyncio.sleep(0)
        self.on_the_way()
        for subject in subjects:
            del self._handles[subject]

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self.on_request()
        state = {"first_seq": 1, "last_seq": self.last_sequence, "messages": 0, "num_subjects": 1}
        state["bytes"] = self.stream_bytes
        answer: dict[str, Any] = {
            "created": "2026-01-01T00:00:00Z",
            "ts": self.time,
            "config": self.config_of(subject.split(".")[-1]),
            "state": state,
        }
        if ".CONSUMER.CREATE." in subject:
            self.consumers.append(json.loads(payload)["config"])
            self.created.set()
            if len(self.consumers) <= self.late:
                raise TimeoutError
            delivered = int(self.late > 0)
            answer = {"num_pending": 1 - delivered, "delivered": {"consumer_seq": delivered, "stream_seq": delivered}}
        return json.dumps(answer).encode()

    def config_of(self, stream: str) -> dict[str, Any]:
        """Return the configuration of a stream."""
        return CONFIG | {"max_msg_size": self.message_bytes_max}

    def deliver(self, key: bytes, sequence: int, consumer_sequence: int) -> None:
        """Deliver a message of the last consumer, after which nothing is pending."""
        handle = self._handles[self.consumers[-1]["deliver_subject"]]
        reply = f"$JS.ACK.KV_kv.c.1.{sequence}.{consumer_sequence}.1700000000000000000.0"
        handle(LAYOUT.subject(b"b", key), reply.encode(), b"", b"v")


class Serving:
    """Notes whether the instance serves."""

    def __init__(self) -> None:
        self.joined = asyncio.Event()

    async def join(self) -> None:
        self.joined.set()

    async def leave(self) -> None:
        self.joined.clear()


@pytest.mark.timeout(30)
async def test_a_stream_that_ends_too_early_is_read_again() -> None:
    """Deliveries of the last consumer, which arrive meanwhile, do not advance the emptied engine."""
    wire, serving = Wire(), Serving()
    follower = Follower(cast(Any, wire), ReplicaOptions("kv"))
    core = await follower.open(StoreOptions(), 1)
    follower.start(serving)
    await wire.created.wait()
    wire.deliver(b"first", 1, 1)
    await serving.joined.wait()
    wire.on_the_way = lambda: wire.deliver(b"second", 2, 2)
    was_whole: list[bool] = []
    wire.on_request = lambda: was_whole.append(core.position.is_whole)
    wire.created.clear()
    follower.follow_again("deliveries were lost")
    await wire.created.wait()
    assert [consumer["deliver_policy"] for consumer in wire.consumers] == ["last_per_subject"] * 2
    assert not any(was_whole), "no read is answered meanwhile"
    assert (follower.applied, len(core.store)) == (0, 0)
    wire.deliver(b"first", 1, 1)
    wire.deliver(b"second", 2, 2)
    await serving.joined.wait()
    assert len(core.store) == 2
    assert follower.write(b"")
    await follower.stop()
    assert not follower.write(b"PUB late 0\r\n\r\n")


@pytest.mark.timeout(30)
async def test_an_instance_that_stood_still_for_long_reads_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told that deletes are missing, and its own clock may have stood still, too."""
    monkeypatch.setattr("keyvalue_replica.follower.LOOK_S", 0.01)
    wire, serving = Wire(), Serving()
    follower = Follower(cast(Any, wire), ReplicaOptions("kv"))
    await follower.open(StoreOptions(), 1)
    follower.start(serving)
    await wire.created.wait()
    wire.last_sequence = 1
    wire.deliver(b"first", 1, 1)
    await serving.joined.wait()
    wire.created.clear()
    wire.time = "2026-01-01T00:30:02Z"
    await wire.created.wait()
    assert [consumer["deliver_policy"] for consumer in wire.consumers] == ["last_per_subject"] * 2
    await follower.stop()


@pytest.mark.parametrize(
    ("max_age_s", "away_s", "why"),
    [
        (0, 1_799, ""),
        (0, 1_801, "the instance was away for too long"),
        (10, 4, ""),
        (10, 6, "the instance was away for too long"),
        (7_200, 1_801, "the instance was away for too long"),
    ],
)
def test_an_instance_goes_on_only_while_the_stream_still_has_the_deletes(
    max_age_s: int, away_s: float, why: str
) -> None:
    """A delete stays for an hour, or as long as the stream keeps any message. Some keys stay for longer (`never`)."""
    age_ns = max_age_s * 10**9
    answer = {"created": "then", "ts": "2026-01-01T00:00:01Z", "config": CONFIG | {"max_age": age_ns}}
    state = StreamState.of(answer | {"state": {"last_seq": 7}})
    assert state.why_read_again("then", 7, away_s, age_ns) == why
    assert state.why_read_again("then", 7, 0, age_ns + 1) == "max_age of the stream was changed"
    assert state.why_read_again("then", 8, 0, age_ns) == "the stream ends at message 7, but 8 was applied"
    assert state.why_read_again("now", 7, 0, age_ns) == "the stream was created again or restored"


@pytest.mark.timeout(30)
async def test_a_server_that_takes_long_is_asked_for_the_same_consumer() -> None:
    wire, serving = Wire(), Serving()
    wire.late = 3
    follower = Follower(cast(Any, wire), ReplicaOptions("kv"))
    await follower.open(StoreOptions(), 1)
    follower.start(serving)
    while len(wire.consumers) <= wire.late:  # noqa: ASYNC110 - a request sets no event
        await asyncio.sleep(0)
    assert not follower.core.position.is_whole, "it has delivered a message, which has not arrived"
    wire.deliver(b"first", 1, 1)
    await serving.joined.wait()
    assert {consumer["name"] for consumer in wire.consumers} == {wire.consumers[0]["name"]}
    await follower.stop()


@pytest.mark.timeout(30)
async def test_the_limit_of_the_stream_for_a_message_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_S", 0.01)
    wire, serving = Wire(), Serving()
    wire.message_bytes_max = 2_000
    follower = Follower(cast(Any, wire), ReplicaOptions("kv"))
    await follower.open(StoreOptions(), 1)
    assert follower.max_payload() == 2_000
    wire.message_bytes_max = 1_000  # before it follows the stream
    follower.start(serving)
    await wire.created.wait()
    assert follower.max_payload() == 1_000
    wire.deliver(b"first", 1, 1)
    await serving.joined.wait()
    wire.message_bytes_max = -1
    while follower.max_payload() < wire.max_payload:  # noqa: ASYNC110 - a look sets no event
        await asyncio.sleep(0)
    await follower.stop()
