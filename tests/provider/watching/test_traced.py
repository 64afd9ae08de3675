"""Changes that a sampled call has made, up to the call that tells a component. test_delivery.py tests the rest of the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from keyvalue_provider.watching.delivery import ChangeDelivery
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.traced import TracedComponent
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.tracing import FinishedCall, Tracer
from keyvalue_transport.wrpc.errors import NoProviderError
from keyvalue_transport.wrpc.handler import Caller

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CALLER = Caller("writer", "default")
LIMITS = WatchLimits(queue_events=100, queue_bytes=100_000, timeout_s=60)


class Component:
    """It records the function and the trace of each call, and fails if it is told of the key b"bad"."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []

    async def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[None, int]],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> None:
        self.calls.append((subject.rpartition(".")[2], traceparent))
        if b"bad" in params and subject.endswith("on-set"):
            raise NoProviderError("nobody serves this function")


@pytest.mark.parametrize("is_traced", [True, False])
async def test_only_what_a_sampled_call_has_changed_is_traced(is_traced: bool) -> None:
    noted: list[FinishedCall] = []
    tracer, component = Tracer(noted.append), Component()
    delivery = ChangeDelivery(
        *("name", "default.watcher", component, lambda: True, LIMITS, WatchCounts(), lambda: None),
        traced=TracedComponent(tracer, "watcher") if is_traced else None,
    )
    delivery.open(None)

    def set_handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        delivery.queue.push((b"bucket", buffer[start:end], b"value" * 1000))  # a large event, and a small one
        delivery.queue.push((b"bucket", buffer[start:end] + b" evicted", None))
        return b"\x00"

    tracer.add(set_handler, "store", "set")
    tracer.of(set_handler, TRACE, CALLER)(CALLER, b"key", 0, 3)
    set_handler(CALLER, b"other", 0, 5)
    await asyncio.sleep(0)
    tracer.of(set_handler, TRACE, CALLER)(CALLER, b"bad", 0, 3)
    while delivery.queue_length:
        await asyncio.sleep(0)
        delivery.check()
    assert [function for function, _ in component.calls] == ["on-set", "on-delete"] * 3
    sets = [call for call in noted if not call.is_outgoing]
    told = [call for call in noted if call.is_outgoing]
    assert len(sets) == 2
    if not is_traced:
        assert (told, {trace for _, trace in component.calls}) == ([], {None})
        return
    parents = [f"{TRACE[:35]}-{call.span_id:016x}-01" for call in sets]
    assert [(call.traceparent, call.function, call.peer, call.outcome) for call in told] == [
        (parents[0], (WATCHER, "on-set"), "watcher", b""),
        (parents[0], (WATCHER, "on-delete"), "watcher", b""),
        (parents[1], (WATCHER, "on-set"), "watcher", "NoProviderError"),
        (parents[1], (WATCHER, "on-delete"), "watcher", b""),
    ]
    sent = [trace for _, trace in component.calls]
    assert sent[2:4] == [None, None]
    assert sent[:2] + sent[4:] == [f"{TRACE[:35]}-{call.span_id:016x}-01" for call in told]
