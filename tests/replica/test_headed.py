"""Quick readers of headers have the effect of parsing each frame. tests/integration has the frames of a real server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_engine import Bucket, Store
from keyvalue_replica import headed, quick
from keyvalue_replica.batches import Batches
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.core import Core
from keyvalue_replica.headed import HeadedDeliveries, SharedHeadedDeliveries
from keyvalue_replica.layout import BARRIER_BLOCK, Layout, ttl_headers
from keyvalue_replica.outgoing import Outgoing, after_sequence
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.position import Position
from keyvalue_replica.quick import Barriers, Deliveries
from keyvalue_replica.shared_quick import SharedBarriers, SharedDeliveries
from keyvalue_transport.nats.direct.frames import MessageFrame, read_frame
from keyvalue_transport.nats.direct.routes import Quick
from tests.replica.test_shared_quick import CONSUMER, QuietOutside

LAYOUTS = Layout("kv"), PlainLayout("kv", b"kv")
BEGAN_NS = 1_700_000_000 * 10**9
SID = b"7"
BATCH = "Nats-Batch-Id: %s\r\nNats-Batch-Sequence: 1\r\n"
DELETE, PURGE = (layout.delete_headers.decode() for layout in LAYOUTS)
TTL = ttl_headers(1500).decode()
KEPT = ttl_headers(1500, 1_700_000_000_500_000_000).decode()
CONDITION = "Nats-Expected-Last-Subject-Sequence: 12\r\n"
#: The headers of a message, in three parts. The first ones of each are those that instances write.
BATCHES = ("", BATCH % "x-1", BATCH % "x-1", BATCH % "x-2", BATCH % "x 1", BATCH.lower() % "x-1")
CONTENTS = (
    *(
        "",
        "",
        CONDITION,
        TTL,
        CONDITION + TTL,
        CONDITION + KEPT,
        KEPT.replace("17", "x"),
        DELETE,
        CONDITION + DELETE,
        PURGE,
        "KV-Operation: DEL\r\n",
        TTL + CONDITION,
    ),
    *("Nats-TTL: 5s\r\n", "Kv-Ttl-Ms: x\r\n", TTL.replace("1500", "1"), "Nats-Rollup: all\r\n", "Nats-Rollup: sub\r\n"),
    *(
        "Kv-Format: 2\r\n",
        "Nats-Marker-Reason: MaxAge\r\n",
        "KV-Operation: PUT\r\n",
        "kv-operation:DEL\r\n",
        DELETE + TTL,
    ),
)
ENDS = ("", "", "Nats-Batch-Commit: 1\r\n", "Nats-Batch-Commit: eob\r\n", "Traceparent: 00-1\r\n", "no header\r\n")
texts = st.builds(lambda *parts: "".join(parts), *map(st.sampled_from, (BATCHES, CONTENTS, ENDS)))
blocks = st.one_of(
    st.just(b""),
    texts.map(lambda text: b"NATS/1.0\r\n%b\r\n" % text.encode()),
    st.sampled_from((b"NATS/1.0 100 Status\r\n\r\n", b"NATS/1.1\r\n\r\n", b"NATS/1.0\r\n\r\n")),
)
#: A delivery: by how much its sequence exceeds the one before, its key, its headers, how many messages follow it, and
#: by how much the size of its headers differs from what it should be.
deliveries = st.tuples(
    st.sampled_from((1, 1, 1, 1, 3)),
    st.sampled_from((b"a", b"b", b"c.d", b"foreign", b"barrier")),
    blocks,
    st.sampled_from((0, 1, 1, 1)),
    st.sampled_from((0,) * 12 + (-2, 2)),
)


def followed(layout: Layout, applied: int, trusts_pending: bool) -> tuple[Core, QuietOutside, list[Any]]:
    """Return a core that knows messages up to `applied`, and what it tells of deletes."""
    outside, deletes = QuietOutside(), list[Any]()
    clock = ServerClock(lambda: 0)
    core = Core(Store(clock=clock, is_limited=False), layout, outside, "_INBOX.x", "instance", 5.0, clock)
    core.begin()
    core.position.trusts_pending = trusts_pending
    core.deliver(layout.subject(b"kv", b"first"), b"$JS.ACK.KV_kv.%b.1.1.1.1.9" % CONSUMER.encode(), b"", b"")
    core.position.applied = applied
    core.report_deletes(SimpleNamespace(note_delete=lambda *deletion: deletes.append(deletion), restart=deletes.clear))
    clock.note(BEGAN_NS)
    return core, outside, deletes


def quick_readers(core: Core) -> tuple[Quick, ...]:
    """Return the readers of a core in the order in which they are tried."""
    if core.layout.bucket is None:
        return Barriers(core, CONSUMER), HeadedDeliveries(core, CONSUMER), Deliveries(core, CONSUMER)
    by_consumer = {CONSUMER.encode(): core}
    return SharedHeadedDeliveries(by_consumer, SharedBarriers(by_consumer)), SharedDeliveries(by_consumer)


def read(core: Core, readers: Sequence[Quick], reads: Iterable[bytes]) -> int:
    """Take reads as the direct path does. Return the number of frames that were parsed."""
    kept, parsed = b"", 0
    for each in reads:
        buffer, at = kept + each, 0
        while at < len(buffer):
            reader = next((reader for reader in readers if buffer.startswith(reader.prefix, at)), None)
            if reader is not None and (taken := reader.take(buffer, at, len(buffer), SID)) > at:
                at = taken
                continue
            frame = read_frame(buffer, at, len(buffer), 10**6)
            if isinstance(frame, int):
                break
            assert isinstance(frame, MessageFrame)
            parsed += 1
            block = buffer[frame.headers_at : frame.payload_at]
            core.deliver(frame.words[1], frame.reply, block, buffer[frame.payload_at : frame.payload_end])
            at = frame.payload_end + 2
        kept = buffer[at:]
    assert not kept
    return parsed


def frame_of(subject: bytes, block: bytes, payload: bytes, place: Sequence[int], excess: int = 0) -> bytes:
    """Return a frame. The size of its headers is wrong by `excess`."""
    reply = f"$JS.ACK.KV_kv.{CONSUMER}.1.{'.'.join(map(str, map(int, place)))}".encode()
    if not block:
        return b"MSG %b %b %b %d\r\n%b\r\n" % (subject, SID, reply, len(payload), payload)
    sizes = b"%d %d" % (max(0, min(len(block) + excess, len(block + payload))), len(block + payload))
    return b"HMSG %b %b %b %b\r\n%b%b\r\n" % (subject, SID, reply, sizes, block, payload)


def effect(core: Core, outside: QuietOutside, deletes: list[Any], gaps: int) -> dict[str, Any]:
    """Return everything that later calls and messages depend on."""
    position = {name: getattr(core.position, name) for name in Position.__slots__}
    position["gaps"] = core.position.gaps > gaps  # a barrier asks only whether there was one
    buckets = [core.store.bucket(name) for name in core.store.bucket_names()]
    keys = {bucket.name: {key: bucket.entry(key) for key in sorted(bucket.page().keys)} for bucket in buckets}
    batch = [(subject, payload, place[0]) for subject, _, payload, place in core._applier.batch]
    watched, foreign = dict(core._sequences.by_subject), core.counts.foreign > 0  # a run counts a subject once
    core.store.check()
    return {
        **{"position": position, "keys": keys, "batch": batch, "watched": watched, "foreign": foreign},
        **{"last": core._last, "told": outside.again, "deletes": deletes},
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=["encoded", "plain"])
@example(
    [(1, b"a", b"NATS/1.0\r\n%b\r\n" % (BATCHES[1] + ENDS[n]).encode(), 1, 0) for n in (0, 2, 0)], 1, True, False, 9, []
)
@example([(1, b"barrier", BARRIER_BLOCK, 1, 0), (1, b"a", b"", 0, 0)], 1, True, False, 9, [3, 90])
@given(
    st.lists(deliveries, min_size=1, max_size=12),
    *(st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 40), st.lists(st.integers(0, 4000), max_size=3)),
)
def test_frames_that_are_read_quickly_have_the_effect_of_those_that_are_parsed(
    layout: Layout,
    deliveries: Sequence[tuple[int, bytes, bytes, int, int]],
    applied: int,
    trusts_pending: bool,
    is_watched: bool,
    lost: int,
    cuts: Sequence[int],
) -> None:
    """Plain messages that were applied before have successors here, because only the last one's place counts."""
    sequences = list(accumulate((step for step, *_ in deliveries), initial=1))[1:]
    frames = []
    for number, (sequence, (_, key, block, pending, excess)) in enumerate(zip(sequences, deliveries, strict=True)):
        subject = layout.subject(b"kv", key)
        if key == b"foreign" and layout.bucket is None:
            subject = b"$KV.kv.b.kA"
        elif key == b"barrier":
            subject = layout.barrier("0f")
        place = sequence, number + 2 + (number >= lost), BEGAN_NS + sequence * 10**5, pending or sequence <= applied
        frames.append(frame_of(subject, block, b"%d" % number, place, excess))
    whole = b"".join(frames)
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    found = []
    for is_quick in (False, True):
        core, outside, deletes = followed(layout, applied, trusts_pending)
        gaps = core.position.gaps
        if is_watched:
            core._sequences.watch(layout.subject(b"kv", deliveries[0][1]))
        read(core, quick_readers(core) if is_quick else (), [whole[at:end] for at, end in pairwise(bounds)])
        found.append(effect(core, outside, deletes, gaps))
    if lost < len(frames):
        assert all(each["told"] and not each["position"]["is_whole"] for each in found)
        if not all(block for _, _, block, _, _ in deliveries):
            return  # of plain ones, those before the loss are lost, too, if they come together
        found = [{**each, "told": "", "position": ""} for each in found]  # the number of complaints may differ
    assert found[0] == found[1]


#: How a delivery may differ from the others of a run.
TEXTS = {"commit": ENDS[2], "condition": CONDITION, "delete": DELETE, "timed": TTL}
TEXTS["odd"] = "KV-Operation: DEL\r\n".replace(" ", " " * (len(CONDITION) - 18))  # as long as a condition
AGED = Layout("kv")
AGED.max_age_ns = 3600 * 10**9
WAYS = (*TEXTS, *("gap", "bucket", "deep", "batch", "number", "last", "more", "long", "size", "sid", "lost"))


def new_deliveries(is_part: bool, usual: str, ways: Sequence[str], before: int) -> bytes:
    """Return new deliveries that are alike, apart from the ways in which some of them differ.

    :param before: the number of the delivery before the first one
    """
    layout, frames, sequence, consumed = LAYOUTS[0], [], before, before
    for number, way in enumerate(ways):
        sequence, consumed = sequence + 1 + 2 * (way == "gap"), consumed + 1 + (way == "lost")
        subject = layout.subject(b"kw" if way == "bucket" else b"kv", b"key%02d" % (number % 3))
        if way == "deep":  # it would be another key without the point
            subject = subject[:-2] + b".Q"
        text = BATCH % ("x-2" if way == "batch" else "x-1") if is_part else ""
        text = (text.replace(": 1", ": 12") if way == "number" else text) + TEXTS.get(way or usual, "")
        block = b"NATS/1.0\r\n%b\r\n" % text.encode() if text else b""
        place = sequence, consumed, BEGAN_NS + sequence, {"last": 0, "more": 10}.get(way, 5)
        payload = b"longer" if way == "long" else b"%03d" % number
        frame = frame_of(subject, block, payload, place, way == "size")
        frames.append(frame.replace(b" 7 ", b" 8 ") if way == "sid" else frame)
    return b"".join(frames)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=50)
@given(
    st.booleans(),
    st.sampled_from(("", "", "condition", *TEXTS)),
    st.lists(st.sampled_from(WAYS), max_size=2).flatmap(lambda odd: st.permutations([*odd, *[""] * 20])),
    *(st.integers(4, 16), st.sampled_from((94, 200)), st.integers(0, 6), st.sampled_from((LAYOUTS[0], AGED))),
    *(st.booleans(), st.booleans(), st.lists(st.integers(0, 4000), max_size=2)),
)
def test_runs_of_new_deliveries_change_nothing(
    way: str,
    is_part: bool,
    usual: str,
    ways: Sequence[str],
    at: int,
    before: int,
    known: int,
    layout: Layout,
    trusts_pending: bool,
    is_watched: bool,
    cuts: Sequence[int],
) -> None:
    """Frames that are taken one by one have the effect of those that are parsed, as the test above finds."""
    ways = [*ways[:at], way, *ways[at:]]
    whole = new_deliveries(is_part, usual, ways, before)
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    found = []
    for frames_min in (10**9, 4):
        core, outside, deletes = followed(layout, before + known, trusts_pending)
        core.position._consumed = before
        if is_watched:
            core._sequences.watch(LAYOUTS[0].subject(b"kv", b"key01"))
        with patch.object(quick, "RUN_FRAMES_MIN", frames_min), patch.object(headed, "RUN_FRAMES_MIN", frames_min):
            read(core, quick_readers(core), [whole[at:end] for at, end in pairwise(bounds)])
        found.append({**effect(core, outside, deletes, 0), "told": bool(outside.again)})  # a run complains once
    if "lost" in ways:  # those before the loss are lost, too, if they come together
        assert all(each["told"] and not each["position"]["is_whole"] for each in found)
    else:
        assert found[0] == found[1]


class Sent:
    """Takes the messages of a batch."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    def now_s(self) -> float:
        return 0.0

    def publish_together(self, messages: Sequence[Outgoing], publication: object) -> None:
        self.messages += messages


def written(layout: Layout) -> list[Outgoing]:
    """Return a message of each kind with headers that an instance writes."""
    subjects = map(partial(layout.subject, b"kv"), (b"%d" % number for number in range(100)))
    core, _, _ = followed(layout, 1, True)
    plain = Outgoing(next(subjects), b"v")
    timed = Outgoing.of(next(subjects), (b"v", BEGAN_NS + 10**10), BEGAN_NS)
    alone = [timed, core.delete_message(next(subjects))]
    alone += [after_sequence(message, 12) for message in (plain, *alone)]
    sent = Sent()
    Batches(sent, "0f").publish([plain, *alone], core.publish_one(plain, None))
    return [*alone, *sent.messages]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["encoded", "plain"])
def test_everything_that_instances_write_is_read_quickly(layout: Layout) -> None:
    messages = written(layout)
    frames = [
        frame_of(
            message.subject, b"NATS/1.0\r\n%b\r\n" % message.headers, message.payload, (number, number, BEGAN_NS, 1)
        )
        for number, message in enumerate(messages, 2)
    ]
    core, _, _ = followed(layout, 1, True)
    assert read(core, quick_readers(core), [b"".join(frames)]) == 0
    assert len(core.store.bucket(b"kv")) == 3  # "first", and the plain and the timed one


def test_a_batch_in_two_reads_is_one_call_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would take three times as long, and local reads between the two would see a part of it."""
    layout, keys, frames = LAYOUTS[0], 500, []
    core, _, _ = followed(layout, 1, True)
    subjects = [layout.subject(b"kv", b"%d" % number) for number in range(keys)]
    for number, subject in enumerate(subjects):
        headers = (BATCH % "x-1").encode() + b"Nats-Batch-Commit: 1\r\n" * (number == keys - 1)
        frames.append(frame_of(subject, b"NATS/1.0\r\n%b\r\n" % headers, b"v", (number + 2, number + 2, BEGAN_NS, 1)))
    calls: list[int] = []
    set_many = Bucket.set_many

    def counted(bucket: Bucket, entries: Mapping[bytes, bytes]) -> None:
        calls.append(len(entries))
        set_many(bucket, entries)

    monkeypatch.setattr(Bucket, "set_many", counted)
    core._sequences.watch(subjects[7])
    read(core, quick_readers(core), [b"".join(frames[:200])])
    assert (calls, len(core._applier.batch)) == ([], 200)
    read(core, quick_readers(core), [b"".join(frames[200:])])
    assert (calls, core._sequences.get(subjects[7])) == ([keys], 9)
