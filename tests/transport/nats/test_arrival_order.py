"""Changes among the calls of several lanes, each handled by one task: every call sees exactly the changes that came before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_transport.nats.arrival_order import ArrivalOrder, Lane

LANES = 3


class Call(NamedTuple):
    """A call of a lane. Afterwards its task waits for the socket for some turns of the loop."""

    lane: int
    turns: int = 0


class Change(NamedTuple):
    """A change that takes effect at once, or before the next call with all others of its kind."""

    is_at_once: bool = True


class Turn(NamedTuple):
    """A turn of the event loop."""


class Cancel(NamedTuple):
    """The cancellation of a lane's waiting call, if there is one."""

    lane: int


Event = Call | Change | Turn | Cancel


class Scene:
    """Tasks that handle the calls of a lane one after another, as nats-py's do, and what each call found."""

    def __init__(self) -> None:
        self.order = ArrivalOrder()
        self.lanes = [Lane() for _ in range(LANES)]
        self.queues: list[asyncio.Queue[tuple[int, int]]] = [asyncio.Queue() for _ in range(LANES)]
        for lane, queue in zip(self.lanes, self.queues, strict=True):
            self.order.add(lane, queue.qsize)
        self.tasks = [asyncio.create_task(self._work(number)) for number in range(LANES)]
        self.waits = [False] * LANES
        self.found: dict[int, int] = {}  # by call, the last change in force
        self.lost: set[int] = set()
        self.in_force = self.carried_out = 0
        self._numbers = count()
        self._changes = 0

    async def _work(self, number: int) -> None:
        lane, queue = self.lanes[number], self.queues[number]
        while True:
            call, turns = await queue.get()
            self.waits[number] = True
            try:
                await self.order.enter(lane)
            except asyncio.CancelledError:
                self.lost.add(call)
                continue
            finally:
                self.waits[number] = False
            self.found[call] = self.in_force
            self.order.leave(lane)
            for _ in range(turns):
                await asyncio.sleep(0)

    async def take(self, event: Event) -> None:
        """Let an event happen."""
        match event:
            case Call(lane, turns):
                self.queues[lane].put_nowait((next(self._numbers), turns))
            case Change(is_at_once):
                self._changes += 1
                self.order.change(self._act_of(self._changes, is_at_once))
            case Turn():
                await asyncio.sleep(0)
            case Cancel(lane) if self.waits[lane]:
                self.tasks[lane].cancel()
                await asyncio.sleep(0)

    def _act_of(self, number: int, is_at_once: bool) -> Callable[[], None]:
        def apply() -> None:
            self.in_force = self.carried_out

        def act() -> None:
            assert self.carried_out == number - 1, "changes are carried out in their order"
            self.carried_out = number
            if is_at_once:
                apply()
            else:
                self.order.before_next_call(apply)

        return act

    async def settle(self) -> None:
        """Let everything run that can."""
        for _ in range(300):
            await asyncio.sleep(0)
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


def one_by_one(events: list[Event]) -> list[int]:
    """Return what each call finds if the events are carried out one after another."""
    found, in_force = [], 0
    for event in events:
        if isinstance(event, Call):
            found.append(in_force)
        elif isinstance(event, Change):
            in_force += 1
    return found


lanes = st.integers(0, LANES - 1)
EVENTS = st.lists(
    st.builds(Call, lanes, st.integers(0, 3))
    | st.builds(Change, st.booleans())
    | st.just(Turn())
    | st.builds(Cancel, lanes),
    max_size=30,
)


@settings(deadline=None, max_examples=100)
@given(EVENTS)
@example([Call(0), Call(1, 3), Call(1), Change(), Call(0), Call(1), Change(False), Call(0)])
@example([Call(1, 5), Turn(), Turn(), Call(1), Change(), Call(0), Turn(), Turn(), Change(), Call(0)])
# A cancelled call blocks neither the changes that came after it, nor the calls of its lane.
@example([Call(1), Turn(), Call(1), Change(), Call(0), Turn(), Change(), Cancel(0), Call(0)])
@example([Call(1, 5), *[Turn()] * 2, Call(1), Change(), Call(0), *[Turn()] * 2, Change(), Cancel(0), Call(0)])
def test_calls_find_what_they_would_find_one_by_one(events: list[Event]) -> None:
    async def run() -> Scene:
        scene = Scene()
        for event in events:
            await scene.take(event)
        await scene.settle()
        return scene

    scene = asyncio.run(run())
    expected = one_by_one(events)
    assert scene.found == {call: found for call, found in enumerate(expected) if call not in scene.lost}
    assert scene.carried_out == sum(isinstance(event, Change) for event in events)


async def test_lost_calls_are_not_waited_for() -> None:
    """They are lost with their client, or with their lane.

    Neither the waiting changes wait for them, nor those that come before another client carries the lane.
    """
    acts: list[int] = []
    order, lane = ArrivalOrder(), Lane()
    order.add(lane, lambda: 7)  # nobody empties the queue of an abandoned client
    for number in (1, 2):
        order.change(lambda number=number: acts.append(number))  # type: ignore[misc] # it is called without
    assert acts == []
    order.forget_calls()
    assert acts == [1, 2]
    order.change(lambda: acts.append(3))
    assert acts == [1, 2, 3]
    order.add(lane, lambda: 1)
    order.change(lambda: acts.append(4))
    assert acts == [1, 2, 3]
    await order.enter(lane)
    order.leave(lane)
    assert acts == [1, 2, 3, 4]
    order.change(lambda: acts.append(5))
    assert acts == [1, 2, 3, 4]
    for _ in range(2):
        order.remove(lane)
        assert acts == [1, 2, 3, 4, 5]


async def test_a_change_that_fails_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    acts: list[str] = []
    order, lane = ArrivalOrder(), Lane()

    def fail() -> None:
        acts.append("failed")
        raise KeyError("ours")

    order.change(fail)
    order.change(lambda: acts.append("carried out"))
    order.before_next_call(fail)
    await order.enter(lane)
    order.leave(lane)
    await order.enter(lane)
    assert acts == ["failed", "carried out", "failed"]
    assert [record.getMessage() for record in caplog.records] == ["a change was not carried out"] * 2
