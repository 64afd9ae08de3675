"""A model of JetStream for the core: one stream with a bounded history, and a consumer and a connection per instance.

Nothing happens by itself. The test decides which acknowledgement, delivery or heartbeat comes next, and what is lost.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple
from unittest.mock import patch

from keyvalue_engine import Store, StoreError, StoreOptions
from keyvalue_replica import quick
from keyvalue_replica.answers import Barrier
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.core import Core
from keyvalue_replica.headed import HeadedDeliveries, SharedHeadedDeliveries
from keyvalue_replica.layout import DELETES, Layout, headers_of
from keyvalue_replica.options import LinkedOptions
from keyvalue_replica.promise import Promise
from keyvalue_replica.quick import Acknowledgements, Barriers, Deliveries
from keyvalue_replica.shared_quick import SharedBarriers, SharedDeliveries
from keyvalue_transport.nats.direct.routes import Quick

__all__ = ["LAYOUT", "TIMEOUT_S", "Instance", "Stored", "Stream", "set_together"]

LAYOUT = Layout("model")
TIMEOUT_S = 5.0
#: Turns after which an instance has everything. With the bug "barrier by INFO", it may ask a former leader for ever.
TURNS_MAX = 100_000
CONSUMER = "c0" * 8
SECRET = bytes(16)
#: The model's time at sequence 0. Message n is stored n ms later.
BEGAN_NS = 1_700_000_000 * 10**9


class Stored(NamedTuple):
    """A message in the stream."""

    sequence: int
    subject: bytes
    block: bytes
    payload: bytes

    @property
    def timestamp_ns(self) -> int:
        return BEGAN_NS + self.sequence * 10**6

    def frame(self, place: bytes) -> bytes:
        """Return the frame that delivers it."""
        sizes = b"%d" % len(self.payload)
        if self.block:
            sizes = b"%d %d" % (len(self.block), len(self.block) + len(self.payload))
        verb = b"HMSG" if self.block else b"MSG"
        return b"%b %b 1 %b %b\r\n%b%b\r\n" % (verb, self.subject, place, sizes, self.block, self.payload)


class Stream:
    """A stream that keeps the last `history` messages of each subject.

    :ivar log: every message that was ever stored
    :ivar states: the keys and values of the bucket `b` after each message, and before the first
    :ivar former_last: the last sequence that a former leader knows, which answers requests for information; None if
        the leader answers them
    """

    def __init__(self, history: int, layout: Layout = LAYOUT) -> None:
        self.history = history
        self.layout = layout
        self.log: list[Stored] = []
        self.states: list[dict[bytes, bytes]] = [{}]
        self.kept: dict[int, Stored] = {}
        self.former_last: int | None = None
        self._by_subject: dict[bytes, deque[Stored]] = {}
        self._batch: list[tuple[bytes, bytes, bytes]] = []

    @property
    def last(self) -> int:
        return len(self.log)

    def publish(self, subject: bytes, block: bytes, payload: bytes) -> bytes:
        """Store a message, and return the server's answer, which may be empty."""
        headers = headers_of(block) if block else {}
        if b"nats-batch-id" in headers:
            self._batch.append((subject, block, payload))
            if b"nats-batch-commit" not in headers:
                return b""
            messages, self._batch = self._batch, []
            before, batch = self.states[-1], len(messages)
            refusals = [self._refusal(*message[:2]) for message in messages]
            if any(refusals):
                return next(filter(None, refusals))
            for message in messages:
                self._store(*message)
            self.states[-batch:-1] = [before] * (batch - 1)  # nobody may see a part of a batch
            return b'{"stream":"KV_model","seq":%d,"batch":"x","count":2}' % self.last
        refusal = self._refusal(subject, block)
        if refusal:
            return refusal
        self._store(subject, block, payload)
        return b'{"stream":"KV_model","seq":%d}' % self.last

    def _refusal(self, subject: bytes, block: bytes) -> bytes:
        """Return the server's answer if another message was the last one of the subject, or nothing."""
        expected = headers_of(block).get(b"nats-expected-last-subject-sequence") if block else None
        held = self._by_subject.get(subject)
        last = held[-1].sequence if held else 0
        if expected is None or last == int(expected):
            return b""
        return b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: %d"},"seq":0}' % last

    def _store(self, subject: bytes, block: bytes, payload: bytes) -> None:
        message = Stored(self.last + 1, subject, block, payload)
        self.log.append(message)
        self.states.append(self._state_after(message))
        self.kept[message.sequence] = message
        held = self._by_subject.setdefault(subject, deque())
        held.append(message)
        if len(held) > self.history:
            del self.kept[held.popleft().sequence]

    def newest(self) -> list[Stored]:
        """Return the last message of each subject, in the order of the stream."""
        return sorted(held[-1] for held in self._by_subject.values())

    def _state_after(self, message: Stored) -> dict[bytes, bytes]:
        before, names = self.states[-1], self.layout.names(message.subject)
        if names is None:
            return before
        _, key = names
        if message.block and headers_of(message.block).get(b"kv-operation") in DELETES:
            return {other: value for other, value in before.items() if other != key}
        return {**before, key: message.payload}


def frames_of(written: bytes) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """Yield the subject, the reply subject, the header block and the payload of each PUB and HPUB."""
    at = 0
    while at < len(written):
        end = written.index(b"\r\n", at)
        kind, subject, *words = written[at:end].split(b" ")
        sizes = 2 if kind == b"HPUB" else 1
        size, head = int(words[-1]), int(words[-2]) if sizes == 2 else 0
        at = end + 2 + size + 2
        yield subject, words[0] if len(words) > sizes else b"", written[end + 2 :][:head], written[end + 2 :][head:size]


class MadeAgain:
    """The answer of a `get` that must be made again in a callback of its barrier."""

    def __init__(self, source: Barrier) -> None:
        self.source = source


def set_together(bucket: ReplicaBucket, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Promise]:
    """Set values of the same size in a run, if that is possible. Return the answer of each."""
    run = bucket.begin_sets(keys, values)
    if run is None:
        return [bucket.set(key, value) for key, value in zip(keys, values, strict=True)]
    answers = [Promise() for _ in keys]
    waiting = deque(answers)

    def take(number: int) -> None:
        for _ in range(number):
            waiting.popleft().set_result(None)

    def pass_on(answer: Promise, publication: Promise) -> None:
        try:
            answer.set_result(publication.result())
        except StoreError as error:
            answer.set_exception(error)

    def part(publications: Sequence[Promise]) -> None:
        for answer, publication in zip(waiting, publications, strict=True):
            publication.add_done_callback(partial(pass_on, answer))

    run.begin(take, part)
    return answers


class Instance:
    """An instance of the store on the model. It implements `Outside`.

    :param replicas: number of servers that have the stream; with several, the consumer's server may catch up
    :ivar answers: what the server has answered and the instance has not received: reply subject, headers and payload
    :ivar has_lost_answers: True if an answer was lost
    :ivar is_serving: False while it follows the stream again and has not caught up
    :ivar local_last: the last sequence that the consumer's server has; None if it has all. It knows which messages were
        overwritten, but not yet the messages after this one
    """

    def __init__(
        self, stream: Stream, name: str, options: StoreOptions | None = None, replicas: int = 1, local_ns: int = 0
    ) -> None:
        self.stream = stream
        self.local_last: int | None = None
        self.time_s = 0.0
        self.is_connected = True
        self.faults: list[str] = []
        self.must_follow = self.must_read = False
        self.answers: deque[tuple[bytes, bytes, bytes]] = deque()
        self.has_lost_answers = False
        self.due: list[Callable[[], None]] = []
        clock = ServerClock(lambda: local_ns)
        clock.note(BEGAN_NS)
        store = Store(options, secret=SECRET, clock=clock, is_limited=False)
        self.core = Core(store, stream.layout, self, "_INBOX.x", name, TIMEOUT_S, clock)
        own = Acknowledgements(self.core, "_INBOX.x")
        self._quick: list[tuple[Quick, bytes]] = [
            (own, b"2"),
            (Deliveries(self.core, CONSUMER, own), b"1"),
            (Barriers(self.core, CONSUMER), b"1"),
            (HeadedDeliveries(self.core, CONSUMER), b"1"),
        ]
        if stream.layout.bucket is not None:
            by_consumer = {CONSUMER.encode(): self.core}
            headed = SharedHeadedDeliveries(by_consumer, SharedBarriers(by_consumer))
            self._quick = [(SharedDeliveries(by_consumer), b"1"), (headed, b"1")]
        self.replica = ReplicaStore(self.core, options or StoreOptions(), MadeAgain)
        self.core.position.trusts_pending = replicas == 1
        self.to_deliver: deque[int] = deque()  # the sequences that the consumer will deliver, if they are kept
        self.consumed = 0
        self.follow(whole=True)

    def bucket(self, options: LinkedOptions | None = None) -> ReplicaBucket:
        return self.replica.bucket(b"b", options or LinkedOptions())

    # Outside

    def write(self, frames: bytes) -> bool:
        if not self.is_connected:
            return False
        for subject, reply, block, payload in frames_of(frames):
            if subject.startswith(b"$JS.API."):
                self.answers.append((reply, *self._ask(subject)))
                continue
            answer = self.stream.publish(subject, block, payload)
            if reply:
                self.answers.append((reply, b"", answer))
        return True

    def _ask(self, subject: bytes) -> tuple[bytes, bytes]:
        """Answer a request of a planted bug: as a former leader, or as a server that may have to catch up."""
        if subject.startswith(b"$JS.API.STREAM.INFO."):
            former = self.stream.former_last
            return b"", json.dumps({"state": {"last_seq": self.stream.last if former is None else former}}).encode()
        held = [each for each in self.stream.log[: self.last] if subject.endswith(b"." + each.subject)]
        if not held:
            return b"NATS/1.0 404 Message Not Found\r\n\r\n", b""
        return held[-1].block or b"NATS/1.0\r\nNats-Stream: KV_model\r\n\r\n", held[-1].payload

    def now_s(self) -> float:
        return self.time_s

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        self.due.append(act)

    def call_soon(self, act: Callable[[], None]) -> None:
        self.due.append(act)

    def max_payload(self) -> int:
        return 1024 * 1024

    def read_again(self, why: str) -> None:
        self.must_read = True
        self.follow_again(why)

    def follow_again(self, why: str) -> None:
        self.must_follow = True

    def stop_serving(self, why: str) -> None:
        self.faults.append(why)

    # The test makes these happen

    def turn(self) -> None:
        """Let the event loop take a turn."""
        due, self.due = self.due, []
        for act in due:
            act()

    def settle(self) -> None:
        """Take turns until nothing is due."""
        while self.due:
            self.turn()

    def follow(self, whole: bool) -> None:
        """Create a consumer, of the whole bucket or from the position."""
        core = self.core
        self.must_follow = self.must_read = self._has_caught_up = False
        if whole:
            for name in core.store.bucket_names():
                bucket = core.store.bucket(name)
                bucket.delete_many(list(bucket.keys()))
            core.restart()
            newest = [message.sequence for message in self.stream.newest()]
            self.to_deliver = deque(sequence for sequence in newest if sequence <= self.last)
        else:
            self.to_deliver = deque(range(core.next_sequence(), self.last + 1))
        self.seen = self.last
        self.consumed = 0
        core.begin()
        core.position.expect(self.pending())
        if not self.pending():
            core.mend()

    @property
    def is_serving(self) -> bool:
        self._has_caught_up = self._has_caught_up or self.core.position.is_whole
        return self._has_caught_up and not self.must_follow

    @property
    def last(self) -> int:
        """The last sequence that the consumer's server has."""
        return self.stream.last if self.local_last is None else self.local_last

    def fall_behind(self) -> None:
        """Let the consumer's server get no more messages."""
        self.local_last = self.last

    def catch_up(self, messages: int | None = None) -> None:
        """Let the consumer's server get some messages, or all."""
        if self.local_last is not None:
            self.local_last += messages or self.stream.last
            if self.local_last >= self.stream.last:
                self.local_last = None

    def pending(self) -> int:
        """Return the number of messages that the consumer will deliver."""
        self.to_deliver.extend(range(self.seen + 1, self.last + 1))
        self.seen = max(self.seen, self.last)
        return sum(sequence in self.stream.kept for sequence in self.to_deliver)

    def deliver(self, messages: int = 1, lost: bool = False, answers: int = 0) -> bool:
        """Deliver messages in one read, or lose them. Return False if there is none.

        :param answers: number of the server's answers that may arrive in the same read, in turn with the messages
        """
        read: list[tuple[bytes, Callable[[], object]]] = []
        number = 0
        while number < messages and self.pending():
            if number < answers and self.answers:
                read.append(self._read_answer(*self.answers.popleft()))
            while (sequence := self.to_deliver.popleft()) not in self.stream.kept:
                pass
            message = self.stream.kept[sequence]
            self.consumed += 1
            number += 1
            text = f"$JS.ACK.KV_model.{CONSUMER}.1.{sequence}.{self.consumed}.{message.timestamp_ns}.{self.pending()}"
            place = text.encode()
            take = partial(self.core.deliver, message.subject, place, message.block, message.payload)
            read.append((message.frame(place), take))
        if not lost:
            self._take(read)
        return number > 0

    def _read_answer(self, reply: bytes, block: bytes, answer: bytes) -> tuple[bytes, Callable[[], object]]:
        """Return the frame of an answer, and a function that takes it if no quick reader does."""
        sizes = b"%d %d" % (len(block), len(block + answer)) if block else b"%d" % len(answer)
        frame = b"%b %b 2 %b\r\n%b%b\r\n" % (b"HMSG" if block else b"MSG", reply, sizes, block, answer)
        return frame, partial(self.core.acknowledge, reply, b"", block, answer)

    def _take(self, read: list[tuple[bytes, Callable[[], object]]]) -> None:
        """Take a read as the direct path does: with quick readers, where there is one for a frame."""
        starts = accumulate((len(frame) for frame, _ in read), initial=0)
        frames = {start: (len(frame), take) for start, (frame, take) in zip(starts, read, strict=False)}
        buffer, at = b"".join(frame for frame, _ in read), 0
        with patch.object(quick, "RUN_FRAMES_MIN", 2):  # so that there are many runs
            while at < len(buffer):
                if (taken := self._take_quickly(buffer, at)) > at:
                    at = taken
                    continue
                size, take = frames[at]
                take()
                at += size

    def _take_quickly(self, buffer: bytes, at: int) -> int:
        for reader, sid in self._quick:
            if buffer.startswith(reader.prefix, at) and (taken := reader.take(buffer, at, len(buffer), sid)) > at:
                return taken
        return at

    def heartbeat(self) -> None:
        """Send a heartbeat, as an idle consumer does."""
        if not self.pending():
            block = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: %d\r\nNats-Last-Stream: %d\r\n\r\n"
            self.core.deliver(b"_INBOX.d", b"", block % (self.consumed, self.last), b"")

    def acknowledge(self, lost: bool = False) -> bool:
        """Receive one answer of the server, or lose it. Return False if there is none."""
        if not self.answers:
            return False
        reply, block, answer = self.answers.popleft()
        if lost:
            self.has_lost_answers = True
        else:
            self.core.acknowledge(reply, b"", block, answer)
        return True

    def recover(self) -> None:
        """Do what the follower does when something was lost."""
        if self.must_follow:
            self.follow(self.must_read)

    def finish(self) -> None:
        """Let everything arrive."""
        self.catch_up()
        for _ in range(TURNS_MAX):
            self.settle()
            self.recover()
            if self.acknowledge() or self.deliver() or self.due:
                continue
            self.heartbeat()  # shows that deliveries were lost
            if not (self.due or self.must_follow):
                return
        raise AssertionError("the instance never comes to rest")
