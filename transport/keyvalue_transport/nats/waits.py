"""The calls that wait for an answer, by the answer. Several calls may wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from keyvalue_transport.wrpc.invocation import Waiting

__all__ = ["Waits"]


class Later(Protocol):
    """An asyncio.Future, or anything else with these methods.

    A future calls its callbacks in the next turn of the event loop, others may call them at once.
    """

    def result(self) -> Any: ...

    def cancel(self) -> bool: ...

    def add_done_callback(self, act: Callable[[Any], object], /) -> None: ...


class Waits:
    """The answers that are not done, and the calls that wait for each.

    :param on_done: called once with each answer that is done; it must take the calls
    :ivar take: removes an answer, and returns the calls that waited for it
    """

    def __init__(self, on_done: Callable[[Any], None]) -> None:
        self._on_done = on_done
        self._calls: dict[Any, list[Waiting[Any]]] = {}
        self.take = self._calls.pop

    def __len__(self) -> int:
        """Return the number of answers that are not done."""
        return len(self._calls)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._calls))

    def add(self, waiting: Waiting[Any]) -> None:
        """Let a call wait for its answer.

        An answer without `add_done_callback` is a coroutine or another awaitable, and gets a task.

        :raises Exception: the answer is not awaitable
        """
        answer: Any = waiting.pending.answer
        calls = self._calls.get(answer)
        if calls is not None:
            calls.append(waiting)
            return
        add = getattr(answer, "add_done_callback", None)
        if add is None:
            answer = asyncio.ensure_future(answer)
            add = answer.add_done_callback
        self._calls[answer] = [waiting]
        add(self._on_done)

    async def cancel(self, timeout_s: float) -> int:
        """Cancel all answers. Wait until they have ended, and return the number of those that have not."""
        for answer in list(self._calls):
            answer.cancel()
        tasks = [answer for answer in self._calls if asyncio.isfuture(answer)]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
            await asyncio.sleep(0)  # let the callbacks of the answers run
        return len(self._calls)
