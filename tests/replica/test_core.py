"""The core against a model of JetStream, with several instances and an adversary.

The adversary delays and loses acknowledgements and deliveries, stops instances for a while, so that messages are
overwritten before they are delivered, and restarts instances. The stream's order says what each answer may be.
"""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keyvalue_engine import CounterError, LimitError, Quota, Reach, StoreError, StoreOptions
from keyvalue_engine.entry import value_of
from keyvalue_replica.bucket import Read
from keyvalue_replica.errors import NotStoredError, UnknownOutcomeError
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import LinkedOptions
from keyvalue_replica.plain_layout import PlainLayout
from tests.replica.stream_model import LAYOUT, TIMEOUT_S, Instance, MadeAgain, Stream, set_together

MIB = 1024 * 1024
KEYS = (b"a", b"b", b"c.d")
INSTANCES = 3
#: The calls of a storm. The keys are missing often enough that they can be stored together.
CALLS = (
    *("set", "sets", "sets", "get", "get", "get-many", "set-many", "increment", "delete"),
    *("delete-many", "delete-many", "set-missing", "set-missing"),
)
instances = st.integers(0, INSTANCES - 1)
keys = st.sampled_from(KEYS)


class Asked:
    """A call, and its answer, which is taken in the moment in which it comes.

    :ivar since: the stream's last sequence when the call began
    """

    def __init__(self, what: str, key: bytes, value: Any, answer: Any, instance: Instance) -> None:
        self.what = what
        self.key = key
        self.value = value
        self.instance = instance
        self.since = instance.stream.last
        self.until = 0
        self.began_s = instance.time_s
        self.is_done = False
        self.found: Any = None
        self._derive = getattr(answer, "derive", None)
        if isinstance(answer, MadeAgain):
            self._derive = lambda _: instance.bucket().get(key)
        getattr(answer, "source", answer).add_done_callback(self._take)

    def _take(self, source: Any) -> None:
        self.is_done, self.until = True, self.instance.stream.last
        try:
            self.found = source.result() if self._derive is None else self._derive(source.result)
        except StoreError as error:
            self.found = error


class Cluster(RuleBasedStateMachine):
    """Instances on one stream. Each answer is judged as soon as it is there."""

    layout: Layout = LAYOUT

    @initialize(history=st.sampled_from((1, 2, 64)), replicas=st.sampled_from((1, 3)))
    def begin(self, history: int, replicas: int) -> None:
        self.stream = Stream(history, self.layout)
        self.replicas = replicas
        self.instances = [Instance(self.stream, f"i{number}", replicas=replicas) for number in range(INSTANCES)]
        self.asked: list[Asked] = []
        self.written = dict.fromkeys(self.instances, 0)  # the last sequence that each has confirmed
        self.values = 0

    def ask(self, number: int, what: str, key: bytes, value: Any = None) -> None:
        instance = self.instances[number]
        bucket = instance.bucket()
        if what == "sets":
            keys = [each for each in (key, *KEYS[:2], key) if len(each) == len(key)]
            values = [b"%d" % (1000 * (self.values + count)) for count in range(len(keys))]
            self.values += len(keys)
            if len(values[0]) == len(values[-1]):
                answers = set_together(bucket, keys, values)
                self.asked += [Asked("set", *each, instance) for each in zip(keys, values, answers, strict=True)]
            return
        self.values += 1
        arguments = {"get": (key,), "delete": (key,), "set": (key, value), "increment": (key, value)}
        answer: Any
        if what == "get-many":
            answer = bucket.get_many(list(KEYS))
        elif what == "set-many":
            answer = bucket.set_many(dict.fromkeys(KEYS, value))
        elif what == "set-missing":
            answer = bucket.set_missing(dict.fromkeys(KEYS, value))
        elif what == "delete-many":
            answer = bucket.delete_many(list(KEYS))
        else:
            answer = getattr(bucket, what)(*arguments[what])
        self.asked.append(Asked(what, key, value, answer, instance))

    @rule(number=instances, key=keys)
    def set(self, number: int, key: bytes) -> None:
        self.ask(number, "set", key, b"%d" % (1000 * self.values))

    @rule(number=instances, key=keys, what=st.sampled_from(("get", "delete", "get-many", "delete-many")))
    def ask_without_value(self, number: int, key: bytes, what: str) -> None:
        self.ask(number, what, key)

    @rule(number=instances, key=keys)
    def set_together(self, number: int, key: bytes) -> None:
        self.ask(number, "sets", key)

    @rule(number=instances, what=st.sampled_from(("set-many", "set-missing")))
    def set_several(self, number: int, what: str) -> None:
        self.ask(number, what, b"", b"%d" % (1000 * self.values))

    @rule(number=instances, key=keys, delta=st.sampled_from((1, 2, -1)))
    def increment(self, number: int, key: bytes, delta: int) -> None:
        self.ask(number, "increment", key, delta)

    @rule(number=instances, key=keys)
    def read_locally(self, number: int, key: bytes) -> None:
        """Read what an instance has. It has all changes that it has confirmed."""
        instance = self.instances[number]
        if not instance.is_serving:
            return
        bucket = instance.bucket(LinkedOptions(reads_latest=False))
        states = self.stream.states[self.written[instance] :]
        assert bucket.get(key) in [state.get(key) for state in states], "a confirmed change is missing"
        if instance.core.position.is_whole:
            assert bucket.get_many(list(KEYS)) in [[state.get(key) for key in KEYS] for state in states], "a local mix"

    @rule(number=instances)
    def turn(self, number: int) -> None:
        self.instances[number].turn()

    @rule(number=instances, times=st.integers(1, 4))
    def acknowledge(self, number: int, times: int) -> None:
        for _ in range(times):
            self.instances[number].acknowledge()

    @rule(number=instances, times=st.integers(1, 6), answers=st.integers(0, 6))
    def deliver(self, number: int, times: int, answers: int) -> None:
        self.instances[number].deliver(times, answers=answers)

    @rule(number=instances)
    def heartbeat(self, number: int) -> None:
        self.instances[number].heartbeat()

    @rule(number=instances)
    def lose_an_acknowledgement(self, number: int) -> None:
        self.instances[number].acknowledge(lost=True)

    @rule(number=instances)
    def lose_a_delivery(self, number: int) -> None:
        self.instances[number].deliver(lost=True)

    @rule(number=instances)
    def recover(self, number: int) -> None:
        self.instances[number].recover()

    @rule(number=instances)
    def read_everything_again(self, number: int) -> None:
        self.instances[number].follow(whole=True)

    @rule(number=instances, seconds=st.floats(0.1, TIMEOUT_S))
    def pass_time(self, number: int, seconds: float) -> None:
        instance = self.instances[number]
        instance.time_s += seconds
        instance.settle()
        instance.core.tick()

    @rule(is_former=st.booleans())
    def replace_the_leader(self, is_former: bool) -> None:
        """Let a former leader answer requests for information, or let it learn that it is none."""
        if self.replicas > 1:
            self.stream.former_last = self.stream.last if is_former else None

    @rule(seed=st.integers(0, 2**32))
    def storm(self, seed: int) -> None:
        """Let much happen. One instance is slow: little arrives there while the others overwrite the same keys."""
        chance = Random(seed)
        slow = chance.randrange(INSTANCES)
        for _ in range(80):
            if self.replicas > 1 and chance.random() < 0.1:
                instance = chance.choice(self.instances)
                chance.choice((instance.fall_behind, lambda of=instance: of.catch_up(chance.randint(1, 5))))()
                self.replace_the_leader(chance.random() < 0.5)
            number = chance.randrange(INSTANCES)
            what = chance.choice(CALLS)
            if chance.random() < 0.4:
                self.values += 1
                value = chance.choice((1, -1)) if what == "increment" else b"%d" % (1000 * self.values)
                self.ask(number, what, chance.choice(KEYS[: chance.randint(1, 3)]), value)
                self.instances[number].settle()
            elif number != slow or chance.random() < 0.3:
                instance = self.instances[number]
                for _ in range(chance.randint(1, 5)):
                    chance.choice((instance.acknowledge, instance.deliver, partial(instance.deliver, 4, answers=4)))()
            elif chance.random() < 0.2:
                self.instances[number].heartbeat()
            elif chance.random() < 0.1:
                self.instances[number].deliver(lost=True)
            else:
                self.instances[number].recover()
            if chance.random() < 0.05:
                self.instances[number].acknowledge(lost=True)
                self.pass_time(number, chance.choice((0.0, TIMEOUT_S)))
            self.read_locally(number, chance.choice(KEYS))
            self.answers_are_right()
        if chance.random() < 0.5:
            self.let_everything_arrive()

    @rule()
    def let_everything_arrive(self) -> None:
        for instance in self.instances:
            instance.finish()
        for instance in self.instances:
            instance.finish()
            if instance.has_lost_answers:
                self.pass_time(self.instances.index(instance), 2 * TIMEOUT_S)
                instance.finish()
                instance.has_lost_answers = False
            if instance.core.position.is_whole:
                bucket = instance.core.store.bucket(b"b")
                assert dict(bucket.items()) == self.stream.states[-1], "a change is missing, or came too late"
        assert all(asked.is_done for asked in self.asked), "a call has no answer, although nothing was lost"
        stored = Counter(
            (message.subject, message.payload)
            for message in self.stream.log
            if message.payload and b"Expected" not in message.block and not self.layout.is_internal(message.subject)
        )
        assert max(stored.values(), default=0) <= 1, "a change was stored twice"

    @precondition(lambda self: hasattr(self, "asked"))
    @invariant()
    def answers_are_right(self) -> None:
        for asked in self.asked:
            if asked.is_done:
                self.judge(asked)
            else:
                assert asked.instance.time_s - asked.began_s <= 2 * TIMEOUT_S, "a call waits for longer than its time"
        self.asked = [asked for asked in self.asked if not asked.is_done]

    def judge(self, asked: Asked) -> None:
        """Check an answer against the states that the stream has had during the call."""
        states, found = self.stream.states[asked.since : asked.until + 1], asked.found
        if isinstance(found, UnknownOutcomeError | NotStoredError):
            return
        if isinstance(found, CounterError):
            assert asked.what == "increment"
            assert any(int(state.get(asked.key, b"0")) + asked.value < 0 for state in states)
            return
        match asked.what:
            case "get":
                assert found in [state.get(asked.key) for state in states], "a stale or an invented value"
            case "get-many":
                assert found in [[state.get(key) for key in KEYS] for state in states], "a mix of states"
            case "set" | "set-many":
                keys_set = KEYS if asked.what == "set-many" else (asked.key,)
                for key in keys_set:
                    stored = [
                        message
                        for message in self.stream.log[asked.since :]
                        if message.subject == self.layout.subject(b"b", key)
                        and message.payload == asked.value
                        and b"Expected" not in message.block  # an increment may reach the same number
                    ]
                    assert len(stored) == 1, "an acknowledged change is stored once"
                    self.written[asked.instance] = max(self.written[asked.instance], stored[0].sequence)
            case "set-missing" if found:
                assert any(
                    not before.keys() & set(KEYS) and after == before | dict.fromkeys(KEYS, asked.value)
                    for before, after in itertools.pairwise(states)
                ), "a key existed, or the keys were not stored together"
            case "set-missing":
                assert any(state.keys() & set(KEYS) for state in states), "no key existed"
            case "increment":
                assert any(
                    int(before.get(asked.key, b"0")) + asked.value == found == int(after.get(asked.key, b"-1"))
                    for before, after in itertools.pairwise(states)
                ) or self.was_combined(asked, found)

    def was_combined(self, asked: Asked, found: int) -> bool:
        """Return True if the sum lies within a step of the counter, which holds several increments."""
        numbers = [
            int(message.payload)
            for message in self.stream.log
            if message.subject == self.layout.subject(b"b", asked.key) and message.payload
        ]
        return min(numbers, default=0) - 8 <= found <= max(numbers, default=0) + 8


Cluster.TestCase.settings = settings(max_examples=300, stateful_step_count=20, deadline=None)
test_no_answer_is_stale_lost_or_late = Cluster.TestCase


class PlainCluster(Cluster):
    """The same with plain names, in a stream that allows no messages that expire."""

    layout = PlainLayout("model", b"b")
    layout.allow(ttl=False, batches=True)


PlainCluster.TestCase.settings = settings(Cluster.TestCase.settings, max_examples=100)
test_no_answer_is_stale_lost_or_late_with_plain_names = PlainCluster.TestCase


def test_limits_are_checked_before_a_change_is_published_and_count_what_is_in_flight() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i", StoreOptions(keys_max=3, value_bytes_max=10))
    bucket = instance.bucket()
    quota = Quota(Reach(frozenset({b"q"})), 1, None)
    instance.replica.add_quota(quota, 100)
    limited = instance.replica.bucket(b"q", LinkedOptions(quota=quota))
    with pytest.raises(LimitError, match=r"value is 11 bytes; the limit is 10 \(value_bytes_max\)"):
        bucket.set(b"k", bytes(11))
    bucket.set(b"1", b"")
    limited.set(b"2", b"")
    with pytest.raises(LimitError, match=r"this quota would hold 2 keys; the limit is 1 \(quota_keys\)"):
        limited.set(b"3", b"")
    bucket.set(b"3", b"")
    with pytest.raises(LimitError, match=r"the store would hold 4 keys; the limit is 3 \(keys_max\)"):
        bucket.set(b"4", b"")
    with pytest.raises(LimitError, match="the store would hold 4 keys"):
        bucket.set_many({b"5": b""})
    with pytest.raises(LimitError, match="the limit is 4000"):
        bucket.set(bytes(3_000), b"")
    with pytest.raises(LimitError, match="an atomic batch has 1001 keys; the limit is 1000"):
        bucket.delete_many([b"%d" % number for number in range(1001)])
    instance.finish()
    bucket.delete(b"1")
    instance.finish()
    bucket.set(b"4", b"")
    instance.finish()
    assert sorted(stream.states[-1]) == [b"2", b"3", b"4"]


@pytest.mark.parametrize("is_connected", [False, True])
def test_nothing_is_sent_later(is_connected: bool) -> None:
    """A change that could not be written is not stored. One that JetStream does not confirm is unknown."""
    stream = Stream(64)
    instance = Instance(stream, "i")
    instance.is_connected = is_connected
    write, read = instance.bucket().set(b"k", b"v"), instance.bucket().exists(b"k")
    assert isinstance(read, Read)
    asked = Asked("get", b"k", None, instance.bucket().get(b"k"), instance)
    increment = instance.bucket().increment(b"n", 1)
    instance.settle()
    instance.answers.clear()
    instance.to_deliver.clear()
    instance.time_s += 2 * TIMEOUT_S
    instance.core.tick()
    kind, text = (UnknownOutcomeError, "may or may not") if is_connected else (NotStoredError, "nothing was sent")
    for answer in (write, increment):
        with pytest.raises(kind, match=text):
            answer.result()
    with pytest.raises(StoreError, match=r"the newest values are not known|nothing was sent"):
        read.derive(read.source.result)
    assert asked.is_done
    with pytest.raises(StoreError, match=r"the newest values are not known|nothing was sent"):
        raise asked.found
    instance.is_connected = True
    stored = stream.last
    instance.settle()
    assert stream.last == stored


def test_half_a_batch_stays_invisible_when_the_server_has_no_more_of_it() -> None:
    """A server that catches up sends heartbeats in the middle of a batch. These storms found a mix of two states."""
    cluster = Cluster()
    cluster.begin(history=64, replicas=3)
    for seed in (1, 2**32 - 1):
        cluster.storm(seed=seed)
        cluster.answers_are_right()


def test_clocks_that_are_an_hour_apart_do_not_matter() -> None:
    stream = Stream(64)
    instances = [Instance(stream, f"i{hour}", local_ns=hour * 3_600 * 10**9) for hour in (0, 1, 20_000)]
    instances[1].bucket(LinkedOptions(ttl_ms=2_000)).set(b"k", b"v")
    for instance in (instances[1], *instances):
        instance.finish()
    entries = [instance.core.store.bucket(b"b").entry(b"k") for instance in instances]
    deadline_ns = stream.newest()[0].timestamp_ns + 2_000 * 10**6
    assert entries == [(b"v", deadline_ns)] * 3
    assert len({instance.core.clock() for instance in instances}) == 1


def test_an_increment_is_not_published_after_its_time() -> None:
    instance = Instance(Stream(64), "i")
    answer = instance.bucket().increment(b"n", 1)
    instance.time_s += TIMEOUT_S
    instance.settle()
    with pytest.raises(NotStoredError, match="nothing was stored"):
        answer.result()
    assert instance.stream.last == 0


def test_revisions_of_a_large_value_hold_only_a_few_of_them() -> None:
    """Each answer holds the values before and after. While the server is silent, they must not take much memory."""
    instance = Instance(Stream(64), "i")
    bucket = instance.bucket()
    bucket.set(b"k", bytes(MIB // 2))
    instance.finish()
    lengths: list[int] = []
    tracemalloc.start()
    try:
        for _ in range(30):
            update = bucket.update(b"k", lambda entry, now_ns, deadline_ns: (value_of(entry) or b"") + b"x")
            update.add_done_callback(lambda done: lengths.append(len(value_of(done.result()[1]) or b"")))
        instance.core.flush()
        assert tracemalloc.get_traced_memory()[0] < 4 * MIB
    finally:
        tracemalloc.stop()
    while len(lengths) < 30:
        instance.finish()
    assert lengths == [MIB // 2 + number for number in range(1, 31)]


def test_a_delivery_after_a_lost_one_says_nothing_about_where_to_go_on() -> None:
    """The consumer goes on after it has lost a delivery, for example because its server was started again."""
    stream = Stream(64)
    writer, reader = Instance(stream, "w"), Instance(stream, "r")
    for key in (b"1", b"2", b"3"):
        writer.bucket().set(key, b"v")
        writer.finish()
        reader.deliver(lost=key == b"2")
    assert reader.must_follow
    reader.finish()
    assert [reader.core.store.bucket(b"b").get(key) for key in (b"1", b"2", b"3")] == [b"v"] * 3


def test_a_later_format_is_refused_and_other_subjects_are_ignored() -> None:
    stream = Stream(64)
    stream.publish(LAYOUT.subject(b"b", b"k"), b"NATS/1.0\r\nKv-Format: 2\r\n\r\n", b"v")
    for subject in (b"$KV.model.foreign", b"$KV.model.bYg.kA", b"$KV.model.xYg.ka2V5"):
        stream.publish(subject, b"", b"v")
    instance = Instance(stream, "i")
    instance.finish()
    assert instance.faults == ["message 1 of the KV bucket has format 2; this version reads 1: upgrade this instance"]
    assert instance.core.counts.foreign == 3
    assert len(instance.core.store) == 0


def test_a_barrier_of_another_client_does_no_harm() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    stream.publish(LAYOUT.barrier("i"), b"", b"9" * 5_000)
    stream.publish(LAYOUT.subject(b"b", b"k"), b"", b"v")
    instance.finish()
    assert instance.core.store.bucket(b"b").get(b"k") == b"v"


def test_a_sequence_that_is_used_again_means_another_stream() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    for value in (b"1", b"2", b"3"):
        instance.bucket().set(b"k", value)
    instance.finish()
    instance.stream = other = Stream(64)
    answer = instance.bucket().set(b"k", b"4")
    instance.settle()
    instance.acknowledge()
    assert instance.must_read
    assert not answer.done()
    instance.finish()
    assert answer.done()
    assert dict(instance.core.store.bucket(b"b").items()) == other.states[-1] == {b"k": b"4"}


@pytest.mark.parametrize("is_followed_again", [False, True])
def test_a_read_whose_barrier_is_lost_gets_its_answer_from_the_next_barrier(is_followed_again: bool) -> None:
    instance = Instance(Stream(64), "i", replicas=3)
    instance.finish()
    instance.core.position.tear()
    kept, instance.stream = instance.stream, Stream(64)  # what it publishes is lost
    read = Asked("get", b"k", None, instance.bucket().get(b"k"), instance)
    instance.core.mend()
    instance.settle()
    instance.answers.clear()
    instance.time_s = 0.9
    instance.core.tick()
    assert not instance.due  # it may still arrive
    instance.stream, instance.time_s = kept, 1.0
    if is_followed_again:
        instance.follow(whole=False)
    else:
        instance.core.tick()
    instance.finish()
    assert instance.core.position.is_whole
    assert read.is_done and read.found is None
    assert not instance.core.counts.refused


def test_a_read_is_refused_if_the_changes_before_its_barrier_do_not_arrive() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i", replicas=3)
    instance.finish()
    instance.core.position.tear()
    instance.time_s = 1.0  # so long after the last one, a barrier asks for an acknowledgement
    read = Asked("get", b"k", None, instance.bucket().get(b"k"), instance)
    change = Asked("set", b"k", b"v", instance.bucket().set(b"k", b"v"), instance)
    instance.settle()
    while instance.acknowledge():
        pass
    instance.time_s += TIMEOUT_S
    instance.core.tick()
    assert isinstance(read.found, NotStoredError)
    assert isinstance(change.found, UnknownOutcomeError)
    assert (instance.core.counts.refused, instance.core.counts.unconfirmed) == (1, 1)


def test_no_change_is_confirmed_because_another_stream_reaches_its_sequence() -> None:
    instance = Instance(Stream(64), "i", replicas=3)
    instance.finish()
    instance.core.position.tear()
    lost = Asked("set", b"k", b"lost", instance.bucket().set(b"k", b"lost"), instance)
    instance.settle()
    while instance.acknowledge():
        pass
    instance.stream = Stream(64)
    instance.follow(whole=True)
    for number in range(9):
        instance.bucket().set(b"%d" % number, b"")
        instance.finish()
    assert isinstance(lost.found, UnknownOutcomeError)
    assert not len(instance.core.publications)


def test_messages_of_other_clients_may_expire_or_replace_the_whole_stream() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    subjects = [stream.layout.subject(b"b", key) for key in (b"kept", b"short", b"only")]
    stream.publish(subjects[0], b"", b"v")
    stream.publish(subjects[1], b"NATS/1.0\r\nNats-TTL: 5m\r\n\r\n", b"v")
    instance.finish()
    handle = instance.core.store.bucket(b"b")
    assert dict(handle.items()) == {b"kept": b"v", b"short": b"v"}
    assert handle.ttl_ms(b"kept") is None
    assert 0 < (handle.ttl_ms(b"short") or 0) <= 300_000
    stream.publish(subjects[2], b"NATS/1.0\r\nNats-Rollup: all\r\n\r\n", b"v")
    instance.finish()
    assert dict(handle.items()) == {b"only": b"v"}
