"""Increments and updates that wait: limits, deadlines, time limits, and a stream that is created again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keyvalue_engine import FullError, StoreOptions
from keyvalue_replica.bucket import ReplicaBucket
from keyvalue_replica.errors import UnknownOutcomeError
from keyvalue_replica.layout import NS_PER_S
from keyvalue_replica.sequences import NO_MESSAGE, Sequences
from tests.replica.stream_model import BEGAN_NS, LAYOUT, TIMEOUT_S, Instance, Stream


@pytest.mark.parametrize(
    "write",
    [
        lambda bucket, key: bucket.increment(key, 1),
        lambda bucket, key: bucket.update(key, lambda entry, now_ns, deadline_ns: b"v"),
        lambda bucket, key: bucket.set_missing({key: b"v"}),
    ],
)
def test_writes_in_flight_that_depend_on_an_entry_count_for_the_limits(
    write: Callable[[ReplicaBucket, bytes], Any],
) -> None:
    instance = Instance(Stream(64), "i", StoreOptions(keys_max=5))
    instance.finish()
    answers = [write(instance.bucket(), b"%d" % number) for number in range(20)]
    instance.finish()
    refused = 0
    for answer in answers:
        try:
            answer.result()
        except FullError:
            refused += 1
    assert (len(instance.core.store), refused) == (5, 15)
    instance.bucket().delete(b"0")
    instance.finish()
    last = write(instance.bucket(), b"new")
    instance.finish()
    last.result()  # all room was given back


def test_increments_do_not_move_a_deadline() -> None:
    instance = Instance(Stream(64), "i")
    instance.finish()
    bucket, engine = instance.bucket(), instance.core.store.bucket(b"b")
    bucket.set(b"n", b"0", 3000)
    instance.finish()
    deadline_ns = engine.entry(b"n")[1]  # type: ignore[index]
    for number in range(1, 4):
        instance.core.clock.note(BEGAN_NS + number % 2 * NS_PER_S)  # sometimes a second later than the server's
        answer = bucket.increment(b"n", 1)
        instance.finish()
        assert answer.result() == number
    assert engine.entry(b"n") == (b"3", deadline_ns)


def test_a_sum_that_is_stored_and_not_applied_expires_at_its_deadline() -> None:
    instance = Instance(Stream(64), "i")
    instance.finish()
    bucket = instance.bucket()
    bucket.set(b"n", b"41", 1000)
    instance.finish()
    bucket.increment(b"n", 1)
    instance.finish()
    bucket.increment(b"n", 1)
    instance.settle()
    late = bucket.increment(b"n", 1)  # waits for the one before it
    instance.core.clock.note(BEGAN_NS + 3600 * NS_PER_S)
    while instance.acknowledge():
        instance.settle()
    instance.finish()
    assert late.result() == 1
    assert instance.core.store.bucket(b"b").entry(b"n") == b"1"


def test_no_increment_waits_beyond_its_time() -> None:
    instance = Instance(Stream(64), "i")
    instance.finish()
    bucket, waits = instance.bucket(), dict[float, float]()
    while instance.time_s < 3 * TIMEOUT_S:
        began_s = instance.time_s
        bucket.increment(b"n", 1).add_done_callback(
            lambda _, began_s=began_s: waits.setdefault(began_s, instance.time_s)
        )
        instance.settle()  # the server does not answer
        instance.time_s += 0.25
        instance.core.tick()
    assert max(ended_s - began_s for began_s, ended_s in waits.items()) <= TIMEOUT_S + 0.25


def test_an_increment_that_was_published_and_not_confirmed_in_time_may_be_stored() -> None:
    instance = Instance(Stream(64), "i")
    instance.finish()
    answer = instance.bucket().increment(b"n", 1)
    instance.settle()
    instance.time_s += TIMEOUT_S
    instance.core.tick()
    with pytest.raises(UnknownOutcomeError):
        answer.result()


def test_increments_go_on_in_a_stream_that_is_created_again() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    for number in range(50):
        stream.publish(LAYOUT.subject(b"b", b"n"), b"", b"%d" % number)
    instance.finish()
    bucket = instance.bucket()
    bucket.increment(b"n", 1)
    instance.settle()
    instance.acknowledge()  # overtaken by message 50
    instance.settle()
    waiting = bucket.increment(b"n", 1)
    instance.stream = Stream(64)
    instance.answers.clear()
    instance.core.publications.expire(float("inf"), TIMEOUT_S)
    instance.follow(whole=True)
    instance.finish()
    assert waiting.result() == 1


def test_what_was_applied_later_counts_more_than_what_the_server_names() -> None:
    sequences = Sequences()
    sequences.watch(b"s")
    sequences.note(b"s", 5)
    sequences.learn(b"s", NO_MESSAGE, 4)
    assert sequences.get(b"s") == 5
    sequences.learn(b"s", 3, 5)
    assert sequences.get(b"s") == 5
    sequences.learn(b"s", NO_MESSAGE, 5)
    assert sequences.get(b"s") == NO_MESSAGE
