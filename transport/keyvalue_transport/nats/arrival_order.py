"""The order of calls and changes on the plain path, where nats-py handles each subscription in its own task.

    lane (a function's subscription)    call 1   call 2                  call 3 ...
    in order (a change by the host)                       change
                                        calls 1 and 2 are handled, then the change, then call 3

A change takes effect when every lane has handled the calls that arrived before the change. Calls that arrive after
the change wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["ArrivalOrder", "Lane"]

log = logging.getLogger(__name__)


class Lane:
    """The calls of one subscription.

    :ivar began: number of calls that have started, including calls that wait in `ArrivalOrder.enter`
    :ivar handled: number of calls that were passed to their handler or cancelled
    """

    __slots__ = ("began", "handled")

    def __init__(self) -> None:
        self.began = 0
        self.handled = 0


class _Change(NamedTuple):
    """A change that waits for earlier calls.

    :ivar calls: the number of calls in each lane that must be handled before the change
    """

    act: Callable[[], None]
    calls: dict[Lane, int]


class ArrivalOrder:
    """A queue that applies changes in order of arrival, relative to the calls of all lanes.

    Use the queue only on the event loop.
    """

    def __init__(self) -> None:
        self._lanes: dict[Lane, Callable[[], int]] = {}
        self._changes: deque[_Change] = deque()
        self._changed = asyncio.Event()
        self._before_next_call: Callable[[], None] | None = None

    def add(self, lane: Lane, queued: Callable[[], int]) -> None:
        """Add a lane. Changes then wait for the lane's calls.

        :param queued: a function that returns the number of calls that have arrived but have not started
        """
        self._lanes[lane] = queued

    def remove(self, lane: Lane) -> None:
        """Remove a lane. Changes no longer wait for the lane's calls."""
        self._lanes.pop(lane, None)
        self._advance()

    def forget_calls(self) -> None:
        """Forget the lanes and apply all waiting changes.

        Call this method when a client and its queued calls are lost. Then add the lanes for the new client.
        """
        self._lanes.clear()
        self._advance()

    def change(self, act: Callable[[], None]) -> None:
        """Apply a change as soon as all calls that have already arrived are handled."""
        arrived = {lane: lane.began + queued() for lane, queued in self._lanes.items()}
        calls = {lane: calls for lane, calls in arrived.items() if calls > lane.handled}
        self._changes.append(_Change(act, calls))
        self._advance()

    def before_next_call(self, act: Callable[[], None]) -> None:
        """Call `act` once, before the next call is handled."""
        self._before_next_call = act

    async def enter(self, lane: Lane, is_next_turn: bool = False) -> None:
        """Wait until a lane's next call may be handled.

        When this method returns, call the handler and then `leave`, without an await in between.

        :param is_next_turn: wait at least for the next turn of the event loop; changes that arrive meanwhile come later
        """
        lane.began += 1
        try:
            if is_next_turn:
                await asyncio.sleep(0)
            while self._changes and lane.handled >= self._changes[0].calls.get(lane, lane.handled):
                await self._changed.wait()
        except BaseException:
            self.leave(lane)  # the call is cancelled, so later changes must not wait for it
            raise
        act, self._before_next_call = self._before_next_call, None
        if act is not None:
            self._carry_out(act)

    def leave(self, lane: Lane) -> None:
        """Record that a lane's next call was passed to its handler or cancelled."""
        lane.handled += 1
        if self._changes:
            self._advance()

    def _advance(self) -> None:
        while self._changes and all(
            lane.handled >= calls for lane, calls in self._changes[0].calls.items() if lane in self._lanes
        ):
            self._carry_out(self._changes.popleft().act)
            self._changed.set()
            self._changed = asyncio.Event()

    def _carry_out(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # an exception in one change must not stop the calls or the other changes
            log.exception("a change was not carried out")
