"""The delivery of changes to one component. Each event in a queue becomes a call to on-set or on-delete.

Events for the same key are delivered in order, each at most once. A call that fails or times out counts as failed and
is not repeated. The component may still execute a call that has timed out, even after the key's next event. While NATS
is disconnected, events wait in the queue. While the component is missing, the delivery makes one call at a time, with
growing pauses between calls. Each of these calls fails and uses up its event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from keyvalue_provider.keyvalue.names import is_utf8
from keyvalue_provider.watching.queue import Event, InFlight, WatchCounts, WatchLimits, WatchQueue
from keyvalue_provider.watching.traced import TracedComponent, TracedEvent, TracedQueue
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, encode_on_delete, encode_on_set
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError

__all__ = [
    "ABSENT_PAUSE_MAX_S",
    "ABSENT_PAUSE_MIN_S",
    "CALLS_MAX",
    "DISCONNECTED_PAUSE_S",
    "ChangeDelivery",
    "ComponentInvoker",
    "FailureLog",
]

log = logging.getLogger(__name__)

#: Maximum number of calls in flight to one component.
CALLS_MAX = 16
#: While the component is missing, calls are separated by pauses. Pauses double from the first value to the second.
ABSENT_PAUSE_MIN_S = 0.05
ABSENT_PAUSE_MAX_S = 1.0
DISCONNECTED_PAUSE_S = 0.25
#: Minimum time between two log messages about failing calls to the same component.
FAILURE_LOG_INTERVAL_S = 10.0


class ComponentInvoker(Protocol):
    """An object that calls a component's functions, such as `keyvalue_transport.nats.invoker.Invoker`."""

    def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[None, int]],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> Coroutine[Any, Any, None]: ...


class FailureLog:
    """Logs the first of several failing calls to a component, and the first answer after them.

    :param name: the watcher's name in the log
    """

    __slots__ = ("_failing", "_name", "_quiet_until_s", "_told")

    def __init__(self, name: str) -> None:
        self._name = name
        self._failing = False
        self._told = False  # the failure has been logged
        self._quiet_until_s = 0.0

    def note_answer(self) -> None:
        """Note that the component has answered."""
        if self._failing:
            self._failing = False
            if self._told:
                self._told = False
                log.info("watcher %s: it answers again", self._name)

    def note_failure(self, error: BaseException, now_s: float) -> None:
        """Note that a call has failed."""
        if self._failing:
            return
        self._failing = True
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + FAILURE_LOG_INTERVAL_S
            self._told = True
            ours = None if isinstance(error, TransportError) else error
            log.warning("watcher %s: a change is not delivered: %s", self._name, error, exc_info=ours)


class ChangeDelivery:
    """The queue for one component, and the calls that deliver the queued events.

    Use this class only in the event loop's thread. Only `queue.push` may be called from any thread.

    :param name: the watcher's name in the log
    :param connected: returns True while NATS is connected
    :param on_end: called when the delivery is closed and its last call has ended
    :param traced: the component, if its calls are traced
    """

    __slots__ = (
        *("_calls", "_closed", "_component", "_connected", "_counts", "_failures", "_loop", "_on_end", "_pause"),
        *("_pause_s", "_subjects", "_timeout_s", "_traced", "bucket_argument", "name", "queue"),
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        prefix: str,
        component: ComponentInvoker,
        connected: Callable[[], bool],
        limits: WatchLimits,
        counts: WatchCounts,
        on_end: Callable[[], None],
        traced: TracedComponent | None = None,
    ) -> None:
        self.name = name
        self.queue = (
            WatchQueue(limits, counts, self._wake)
            if traced is None
            else TracedQueue(traced.tracer, limits, counts, self._wake)
        )
        self._traced = traced
        self.bucket_argument: bytes | None = None
        self._subjects = invocation_subject(prefix, WATCHER, "on-set"), invocation_subject(prefix, WATCHER, "on-delete")
        self._component = component
        self._connected = connected
        self._timeout_s = limits.timeout_s
        self._counts = counts
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._calls: dict[asyncio.Task[None], InFlight] = {}
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = 0.0  # the last pause for a missing component; 0 if the component listens
        self._failures = FailureLog(name)

    @property
    def queue_length(self) -> int:
        """The number of events that are queued or in flight."""
        return len(self.queue) + len(self._calls)

    @property
    def calls(self) -> list[asyncio.Task[None]]:
        """The calls in flight."""
        return list(self._calls)

    def open(self, bucket_argument: bytes | None) -> None:
        """Accept events. Use this bucket argument for new events and for events that are already queued."""
        self.bucket_argument = bucket_argument
        self._closed = False
        self.queue.open()
        self._start_calls()

    def close(self) -> None:
        """Accept no more events, and drop the queued events. Calls in flight continue."""
        self._closed = True
        self.queue.close()
        self._stop_pausing()
        self._end_if_idle()

    def abandon(self) -> int:
        """Start no more calls, because the process is ending. Return the number of queued events. O(1)."""
        self._closed = True
        self._stop_pausing()
        return len(self.queue)

    def check(self) -> None:
        """Assert all invariants. Tests may call this method while no other thread pushes. O(n)."""
        self.queue.check(self._calls.values())
        assert len(self._calls) <= CALLS_MAX
        assert not self._closed or self._pause is None

    def _end_if_idle(self) -> None:
        if self._closed and not self._calls:
            self._on_end()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nothing can be delivered
            self._loop.call_soon_threadsafe(self._start_calls)

    def _start_calls(self) -> None:
        """Start as many calls as the limits allow. This runs when an event arrives, and when a call or a pause ends."""
        while not self._closed and self._pause is None and len(self._calls) < (1 if self._pause_s else CALLS_MAX):
            if not self._connected():
                self._pause_for(DISCONNECTED_PAUSE_S)
                return
            event = self.queue.take()
            if event is None:
                return
            if not is_utf8(event[1]):  # no call can name the key
                with self._counts.lock:
                    self._counts.dropped += 1
                self.queue.end(self.queue.in_flight(event))
                continue
            call = self._loop.create_task(self._call(event))
            self._calls[call] = self.queue.in_flight(event)
            call.add_done_callback(self._end_call)

    def _call(self, event: Event) -> Coroutine[Any, Any, None]:
        """Return the call for an event. This is no coroutine itself, so that it does not keep the value."""
        bucket, key, value = event
        on_set, on_delete = self._subjects
        argument = bucket if self.bucket_argument is None else self.bucket_argument
        if value is None:
            subject, params = on_delete, encode_on_delete(argument, key)
        else:
            subject, params = on_set, encode_on_set(argument, key, value)
        if isinstance(event, TracedEvent) and self._traced is not None:
            invoke = partial(self._component.invoke, subject, params, decode_nothing, self._timeout_s)
            return self._traced.call(event.cause, subject.rpartition(".")[2], invoke)
        return self._component.invoke(subject, params, decode_nothing, self._timeout_s)

    def _end_call(self, call: asyncio.Task[None]) -> None:
        self.queue.end(self._calls.pop(call))
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is None:
            self._counts.delivered += 1
            self._note_answer()
        else:
            self._counts.failed += 1
            self._note_failure(error)
        self._start_calls()
        self._end_if_idle()

    def _note_answer(self) -> None:
        self._pause_s = 0.0
        self._failures.note_answer()

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            return
        if not isinstance(error, NoProviderError):
            self._pause_s = 0.0
        elif self._pause is None and not self._closed:
            self._pause_s = min(max(2 * self._pause_s, ABSENT_PAUSE_MIN_S), ABSENT_PAUSE_MAX_S)
            self._pause_for(self._pause_s)
        self._failures.note_failure(error, self._loop.time())

    def _pause_for(self, seconds: float) -> None:
        self._pause = self._loop.call_later(seconds, self._resume)

    def _stop_pausing(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _resume(self) -> None:
        self._pause = None
        self._start_calls()
