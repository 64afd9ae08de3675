"""The check that the event loop runs: a late loop is alive, a stuck or a closed one is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from keyvalue_provider.observe import loop_probe
from keyvalue_provider.observe.loop_probe import STUCK_S, LoopProbe
from tests.conftest import in_thread


class LateLoop(asyncio.SelectorEventLoop):
    """A loop that runs the callbacks of other threads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled: list[Callable[..., object]] = []

    def call_soon_threadsafe(self, callback: Callable[..., object], *arguments: object, context: object = None) -> None:  # type: ignore[override]
        self.scheduled.append(callback)


def test_a_late_loop_is_alive_until_it_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_probe, "ANSWER_TIMEOUT_S", 0)
    loop, now_s = LateLoop(), [100.0]
    probe = LoopProbe(loop, lambda: now_s[0])
    for _ in range(2):
        assert probe.alive()
        now_s[0] += STUCK_S - 0.1
        assert probe.alive(), "late, and not yet stuck"
        assert len(loop.scheduled) == 1, "checks must not pile up callbacks"
        now_s[0] += 0.1
        assert not probe.alive()
        loop.scheduled.pop()()
        assert probe.alive(), "it goes on after a stop, for example of the whole process"
        loop.scheduled.pop()()
        now_s[0] += 10 * STUCK_S  # nobody checks for a long time
    loop.close()
    assert not probe.alive()


async def test_a_running_loop_answers() -> None:
    probe = LoopProbe(asyncio.get_running_loop(), lambda: 0.0)
    for _ in range(3):
        assert await in_thread(probe.alive)
