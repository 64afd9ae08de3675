"""The stop of a provider's parts, with a host that may ask for it at any moment."""

from __future__ import annotations

import asyncio
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from keyvalue_provider.parts import HOST_STOP_TIMEOUT_S, HOST_STOP_WHOLE_S, Parts
from tests.conftest import DEADLINE_S

FIELDS = ("links", "store", "policy", "service", "metrics")


class AskingHost:
    """A host session that asks for the stop when a step of the stop begins."""

    def __init__(self, at: str, steps: list[str]) -> None:
        self.stop_asked, self.stop_asked_s = asyncio.Event(), 0.0
        self._at, self._steps = at, steps

    @property
    def asks_to_stop(self) -> bool:
        return self.stop_asked.is_set()

    def stop(self) -> None:
        self.note("start")

    def note(self, step: str) -> None:
        self._steps.append(step)
        if step == self._at:
            self.stop_asked_s = monotonic()
            self.stop_asked.set()

    async def acknowledge_stop(self) -> None:
        self._steps.append("acknowledged")


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize(
    ("asks_at", "expected"),
    [
        ("never", ["calls 30", "save"]),
        ("start", [f"calls {HOST_STOP_TIMEOUT_S}", "save apart"]),
        ("calls 30", ["calls 30", f"calls {HOST_STOP_TIMEOUT_S}", "save apart"]),
        ("watchers", ["calls 30", "save apart"]),
        ("save", ["calls 30", "save", "save apart"]),
    ],
)
async def test_a_request_of_the_host_shortens_each_step_of_a_stop(
    asks_at: str, expected: list[str], is_saved: bool
) -> None:
    steps: list[str] = []
    host = AskingHost(asks_at, steps)

    async def hold(step: str) -> None:
        """Wait for as long as the host allows, if it asks for the stop in this step."""
        host.note(step)
        if step == asks_at:
            await asyncio.sleep(DEADLINE_S)

    async def stop(timeout_s: float) -> None:
        await hold(f"calls {timeout_s:g}")

    async def save_last() -> bool:
        await hold("save")
        return is_saved

    async def save_apart(until_s: float) -> bool:
        host.note("save apart")
        assert until_s == host.stop_asked_s + HOST_STOP_WHOLE_S
        return is_saved

    async def note_watchers(timeout_s: float) -> None:
        host.note("watchers")

    async def nothing(timeout_s: float) -> None:
        pass

    parts: dict[str, Any] = dict.fromkeys(FIELDS) | {
        "connection": SimpleNamespace(flush=nothing),
        "replicated": SimpleNamespace(give_up_after=lambda timeout_s: steps.append(f"give up {timeout_s:g}")),
        "snapshots": SimpleNamespace(save_last=save_last, save_apart=save_apart),
        "watchers": SimpleNamespace(stop=note_watchers),
        "others": SimpleNamespace(leave=lambda: None),
        "server": SimpleNamespace(stop=stop, counts=SimpleNamespace(answered=0)),
        "exports": SimpleNamespace(stop=lambda: None, wait_stopped=nothing),
        "redis": None,
        "background": (),
    }
    session: Any = host
    async with asyncio.timeout(DEADLINE_S / 2):
        assert await Parts(**parts).stop(session, DEADLINE_S) is is_saved
    assert [step for step in steps if step.startswith(("calls", "save"))] == expected
    given_up = [step.replace("give up", "calls") for step in steps if step.startswith("give up")]
    assert given_up == [step for step in expected if step.startswith("calls")]
    assert steps[-1] == "acknowledged"
