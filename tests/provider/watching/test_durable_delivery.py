"""The delivery with the replicated store, against a model of the stream, its consumer, the instances and the component."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keyvalue_provider.watching import durable_delivery
from keyvalue_provider.watching.durable_delivery import DurableDelivery
from keyvalue_provider.watching.patterns import Watch, _patterns
from keyvalue_provider.watching.queue import EVENT_BYTES, WatchCounts, WatchLimits
from keyvalue_replica.change_feed import FeedChange
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import decode_on_delete, decode_on_set
from keyvalue_transport.wrpc.errors import InvocationTimeoutError, NoProviderError

EVERYTHING = Watch(_patterns("SET@*,DEL@*"), None)
ROOM_CHANGES = 6
LIMITS = WatchLimits(8, ROOM_CHANGES * (EVENT_BYTES + 8), 1.0)
HISTORY = 2
INSTANCES = 2
RESULTS = {"ok": None, "absent": NoProviderError("nobody"), "late": InvocationTimeoutError("late")}


class Call:
    """A call of the component that is not answered."""

    def __init__(self, number: int, sequence: int, key: bytes, value: bytes | None) -> None:
        self.number = number
        self.sequence = sequence
        self.key = key
        self.value = value
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Instance:
    """An instance: the component that it calls, and its end of the consumer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts = WatchCounts()
        self.delivery = DurableDelivery("component", "default.component", self, lambda: True, LIMITS, self.counts)
        self.delivery.feed = self
        self.delivery.open(EVERYTHING, 0)

    async def invoke(
        self, subject: str, params: bytes, decode: Callable[..., Any], timeout_s: float, traceparent: str | None = None
    ) -> None:
        limits, value = ParameterLimits(), None
        if subject.endswith("on-set"):
            (_, key, value), _ = decode_on_set(params, 0, len(params), limits)
        else:
            (_, key), _ = decode_on_delete(params, 0, len(params), limits)
        await self.world.call(self, key, value)

    def acknowledge(self, reply: bytes) -> None:
        self.world.acknowledge(int(reply))

    def may_tell(self) -> bool:
        return self.world.pinned is self

    async def is_newest(self, change: FeedChange) -> bool:
        barrier: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.world.barriers.append(barrier)
        await barrier
        return self.world.newest(change.key) == change.value


class World:
    """The stream, its consumer, the instances and the component."""

    def __init__(self) -> None:
        self.stream: dict[int, tuple[bytes, bytes | None]] = {}
        self.written = 0
        self.given: dict[int, int] = {}  # how often each change was given that is not acknowledged
        self.next = 1
        self.again: list[int] = []
        self.pinned: Instance | None = None
        self.instances = [Instance(self) for _ in range(INSTANCES)]
        self.calls: list[tuple[Instance, Call]] = []
        self.begun: dict[bytes, int] = {}  # the sequence of the newest change whose call began, by key
        self.told: dict[bytes, int] = {}  # the sequence of the newest change that the component has answered, by key
        self.last_told: dict[
            bytes, tuple[int, bool]
        ] = {}  # the last call that was answered: its number, True for a value
        self.calls_begun = 0
        self.faults: list[str] = []
        self.barriers: list[asyncio.Future[None]] = []

    def newest(self, key: bytes) -> bytes | None:
        return self.stream[self.last(key)][1]

    def last(self, key: bytes) -> int:
        return max(sequence for sequence, (known, _) in self.stream.items() if known == key)

    def write(self, key: bytes, is_delete: bool) -> None:
        self.written += 1
        self.stream[self.written] = key, None if is_delete else b"%d" % self.written
        of_key = [sequence for sequence, (known, _) in self.stream.items() if known == key]
        for sequence in of_key[:-HISTORY]:
            del self.stream[sequence]

    def deliver(self, number: int) -> None:
        """Give changes to the pinned instance: those that are due again, and new ones."""
        for _ in range(number):
            if self.pinned is None:
                return
            if self.again:
                sequence = self.again.pop(0)
            elif self.next <= self.written:
                sequence, self.next = self.next, self.next + 1
                self.given[sequence] = 0
            else:
                return
            if sequence not in self.stream:
                self.given.pop(sequence, None)
            elif sequence in self.given:
                self.given[sequence] += 1
                key, value = self.stream[sequence]
                self.pinned.delivery.take(
                    FeedChange(sequence, b"b", key, value, self.given[sequence] > 1, b"%d" % sequence)
                )

    def redeliver(self) -> None:
        """Let the time pass after which all changes are given again that are not acknowledged."""
        self.again = sorted(self.given)

    def acknowledge(self, sequence: int) -> None:
        key = self.stream[sequence][0] if sequence in self.stream else None
        if key is not None and self.told.get(key, 0) < sequence:
            value = self.stream[sequence][1]
            is_superseded = self.last(key) > sequence
            is_deleted_again = value is None and not self.last_told.get(key, (0, True))[1]
            if not is_superseded and not is_deleted_again:
                self.faults.append("a change was acknowledged, but not told, and is the newest of its key")
        self.given.pop(sequence, None)

    async def call(self, instance: Instance, key: bytes, value: bytes | None) -> None:
        held = [change.sequence for change in instance.delivery._held.values() if change.key == key]
        sequence = int(value) if value is not None else min(held)
        # An exception would count as a failed call.
        if self.pinned is not instance:
            self.faults.append("an instance began a call, but is not pinned")
        if any(known is instance and call.key == key for known, call in self.calls):
            self.faults.append("an instance began two calls for one key")
        if self.begun.get(key, 0) > sequence and self.newest(key) != value:  # a deletion may stand for a later one
            self.faults.append("a newer change of the key has been told")
        self.begun[key] = max(self.begun.get(key, 0), sequence)
        self.calls_begun += 1
        call = Call(self.calls_begun, sequence, key, value)
        self.calls.append((instance, call))
        await call.answer

    def pass_barriers(self) -> None:
        """Let the instances learn which changes are the newest."""
        barriers, self.barriers = self.barriers, []
        for barrier in barriers:
            if not barrier.done():
                barrier.set_result(None)

    def answer(self, which: int, result: str) -> None:
        if not self.calls:
            return
        _, call = self.calls.pop(which % len(self.calls))
        if call.answer.done():
            return
        error = RESULTS[result]
        if error is not None:
            call.answer.set_exception(error)
            return
        call.answer.set_result(None)
        if self.told.get(call.key, 0) <= call.sequence:
            self.told[call.key] = call.sequence
        if self.last_told.get(call.key, (0, True))[0] < call.number:
            self.last_told[call.key] = call.number, call.value is not None

    def pin(self, which: int) -> None:
        """Pin an instance. The one before gives back what it does not tell now."""
        if self.pinned is not None:
            self.again += [int(reply) for reply in self.pinned.delivery.forget()]
        self.pinned = self.instances[which] if which < INSTANCES else None
        if self.pinned is not None:
            self.pinned.delivery.wake()

    async def crash(self, which: int) -> None:
        """Kill an instance, and start another in its place. The component may still answer its calls."""
        killed = self.instances[which]
        killed.delivery.pause()
        for call in killed.delivery.calls:
            call.cancel()
        self.calls = [(instance, call) for instance, call in self.calls if instance is not killed]
        if self.pinned is killed:
            self.pinned = None
        await asyncio.sleep(0)
        self.instances[which] = Instance(self)


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def steps_of(chance: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Return random steps, with their arguments."""
    weights = {"write": 10, "deliver": 10, "answer": 16, "pass_barriers": 10, "pin": 5, "redeliver": 2, "crash": 1}
    for name in chance.choices(list(weights), list(weights.values()), k=400):
        yield (
            name,
            {
                "write": (b"k%d" % chance.randrange(2), chance.random() < 0.5),
                "deliver": (chance.randint(1, 4),),
                "answer": (chance.randrange(6), chance.choice(["ok", "ok", "ok", "absent", "late"])),
                "pin": (chance.choice([0, 0, 0, 1, 1, 1, INSTANCES]),),
                "crash": (chance.randrange(INSTANCES),),
            }.get(name, ()),
        )


async def play(chance: random.Random) -> None:
    """Make the steps. Afterwards nothing fails any more, and the newest change of each key must be told."""
    world = World()
    world.pin(0)
    for name, arguments in steps_of(chance):
        done = getattr(world, name)(*arguments)
        if done is not None:
            await done
        await settled()
        for instance in world.instances:
            instance.delivery.check()
        assert not world.faults, world.faults
    if world.pinned is None:
        world.pin(0)
    for _ in range(100):
        world.redeliver()
        world.deliver(1000)
        await settled()
        while world.calls or world.barriers:
            world.pass_barriers()
            world.answer(0, "ok")
            await settled()
        if world.next > world.written and not world.given:
            break
    assert not world.faults, world.faults
    assert not world.given, "every change is acknowledged in the end"
    for key in {key for key, _ in world.stream.values()}:
        newest = world.newest(key)
        assert world.last_told[key][1] is (newest is not None)
        assert newest is None or world.told[key] == world.last(key), "the newest change of each key is told"
    for instance in world.instances:
        instance.delivery.check()
        assert instance.delivery.queue_length == 0


@pytest.mark.parametrize("begin", range(0, 100, 25))
def test_the_newest_change_of_each_key_is_told_in_the_end(begin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABSENT_PAUSE_MIN_S", "ABSENT_PAUSE_MAX_S", "FAILURE_PAUSE_MIN_S", "FAILURE_PAUSE_MAX_S"):
        monkeypatch.setattr(durable_delivery, name, 1e-9)  # not 0, which would mean that no call has failed
    for seed in range(begin, begin + 25):
        try:
            asyncio.run(play(random.Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


async def test_a_changed_link_applies_to_later_changes() -> None:
    world = World()
    world.pin(0)
    delivery = world.instances[0].delivery
    other = Watch(_patterns("SET@other"), None)
    for number in range(4):
        world.write(b"other" if number % 2 else b"k", False)
    delivery.open(other, 2)
    delivery.open(other, 4)  # unchanged
    for sequence, (key, value) in world.stream.items():
        delivery.take(FeedChange(sequence, b"b", key, value, False, b"%d" % sequence))
    assert sorted(delivery._held) == [1, 2, 4], "the third one is after the change, and does not match"
    assert delivery.close() == 3
    delivery.take(FeedChange(5, b"b", b"other", b"v", False, b"5"))
    assert delivery.queue_length == 0
