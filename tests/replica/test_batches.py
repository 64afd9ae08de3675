"""Atomic batches of which a few are in flight. `test_core.py` has batches in its state machine."""

from __future__ import annotations

import pytest

from keyvalue_replica.batches import IN_FLIGHT_MAX, WAITING_SHARE
from keyvalue_replica.errors import NotStoredError
from tests.replica.stream_model import TIMEOUT_S, Instance, Stream

MORE = 3


def test_a_few_batches_are_in_flight_and_the_others_follow_in_order() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    names = [b"%d" % number for number in range(IN_FLIGHT_MAX + MORE)]
    answers = [instance.bucket().set_many({name: b"v", name + b"'": b"v"}) for name in names]
    instance.settle()
    assert len(stream.states[-1]) == 2 * IN_FLIGHT_MAX
    assert answers[-1].cancel()
    while not answers[0].done():
        assert instance.acknowledge() or instance.deliver()
    instance.settle()
    assert 2 * IN_FLIGHT_MAX < len(stream.states[-1]) <= 2 * len(names[:-1])
    instance.finish()
    assert [answer.result() for answer in answers[:-1]] == [None] * len(answers[:-1])
    assert list(stream.states[-1]) == [key for name in names[:-1] for key in (name, name + b"'")]


def test_a_batch_that_waits_for_too_long_is_not_sent() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    answers = [instance.bucket().set_many({b"%d" % n: b"", b"-%d" % n: b""}) for n in range(IN_FLIGHT_MAX + MORE)]
    late = instance.bucket().set_missing({b"a": b"", b"b": b""})
    instance.settle()
    instance.time_s += WAITING_SHARE * TIMEOUT_S
    instance.core.tick()
    for answer in answers[IN_FLIGHT_MAX:]:
        with pytest.raises(NotStoredError, match=r"take too long, 80% of 5 s .*: nothing was sent"):
            answer.result()
    instance.finish()
    assert [answer.result() for answer in answers[:IN_FLIGHT_MAX]] == [None] * IN_FLIGHT_MAX
    assert late.result() is True
    assert len(stream.states[-1]) == 2 * IN_FLIGHT_MAX + 2


def test_a_batch_that_waited_has_no_more_time_than_others() -> None:
    stream = Stream(64)
    instance = Instance(stream, "i")
    answers = [instance.bucket().set_many({b"%d" % n: b"", b"-%d" % n: b""}) for n in range(IN_FLIGHT_MAX + 1)]
    instance.settle()
    instance.time_s += TIMEOUT_S / 4
    write = instance.bucket().set(b"k", b"v")
    while not answers[0].done():
        assert instance.acknowledge() or instance.deliver()
    instance.settle()
    assert len(stream.states[-1]) == 2 * len(answers) + 1
    instance.time_s += TIMEOUT_S * 3 / 4
    instance.core.tick()
    with pytest.raises(Exception, match="may or may not have been stored"):
        answers[-1].result()
    assert not write.done()


def test_batches_with_conditions_that_fail_let_others_go_on() -> None:
    """All but one of the batches find that a key was set meanwhile, and are not in flight any more."""
    stream = Stream(64)
    instance = Instance(stream, "i")
    creations = [instance.bucket().set_missing({b"a": b"%d" % number, b"b": b""}) for number in range(20)]
    after = instance.bucket().set_many({b"c": b"", b"d": b""})
    instance.finish()
    assert sorted(creation.result() for creation in creations) == [False] * 19 + [True]
    assert after.result() is None
