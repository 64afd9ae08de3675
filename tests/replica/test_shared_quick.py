"""Deliveries that come in one read are taken together. That must have the same effect as taking each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import Store
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.core import Core
from keyvalue_replica.layout import Layout
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.position import Position
from keyvalue_replica.quick import Deliveries
from keyvalue_replica.shared_quick import SharedDeliveries
from keyvalue_transport.nats.direct.routes import Quick

CONSUMER = "c0" * 8
KEYS = (b"a", b"b", b"c.d", b"foreign")
#: A delivery: by how much its sequence exceeds the one before, its key, how many messages follow it.
DELIVERY = st.tuples(st.sampled_from((1, 1, 1, 3)), st.sampled_from(KEYS), st.sampled_from((0, 1, 1, 1)))


class QuietOutside:
    """Surroundings that note why the stream must be followed again."""

    def __init__(self) -> None:
        self.again: list[str] = []

    def write(self, frames: bytes) -> bool:
        return True

    def now_s(self) -> float:
        return 0.0

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None: ...

    def call_soon(self, act: Callable[[], None]) -> None: ...

    def max_payload(self) -> int:
        return 1024

    def follow_again(self, why: str) -> None:
        self.again.append(why)

    read_again = stop_serving = follow_again


def followed(layout: Layout, applied: int, trusts_pending: bool) -> tuple[Core, QuietOutside]:
    """Return a core that has taken the first delivery of its consumer, and knows messages up to `applied`."""
    outside = QuietOutside()
    core = Core(Store(clock=ServerClock()), layout, outside, "_INBOX.x", "instance", 5.0, ServerClock())
    core.begin()
    core.position.trusts_pending = trusts_pending
    core.deliver(layout.subject(b"kv", b"first"), b"$JS.ACK.KV_kv.%b.1.1.1.1.9" % CONSUMER.encode(), b"", b"")
    core.position.applied = applied
    return core, outside


@pytest.mark.parametrize("is_plain", [False, True])
@given(st.lists(DELIVERY, min_size=1, max_size=12), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 30))
def test_a_read_is_taken_like_its_frames_one_by_one(
    is_plain: bool,
    deliveries: Sequence[tuple[int, bytes, int]],
    applied: int,
    trusts_pending: bool,
    is_watched: bool,
    lost: int,
) -> None:
    """Messages that were applied before all have successors here, because only the last one's place counts."""
    layout = PlainLayout("kv", b"kv") if is_plain else Layout("kv")
    subjects = [layout.subject(b"kv" if len(key) > 1 else key, key) for _, key, _ in deliveries]
    if not is_plain:
        foreign = layout.subject(b"kv", b"foreign")
        subjects = [b"$KV.kv.b.kA" if subject == foreign else subject for subject in subjects]
    sequences = list(accumulate((step for step, _, _ in deliveries), initial=1))[1:]
    frames = [
        b"MSG %b 7 $JS.ACK.KV_kv.%b.1.%d.%d.1700000000000000000.%d 2\r\nv%d\r\n"
        % (
            subject,
            CONSUMER.encode(),
            sequence,
            number + 2 + (number >= lost),
            pending or sequence <= applied,
            number % 10,
        )
        for number, (subject, sequence, (_, _, pending)) in enumerate(zip(subjects, sequences, deliveries, strict=True))
    ]
    found: list[Any] = []
    for reads in (frames, [b"".join(frames)]):
        core, outside = followed(layout, applied, trusts_pending)
        gaps = core.position.gaps
        quick: Quick = SharedDeliveries({CONSUMER.encode(): core}) if is_plain else Deliveries(core, CONSUMER)
        if is_watched:
            core._sequences.watch(subjects[0])
        for read in reads:
            assert read.startswith(quick.prefix)
            at = 0
            while at < len(read):
                at = taken if (taken := quick.take(read, at, len(read), b"7")) > at else len(read)
        position = {name: getattr(core.position, name) for name in Position.__slots__}
        position["gaps"] = core.position.gaps > gaps  # a barrier asks only whether there was one
        keys = {name: sorted(core.store.bucket(name).page().keys) for name in core.store.bucket_names()}
        if lost < len(frames):
            assert outside.again
            assert not core.position.is_whole
        else:
            found.append((position, keys, dict(core._sequences.by_subject), core.counts.foreign > 0, outside.again))
    assert found[:1] == found[1:]
