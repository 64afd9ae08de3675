"""Sets of a run are answered as single sets are, whatever happens to some of them. test_core.py mixes both."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest

from keyvalue_engine import StoreError, StoreOptions
from keyvalue_replica.errors import NotStoredError, UnknownOutcomeError
from keyvalue_replica.options import LinkedOptions
from keyvalue_replica.promise import Promise
from tests.replica.stream_model import TIMEOUT_S, Instance, Stream, set_together

KEYS = [b"%d" % number for number in range(6)]
VALUES = [b"value %d" % number for number in range(6)]


class Scene:
    """An instance that has published a run, and another instance."""

    def __init__(self) -> None:
        self.stream = Stream(64)
        self.own, self.other = Instance(self.stream, "own"), Instance(self.stream, "other")
        self.own.bucket().set(b"first", b"")
        self.own.finish()
        self.publications = self.own.core.publications
        self.answers = set_together(self.own.bucket(), KEYS, VALUES)
        (run,) = self.publications._runs.values()
        self.numbers = run.numbers

    def acknowledge(self, *sets: int, first: int = 2) -> None:
        """Receive acknowledgements of sets in one read. The sequences follow each other from `first` on."""
        numbers = [self.numbers[each] for each in sets]
        self.own.core.acknowledge_all(numbers, [b"%d" % (first + at) for at in range(len(sets))])

    def write_with_another(self) -> None:
        """Write the sets. Another instance's change is stored between the second and the third."""
        write = self.own.write

        def interrupted(frames: bytes) -> bool:
            at = frames.index(b"PUB ", frames.index(VALUES[1]))
            write(frames[:at])
            self.other.bucket().set(KEYS[0], b"another")
            self.other.settle()
            return write(frames[at:])

        with patch.object(self.own, "write", interrupted):
            self.own.settle()

    def ends(self) -> list[str]:
        """Return how each set has ended."""
        return [end_of(answer) for answer in self.answers]


def end_of(answer: Promise) -> str:
    if not answer.done():
        return "waits"
    try:
        answer.result()
    except StoreError as error:
        return type(error).__name__
    return "stored"


def acknowledge_in_parts(scene: Scene) -> None:
    scene.own.settle()
    for number in range(6):
        assert scene.ends() == ["stored"] * number + ["waits"] * (6 - number)
        assert len(scene.publications) == 6 - number
        scene.own.acknowledge()
    assert not scene.publications._unacknowledged


def acknowledge_in_another_order(scene: Scene) -> None:
    scene.own.settle()
    scene.own.answers.rotate(-2)
    scene.own.acknowledge()
    assert scene.ends() == ["waits"] * 6, "those before it are not applied"


def deliver_first(scene: Scene) -> None:
    scene.own.settle()
    scene.own.deliver(4)
    scene.own.acknowledge()
    assert scene.ends() == ["stored"] + ["waits"] * 5


def deliver_one_and_acknowledge_three(scene: Scene) -> None:
    scene.own.settle()
    scene.own.deliver(1)
    scene.acknowledge(0, 1, 2)
    assert scene.ends() == ["stored"] * 3 + ["waits"] * 3


def acknowledge_not_the_next(scene: Scene) -> None:
    scene.own.settle()
    scene.acknowledge(0, 2)
    assert scene.ends() == ["stored", "waits", "stored", "waits", "waits", "waits"]
    scene.own.follow(whole=True)  # that cannot be, so the engine is wrong now


def write_in_the_middle(scene: Scene) -> None:
    """Another instance's change is stored after the second set. No later one may be answered before it is applied."""
    scene.write_with_another()
    for _ in range(3):
        scene.own.acknowledge()
    assert scene.ends() == ["stored"] * 2 + ["waits"] * 4


def acknowledge_together_what_is_not_stored_together(scene: Scene) -> None:
    scene.write_with_another()
    scene.own.core.acknowledge_all(list(scene.numbers), [b"2", b"3", b"5", b"6", b"7", b"8"])
    assert scene.ends() == ["stored"] * 2 + ["waits"] * 4


def let_messages_age(scene: Scene) -> None:
    """The deadline depends on the timestamp, which only the delivery tells."""
    scene.own.settle()
    with patch.object(scene.own.core.layout, "max_age_ns", 10**18):
        scene.own.acknowledge()
    assert scene.ends() == ["waits"] * 6
    assert scene.own.core.store.bucket(b"b").get(KEYS[0]) is None


def write_in_between(scene: Scene) -> None:
    scene.other.bucket().set(KEYS[1], b"another")
    scene.other.settle()
    scene.own.settle()
    scene.own.acknowledge()
    assert scene.ends() == ["waits"] * 6, "the other's change is not applied"


def be_torn(scene: Scene) -> None:
    scene.own.settle()
    scene.own.core.position.tear()
    scene.own.acknowledge()
    assert scene.ends() == ["waits"] * 6


def increment_as_well(scene: Scene) -> None:
    bucket = scene.own.bucket()
    bucket.increment(b"n", 1)
    scene.own.finish()
    lost_races = scene.own.core.counts.lost_races
    again = set_together(bucket, [b"n", b"m"], [b"5", b"6"])
    scene.own.settle()
    scene.own.acknowledge()
    scene.own.acknowledge()
    assert [end_of(answer) for answer in again] == ["stored"] * 2
    total = bucket.increment(b"n", 1)
    scene.own.finish()
    assert total.result() == 6
    assert scene.own.core.counts.lost_races == lost_races, "the sequence of the set is known"


@pytest.mark.parametrize(
    "happen",
    [
        acknowledge_in_parts,
        acknowledge_in_another_order,
        deliver_first,
        deliver_one_and_acknowledge_three,
        acknowledge_not_the_next,
        write_in_the_middle,
        acknowledge_together_what_is_not_stored_together,
        let_messages_age,
        write_in_between,
        be_torn,
        increment_as_well,
        lambda scene: scene.publications.part_all(),
    ],
)
def test_each_set_is_stored_and_answered(happen: Callable[[Scene], None]) -> None:
    scene = Scene()
    happen(scene)
    scene.own.finish()
    assert scene.ends() == ["stored"] * 6
    assert not len(scene.publications)
    bucket = scene.own.core.store.bucket(b"b")
    assert dict(bucket.items()) == scene.stream.states[-1]


def test_sets_that_are_not_confirmed_are_unknown() -> None:
    scene = Scene()
    scene.own.settle()
    scene.own.acknowledge()
    scene.own.acknowledge()
    scene.own.time_s += TIMEOUT_S
    scene.own.core.tick()
    assert scene.ends() == ["stored"] * 2 + [UnknownOutcomeError.__name__] * 4
    assert scene.own.core.counts.unconfirmed == 4
    while scene.own.acknowledge():  # too late
        pass
    scene.own.finish()
    assert scene.own.core.store.bucket(b"b").get(KEYS[5]) == VALUES[5]


def test_a_refused_set_does_not_end_the_others() -> None:
    scene = Scene()
    scene.own.settle()
    reply, block, _ = scene.own.answers[2]
    refusal = b'{"error":{"code":400,"err_code":10077,"description":"maximum bytes exceeded"}}'
    scene.own.answers[2] = reply, block, refusal
    scene.own.finish()
    assert scene.ends() == ["stored"] * 2 + ["BucketFullError"] + ["stored"] * 3


@pytest.mark.parametrize("is_parted", [False, True])
def test_sets_that_could_not_be_written_are_not_stored(is_parted: bool) -> None:
    scene = Scene()
    scene.own.is_connected = False
    if is_parted:
        scene.publications.part_all()
    scene.own.settle()
    assert scene.ends() == [NotStoredError.__name__] * 6
    assert not len(scene.publications)


@pytest.mark.parametrize(
    ("options", "linked"),
    [
        (StoreOptions(keys_max=100), LinkedOptions()),
        (None, LinkedOptions(ttl_ms=1_000)),
        (None, LinkedOptions(key_bytes_max=2)),
        (None, LinkedOptions(value_bytes_max=1)),
    ],
)
def test_sets_that_need_more_are_not_published_together(options: StoreOptions | None, linked: LinkedOptions) -> None:
    instance = Instance(Stream(64), "own", options)
    instance.bucket().set(b"first", b"")
    instance.finish()
    assert instance.bucket(linked).begin_sets([b"key"], [b"value"]) is None
    assert instance.replica.bucket(b"no key", LinkedOptions()).begin_sets([b"key"], [b"value"]) is None
    instance.finish()
    assert instance.stream.last == 1


def test_a_sequence_that_was_used_before_means_another_stream() -> None:
    scene = Scene()
    scene.own.settle()
    scene.acknowledge(0, first=1)
    assert scene.own.must_read
