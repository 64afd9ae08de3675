"""Runs do not change what the quick readers read. tests/integration tests the frames of a real server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st

from keyvalue_replica import quick
from keyvalue_replica.answers import Barrier
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import LinkedOptions
from keyvalue_replica.position import Position
from keyvalue_replica.publications import Publications, ReplicaCounts
from keyvalue_replica.quick import Acknowledgements, Deliveries
from tests.replica.stream_model import LAYOUT as MODEL
from tests.replica.stream_model import Instance, Stream

LAYOUT = Layout("kv")
APPLIED = 999


class Told:
    """A core that notes what it is told."""

    layout = LAYOUT
    takes_runs = False

    def __init__(self, applied: int) -> None:
        self.position = SimpleNamespace(applied=applied)
        self.calls: list[tuple[Any, ...]] = []

    def acknowledge_all(self, numbers: list[bytes], sequences: list[bytes]) -> None:
        self.calls.append(("acknowledge", *zip(map(int, numbers), map(int, sequences), strict=True)))

    def deliver_known(self, count: int, last: tuple[int, int, int, int]) -> None:
        self.calls.append(("known", count, last))

    def deliver_plain(self, *delivery: Any) -> None:
        self.calls.append(("plain", *delivery))
        self.position.applied = max(self.position.applied, delivery[-1][0])

    def heard(self) -> None:
        self.calls.append(("heard",))

    release = heard


def acknowledgement(token: int, text: bytes) -> bytes:
    return b"MSG _INBOX.a.%d 3 %d\r\n%b\r\n" % (token, len(text), text)


def delivery(sequence: int, key: bytes, value: bytes, consumed: int, pending: int, sid: int) -> bytes:
    place = b"$JS.ACK.KV_kv.c0.1.%d.%d.1700000000000000000.%d" % (sequence, consumed, pending)
    return b"MSG %b %d %b %d\r\n%b\r\n" % (LAYOUT.subject(b"b", key), sid, place, len(value), value)


#: Most frames are alike, so that there are runs.
RARELY = st.sampled_from((False,) * 15 + (True,))
numbers = st.integers(95, 105) | st.integers(0, 10**6)
sequences = st.integers(APPLIED - 12, APPLIED + 3)
texts = st.builds(
    lambda sequence, is_odd: b'{"stream":"KV_kv",%b"seq":%d}' % (b'"duplicate":true,' if is_odd else b"", sequence),
    numbers,
    RARELY,
)
acknowledgements = st.lists(st.builds(acknowledgement, numbers, texts), max_size=30)


def numbered(parts: list[tuple[int, bytes, bytes, int, int, int]]) -> list[bytes]:
    """Return deliveries whose numbers of the consumer rise, mostly by 1."""
    frames, consumed = list[bytes](), 0
    for sequence, key, value, step, pending, sid in parts:
        consumed += step
        frames.append(delivery(sequence, key, value, consumed, pending, sid))
    return frames


deliveries = st.lists(
    st.tuples(
        sequences,
        st.sampled_from((b"a", b"b", b"c", b"longer")),
        st.sampled_from((b"v", b"w", b"\r", b"", b"value")),
        st.sampled_from((1,) * 15 + (2,)),
        st.integers(0, 12),
        st.sampled_from((91,) * 15 + (92,)),
    ),
    max_size=30,
).map(numbered)


def known_frames(kinds: list[str]) -> list[bytes]:
    """Return deliveries that were applied before, mostly of one size, and other frames of this size in their place."""
    frames, consumed, number, value = list[bytes](), 100, 1000, b"0123456789" * 12
    size = len(delivery(1000, b"a", value, consumed, 10, 91))
    for kind in kinds:
        number += 10 if kind == "gap" else 1
        if kind in ("lost", "call for delivery"):
            consumed += 1
        if kind == "lines":
            frames.append(delivery(number, b"a", b"\r\n" * 60, consumed, 10, 91))
        elif kind.startswith("call"):
            frame = delivery(number, b"a", b"", consumed, 10, 91) if kind == "call after delivery" else b""
            frame += b"MSG a.call 5 _INBOX.b.1 0\r\n"
            frames.append(frame + b"x" * (size - len(frame) - 2) + b"\r\n")
        else:
            frames.append(delivery(number, b"a", value[kind == "shorter" :], consumed, 10, 91))
        consumed += not kind.startswith("call") or kind == "call after delivery"
    return frames


def faked() -> list[bytes]:
    """Return two deliveries that were applied before. The second one's value holds what looks like the last of four, and a call."""
    value = b"0123456789" * 24
    first, last = (delivery(number, b"a", value, number - 900, 10, 91) for number in (1000, 1003))
    # The beginning of the second one has the size of an empty delivery: two digits more, and no line end after the value.
    lines, begin = b"\r\n" * 3, len(delivery(1001, b"a", b"", 101, 10, 91))
    padding = b"x" * (2 * len(first) - begin - len(lines))
    return [first, delivery(1001, b"a", lines + padding + last + b"MSG a.call 5 _INBOX.b.1 4\r\nevil\r\n", 101, 10, 91)]


KINDS = ("lost", "gap", "lines", "shorter", "call", "call after delivery", "call for delivery")
knowns = st.lists(st.sampled_from(("usual",) * 30 + KINDS), max_size=40).map(known_frames)
rests = st.sampled_from((b"", b"MSG ", b"PING\r\n", b"MSG _INBOX.a.1 3 9"))


def read(frames: bytes, applied: int = APPLIED) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Read the frames with both readers. Return the offsets at which they stopped, and what the core was told."""
    core: Any = Told(applied)
    readers = (Acknowledgements(core, "_INBOX.a"), b"3"), (Deliveries(core, "c0"), b"91")
    return [reader.take(frames, 0, len(frames), subscription) for reader, subscription in readers], core.calls


@example([delivery(988, b"a", b"v", consumed, 0, 91) for consumed in (2, 1, 1, 2)], b"", 0, APPLIED)
@example([delivery(seq, b"a", b"v", 20, 10 if seq < 1000 else 9, 91) for seq in range(990, 1001)], b"", 0, APPLIED)
@example(known_frames(["usual", "usual", "shorter", "usual", "usual", "usual"]), b"", 0, 1013)
@example(known_frames(["usual", "usual", "usual", "gap"]), b"", 0, 1005)
@example(known_frames(["usual", "call for delivery", "usual", "usual"]), b"", 0, 1013)
@example(faked(), b"", 0, 1013)
@example(known_frames(["usual", "call after delivery", "usual", "usual", "usual"]), b"", 0, 1013)
@given(acknowledgements | deliveries | knowns, rests, st.integers(0, 40), st.sampled_from((APPLIED, 1013)))
def test_runs_never_change_a_result(frames: list[bytes], rest: bytes, cut: int, applied: int) -> None:
    whole = b"".join(frames) + rest
    for buffer in (whole, whole[: max(0, len(whole) - cut)]):
        with patch.object(quick, "RUN_FRAMES_MIN", 10**9):
            expected = read(buffer, applied)
        assert read(buffer, applied) == expected


def test_a_run_is_taken_together() -> None:
    frames = b"".join(acknowledgement(number, b'{"stream":"KV_kv","seq":%d}' % number) for number in range(100, 164))
    assert read(frames) == ([len(frames), 0], [("acknowledge", *((number, number) for number in range(100, 164)))])
    known = b"".join(delivery(number, b"a", b"v", number, 0, 91) for number in range(100, 164))
    last = ("known", 64, (163, 163, 1700000000000000000, 0))
    assert read(known) == ([0, len(known)], [last, ("heard",), ("heard",)])


def test_deliveries_that_can_not_be_skipped_are_searched_once() -> None:
    frames = b"".join(known_frames(["lines"] * 64))
    with patch.object(Deliveries, "_last_known", autospec=True, side_effect=Deliveries._last_known) as search:
        assert read(frames, 1100)[0] == [0, len(frames)]
    assert search.call_count == 1


def changes(setters: list[bool]) -> tuple[Instance, list[Any]]:
    """Return an instance, and the answers to its changes. Another instance has made the others, which are False."""
    stream = Stream(64, MODEL)
    own, other = Instance(stream, "own"), Instance(stream, "other")
    for number in range(20):  # so that the sequences of the stream and of the consumer have two digits
        own.bucket().set(b"before %d" % number, b"")
    own.finish()
    answers = []
    for number, is_own in enumerate(setters):
        setter = own if is_own else other
        answer = setter.bucket().set(b"%02d" % number, b"value")
        setter.settle()
        answers += [answer] if is_own else []
    return own, answers


@example([True] * 20 + [False, True, True, True], 1, 24)
@given(
    st.lists(st.sampled_from((True, True, True, False)), min_size=1, max_size=50), st.integers(0, 3), st.integers(0, 60)
)
def test_acknowledgements_in_turn_with_deliveries_apply_all_changes(
    setters: list[bool], first: int, turns: int
) -> None:
    own, answers = changes(setters)
    for _ in range(first):
        own.acknowledge()
    own.deliver(len(setters), answers=turns)
    bucket, core = own.bucket(LinkedOptions(reads_latest=False)), own.core
    assert [bucket.get(b"%02d" % number) for number in range(len(setters))] == [b"value"] * len(setters)
    assert (core.position.applied, core.position.is_whole) == (own.stream.last, True)
    while own.acknowledge():
        pass
    assert not own.must_follow
    assert all(answer.done() and answer.result() is None for answer in answers)


def test_acknowledgements_in_turn_with_deliveries_are_taken_together() -> None:
    own, answers = changes([True] * 30)
    with patch.object(own.core, "acknowledge_all", wraps=own.core.acknowledge_all) as acknowledge_all:
        own.deliver(30, answers=30)
    taken = [len(call.args[0]) for call in acknowledge_all.call_args_list]
    assert taken == [1, 19, 1, 9]  # the number of messages that are still to come has one digit at the end
    assert all(answer.done() for answer in answers)


def test_the_delivery_of_a_barrier_shows_that_the_consumer_is_alive() -> None:
    own = Instance(Stream(64, MODEL), "0a")  # its name is of the form that the quick reader knows
    own.bucket().set(b"k", b"")  # since no quick reader takes the first delivery of a consumer
    own.finish()
    own.time_s = 100.0
    own.bucket().get(b"k")
    own.settle()
    assert own.core.heard_s < 100.0
    own.deliver()
    assert own.core.heard_s == 100.0


def test_a_barrier_with_a_sequence_that_was_used_before_means_another_stream() -> None:
    position, reused = Position(10), list[bool]()
    position.is_whole = True
    publications = Publications(position, ReplicaCounts(position), lambda: reused.append(True))
    token = publications.add_barrier(Barrier(SimpleNamespace(passing=None)), 0.0)
    publications.deliver_barrier(token, 10, 0.0)
    assert reused
