"""Several keys that are stored if all are missing. `test_core.py` has the same in its state machine."""

from __future__ import annotations

from typing import Any

import pytest

from keyvalue_engine import LimitError, StoreError, StoreOptions
from keyvalue_replica.bucket import ReplicaStore
from keyvalue_replica.options import LinkedOptions
from tests.replica.stream_model import TIMEOUT_S, Instance, MadeAgain, Stream


def answer_of(instance: Instance, answer: Any) -> Any:
    """Let everything arrive, and return the answer."""
    instance.finish()
    assert answer.done()
    return answer.result()


def test_deleted_keys_are_missing_although_the_stream_has_their_messages() -> None:
    """The instance does not know the sequences of the deletes. It asks for all of them at once, and stores nothing."""
    stream = Stream(1)
    writer, names = Instance(stream, "w"), [b"%d" % number for number in range(100)]
    writer.bucket().set_many(dict.fromkeys(names, b"old"))
    writer.bucket().delete_many(names[:99])
    writer.finish()
    instance, before = Instance(stream, "i"), stream.last
    assert answer_of(instance, instance.bucket().set_missing(dict.fromkeys(names, b"new"))) is False
    assert [message for message in stream.log[before:] if not stream.layout.is_internal(message.subject)] == []
    writer.bucket().delete(names[99])
    writer.finish()
    before = stream.last
    assert answer_of(instance, instance.bucket().set_missing(dict.fromkeys(names, b"new"))) is True
    assert stream.states[-1] == dict.fromkeys(names, b"new")
    stored = [message for message in stream.log[before:] if not stream.layout.is_internal(message.subject)]
    assert len(stored) == 100, "a probe was stored"


def test_limits_and_the_time() -> None:
    stream = Stream(1)
    instance = Instance(stream, "i", StoreOptions(keys_max=3))
    bucket = instance.bucket()
    with pytest.raises(LimitError, match="an atomic batch has 1001 keys; the limit is 1000"):
        bucket.set_missing({b"%d" % number: b"" for number in range(1001)})
    with pytest.raises(LimitError, match=r"the store would hold 4 keys; the limit is 3 \(keys_max\)"):
        answer_of(instance, bucket.set_missing({b"%d" % number: b"" for number in range(4)}))
    late = bucket.set_missing({b"a": b"", b"b": b""})
    instance.time_s += TIMEOUT_S
    with pytest.raises(StoreError, match="nothing was stored"):
        answer_of(instance, late)
    assert answer_of(instance, bucket.set_missing({b"a": b"", b"b": b"", b"c": b""})) is True
    with pytest.raises(LimitError, match="the store would hold 4 keys"):
        bucket.set(b"d", b"")


def test_without_atomic_batches() -> None:
    stream = Stream(1)
    instance, other = Instance(stream, "i"), Instance(stream, "o")
    replica = ReplicaStore(instance.core, StoreOptions(), MadeAgain, is_atomic=False)
    bucket = replica.bucket(b"b", LinkedOptions())
    names = {b"%d" % number: b"v" for number in range(1001)}
    assert answer_of(instance, bucket.set_missing(names)) is True
    assert answer_of(instance, bucket.set_missing({b"0": b"w", b"x": b"w"})) is False
    assert stream.states[-1] == names
    overtaken = bucket.set_missing({b"y": b"w", b"z": b"w"})
    instance.turn()  # the barrier is published, so the keys are missing
    other.bucket().set(b"z", b"other")
    other.finish()
    with pytest.raises(StoreError, match=r"some of the keys may have been stored .* another call has stored"):
        answer_of(instance, overtaken)
    assert (stream.states[-1][b"y"], stream.states[-1][b"z"]) == (b"w", b"other")
