"""Other instances with another store: what is kept and reported, whatever arrives. tests/integration/test_split.py tests processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from keyvalue_provider.observe import other_instances
from keyvalue_provider.observe.other_instances import (
    ANNOUNCEMENT_BYTES_MAX,
    NAMED_MAX,
    OTHERS_MAX,
    REPORTED_INTERVALS,
    SILENT_INTERVALS,
    OtherInstances,
    place_of_process,
    read_announcement,
)
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.frame_parser import ReadingFaults
from tests.conftest import DEADLINE_S, PATHS, NatsServer, settled
from tests.log_lines import LogLines

PREFIX = "default.kv"
SHARED = "jetstream shared 2026"
LOG = "keyvalue_provider.observe.other_instances"


def announcement(instance: object, store: object = "memory x", where: object = "a place", **more: object) -> bytes:
    return json.dumps({"instance": instance, "store": store, "where": where, **more}).encode()


def unconnected() -> OtherInstances:
    """Return an object whose connection takes everything and sends nothing."""
    connection = SimpleNamespace(connected=True, reading=ReadingFaults(), write_now=lambda frames: True)
    others = OtherInstances(cast(Connection, connection), PREFIX, "here", lambda: SHARED)
    others._is_there = True
    return others


def hear(others: OtherInstances, payload: bytes) -> None:
    others._on_here(b"subject", b"", b"", payload)


INSTANCES = st.integers(0, OTHERS_MAX + 8).map("{:016x}".format)
MALFORMED = st.binary(max_size=40) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.dictionaries(st.sampled_from(("instance", "store", "where", "a")), inner, max_size=4),
).map(lambda value: json.dumps(value).encode())
#: Intervals in which some instances stay, the end of an interval, another instance with its own store or with ours, many at
#: once, or anything.
EVENTS = st.one_of(
    st.integers(1, 2 * REPORTED_INTERVALS),
    *(st.just("interval"), st.just("crowd"), INSTANCES, st.tuples(INSTANCES), MALFORMED, st.just(b"[" * 1_000)),
)


@given(st.lists(EVENTS, max_size=60))
async def test_only_instances_that_stay_are_reported_and_few_are_kept(events: list[Any]) -> None:
    """Compare with a model: two numbers for each instance, the intervals since its first and its last announcement."""
    model: dict[str, list[int]] = {}
    told: set[str] = set()
    changes = 0
    others = unconnected()

    def expect(instance: str) -> None:
        if instance in model or len(model) < OTHERS_MAX:
            model.setdefault(instance, [0, 0])[1] = 0
        hear(others, announcement(instance, more=1))

    def rounds(event: Any) -> Iterator[Any]:
        staying = (*(f"{number:016x}" for number in range(NAMED_MAX + 2)), "interval")
        yield from staying * event if isinstance(event, int) else (event,)

    with LogLines.of(LOG) as log:
        for event in chain.from_iterable(map(rounds, events)):
            if event == "interval":
                others.end_interval()
                model = {
                    name: [age + 1, silent + 1] for name, (age, silent) in model.items() if silent < SILENT_INTERVALS
                }
                now = {name for name, (age, _) in model.items() if age >= REPORTED_INTERVALS}
                changes += now != told
                told = now
            elif event == "crowd":
                for number in range(2 * OTHERS_MAX):
                    expect(f"{number:016x}")
            elif isinstance(event, str):
                expect(event)
            elif isinstance(event, tuple):
                hear(others, announcement(event[0], SHARED))
            else:
                hear(others, event)
            assert others.count == len(model) <= OTHERS_MAX
            (remark,) = others.remarks() or [""]
            assert bool(remark) == bool(told)
            assert remark.count("a place (store=memory)") == min(len(told), NAMED_MAX)
            assert (f", {len(told) - NAMED_MAX} more:" in remark) == (len(told) > NAMED_MAX)
            assert len(log.lines) == changes, "one line for each change, not for each announcement"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * ANNOUNCEMENT_BYTES_MAX,
        b'{"instance": ' + b"[" * 400 + b"]" * 400 + b"}",
        announcement("0" * 15),
        announcement("0" * 16 + "\n"),
        announcement(16 * "g"),
        announcement(10**16),
        announcement("0" * 16, ""),
        announcement("0" * 16, "memory\n2026 ERROR forged"),
        announcement("0" * 16, "memory", "\x1b[2J"),
        announcement("0" * 16, "memory", ["here"]),
        announcement("0" * 16, "memory", "x" * 401),
        announcement("0" * 16, more="x" * ANNOUNCEMENT_BYTES_MAX),
    ],
)
def test_a_malformed_announcement_is_counted(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_announcement(payload)
    others = unconnected()
    hear(others, payload)
    assert (others.count, others._connection.reading.ignored) == (0, 1)


def test_the_place_of_a_process_fits_into_an_announcement_without_the_hosts_id() -> None:
    for host_id in ("", "N" * 56, "\n" * 100_000, "a'\"\\" * 1_000):
        where = place_of_process(host_id)
        assert not host_id or host_id not in where, "it would allow anybody to stop the provider"
        long = announcement("0" * 16, "jetstream " + "b" * 200 + " 2026-01-01T00:00:00.000000000Z", where)
        assert read_announcement(long)[2] == where


# With a NATS server


@asynccontextmanager
async def connected(server: NatsServer, path: str, store: str | None = None) -> AsyncIterator[OtherInstances]:
    """Yield an instance that listens."""
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    others = OtherInstances(connection, PREFIX, f"{path} {store}", None if store is None else lambda: store)
    await others.listen()
    yield others
    others.leave()
    await connection.close()


@pytest.mark.parametrize("path", PATHS)
async def test_the_question_is_answered_and_an_instance_alone_does_not_wait(
    path: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_instances, "ANSWER_TIMEOUT_S", 10 * DEADLINE_S)  # longer than the limit of this test
    async with connected(nats_server, path) as first, connected(nats_server, path) as second:
        await first.find()
        assert first.remarks() == []
        await first.join()
        await first._connection.flush(DEADLINE_S)
        await second.find()
        assert second.remarks() == [
            f"{PREFIX} is also served, with other keys, by {path} None (store=memory): each call reaches only one instance"
        ]
        assert first.count == 0
        with LogLines.of(LOG) as log:
            await second.join()
            assert log.lines == [f"WARNING {second.remarks()[0]}"]
        async with asyncio.timeout(DEADLINE_S):
            while first.count == 0:
                await first._connection.flush(DEADLINE_S)
        assert first.remarks() == [], "a new instance may replace this one, so it is not reported at once"


@pytest.mark.parametrize("path", PATHS)
async def test_instances_of_one_bucket_are_no_split(
    path: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_instances, "ANSWER_TIMEOUT_S", 0.5)
    async with connected(nats_server, path, SHARED) as first, connected(nats_server, path, SHARED) as second:
        await first.join()
        await first._connection.flush(DEADLINE_S)
        await second.find()
        assert second.count == 0
        async with (
            connected(nats_server, path, "jetstream other 2026") as third,
            connected(nats_server, path) as fourth,
        ):
            for another in (third, fourth):
                await another.find()
                assert "(store=jetstream, jetstream_bucket=shared)" in another.remarks()[0]


@pytest.mark.parametrize("path", PATHS)
async def test_many_questions_get_few_answers(path: str, nats_server: NatsServer, raw: Client) -> None:
    async with connected(nats_server, path) as others:
        await others.join()
        await others._connection.flush(DEADLINE_S)
        answers = await raw.subscribe(others._here)
        other_service = await raw.subscribe("any.>")
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for _ in range(20_000):
            await raw.publish(others._who, b"x" * 100, "any.subject")
        await settled(raw)
        await answers.next_msg(DEADLINE_S)
        await others._connection.flush(DEADLINE_S)
        await settled(raw)
        allowed = (loop.time() - begun_s) / other_instances.ANSWER_PAUSE_S + 2
        assert answers.pending_msgs < allowed
        assert other_service.pending_msgs == 0, "it publishes to its own subject only"
