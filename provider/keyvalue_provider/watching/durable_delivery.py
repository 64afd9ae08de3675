"""The delivery of changes to one component, with the replicated store: the newest change of each key, at least once.

    feed ── take ──> a chain for each key: called, next, next ... ── on-set, on-delete ──> component
                                             └── answered: acknowledged ── failed: superseded, or tried again

A change is acknowledged when the component has answered, or when a newer change of its key follows. So the feed gives
what an instance could not tell to another instance. Changes of a key are told one after another, in order. A change
that was given before is told only if it is still the newest of its key.

While the component is missing, one call is made at a time, with growing pauses. A key whose calls fail in other ways
waits for itself, and does not delay other keys.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from keyvalue_engine import StoreError
from keyvalue_provider.keyvalue.names import is_utf8
from keyvalue_provider.watching.delivery import (
    ABSENT_PAUSE_MAX_S,
    ABSENT_PAUSE_MIN_S,
    CALLS_MAX,
    DISCONNECTED_PAUSE_S,
    ComponentInvoker,
    FailureLog,
)
from keyvalue_provider.watching.patterns import Watch
from keyvalue_provider.watching.queue import EVENT_BYTES, WatchCounts, WatchLimits
from keyvalue_replica.change_feed import FeedChange
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, encode_on_delete, encode_on_set
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import DisconnectedError, NoProviderError

__all__ = ["DurableDelivery", "Feed"]

BucketKey: TypeAlias = tuple[bytes, bytes]
#: Pauses between two calls for a key whose calls fail. They double from the first value to the second.
FAILURE_PAUSE_MIN_S = 0.5
FAILURE_PAUSE_MAX_S = 30.0
#: Number of keys that are known to be told as deleted.
DELETED_MAX = 1_024


class Feed(Protocol):
    """The feed of the changes, such as `ChangeFeed`."""

    def acknowledge(self, reply: bytes, /) -> None: ...

    def may_tell(self) -> bool: ...

    async def is_newest(self, change: FeedChange, /) -> bool: ...


class _NotNowError(Exception):
    """This instance may not tell a change any more, or does not know if it is the newest one."""


class Chain:
    """The changes of one key, in order.

    :ivar sequences: of the held changes; the first one is in the call, if there is one
    :ivar failures: number of calls that failed for the first change
    :ivar pause_s: the last pause after such a failure
    :ivar is_stale: True if another instance may have told newer changes since the call began
    """

    __slots__ = ("failures", "is_called", "is_stale", "pause_s", "sequences")

    def __init__(self) -> None:
        self.sequences: deque[int] = deque()
        self.is_called = self.is_stale = False
        self.failures = 0
        self.pause_s = 0.0


class DurableDelivery:
    """The changes that this instance holds for one component, and the calls that tell them. It listens to a feed.

    Use this class only in the event loop's thread. Other threads may read `queue_length`.

    :param name: the watcher's name in the log
    :param connected: returns True while NATS is connected
    :ivar feed: set it before the feed starts
    """

    feed: Feed

    def __init__(
        self,
        name: str,
        prefix: str,
        component: ComponentInvoker,
        connected: Callable[[], bool],
        limits: WatchLimits,
        counts: WatchCounts,
    ) -> None:
        self.name = name
        self._subjects = invocation_subject(prefix, WATCHER, "on-set"), invocation_subject(prefix, WATCHER, "on-delete")
        self._component = component
        self._connected = connected
        self._limits = limits
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._watch_before: Watch | None = None  # for the changes up to `_since`
        self._since = 0
        self._held: dict[int, FeedChange] = {}
        self._held_bytes = 0
        self._chains: dict[BucketKey, Chain] = {}
        self._ready: dict[BucketKey, None] = {}  # keys that can be called, in order
        self._calls: dict[asyncio.Task[bool], FeedChange] = {}
        self._deleted: OrderedDict[BucketKey, None] = OrderedDict()  # keys whose last told change was a deletion
        self._is_due = self._is_paused = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = 0.0
        self._failures = FailureLog(name)

    @property
    def queue_length(self) -> int:
        """The number of changes that are held here."""
        return len(self._held)

    @property
    def calls(self) -> list[asyncio.Task[bool]]:
        """The calls in flight."""
        return list(self._calls)

    def open(self, watch: Watch, applied: int) -> None:
        """Tell changes that match `watch`. Changes up to the sequence `applied` must match the previous one instead."""
        if watch != self._watch:
            self._watch_before, self._since, self._watch = self._watch, applied, watch

    def close(self) -> int:
        """Take no more changes. Return the number of changes that are dropped. Calls in flight continue."""
        self._watch = self._watch_before = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        return len(self.forget())

    def pause(self) -> None:
        """Begin no more calls, because the process is ending."""
        self._is_paused = True

    def check(self) -> None:
        """Assert all invariants. O(n)."""
        chained = [sequence for chain in self._chains.values() for sequence in chain.sequences]
        assert sorted(chained) == sorted(self._held)
        called = [change.sequence for change in self._calls.values()]
        assert sorted(called) == sorted(chain.sequences[0] for chain in self._chains.values() if chain.is_called)
        assert self._held_bytes == sum(map(size_of, self._held.values())) <= self._limits.queue_bytes
        assert len(self._held) <= self._limits.queue_events
        assert all(chain.sequences for chain in self._chains.values())
        assert all(list(chain.sequences) == sorted(chain.sequences) for chain in self._chains.values())
        assert len(self._calls) <= CALLS_MAX
        assert all(not self._chains[key].is_called for key in self._ready)

    # The listener of the feed.

    def take(self, change: FeedChange) -> None:
        """Take a change, or ignore it if it does not fit now: then the feed gives it again."""
        watch = self._watch_before if change.sequence <= self._since and self._watch_before else self._watch
        size = size_of(change)
        if watch is None:
            return
        held = self._held.get(change.sequence)
        if held is not None:  # given again, because the feed did not learn in time that it is held
            self._held[change.sequence] = held._replace(reply=change.reply)
        elif not watch.matches(change.bucket, change.key, change.value is None):
            self.feed.acknowledge(change.reply)
        elif size > self._limits.queue_bytes or not is_utf8(change.key):  # no call can name such a key
            self._counts.dropped += 1
            self.feed.acknowledge(change.reply)
        elif len(self._held) < self._limits.queue_events and self._held_bytes + size <= self._limits.queue_bytes:
            self._add(change, size)

    def _add(self, change: FeedChange, size: int) -> None:
        key = change.bucket, change.key
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = Chain()
            self._ready[key] = None
        elif chain.sequences[-1] > change.sequence:
            self.feed.acknowledge(change.reply)  # superseded
            return
        chain.sequences.append(change.sequence)
        self._held[change.sequence] = change
        self._held_bytes += size
        if chain.failures and not chain.is_called:
            self._finish(chain, self._held[chain.sequences[0]])  # superseded, so do not wait for its next try
        self.wake()

    def replies(self) -> list[bytes]:
        """Return the reply subjects of the held changes."""
        return [change.reply for change in self._held.values()]

    def room(self) -> tuple[int, int]:
        """Return how many changes, and how many bytes of them, can be taken."""
        return self._limits.queue_events - len(self._held), self._limits.queue_bytes - self._held_bytes

    def forget(self) -> list[bytes]:
        """Forget the changes that are not in a call. Return their reply subjects."""
        called = {change.sequence for change in self._calls.values()}
        forgotten = [change for sequence, change in self._held.items() if sequence not in called]
        for change in forgotten:
            self._release(change)
        self._chains = {key: chain for key, chain in self._chains.items() if chain.is_called}
        for chain in self._chains.values():
            chain.sequences = deque([chain.sequences[0]])
            chain.is_stale = True
        self._ready.clear()
        self._deleted.clear()  # another instance may tell newer changes
        return [change.reply for change in forgotten]

    def wake(self) -> None:
        """Begin calls in the next turn of the event loop."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._start_calls)

    def begin_again(self) -> None:
        """Note that the sequences begin again."""
        self._watch_before, self._since = None, 0

    # Calls.

    def _start_calls(self) -> None:
        self._is_due = False
        while self._ready and self._pause is None and len(self._calls) < (1 if self._pause_s else CALLS_MAX):
            if self._is_paused or not self.feed.may_tell():
                return
            if not self._connected():
                self._pause_for(DISCONNECTED_PAUSE_S)
                return
            key = next(iter(self._ready))
            del self._ready[key]
            chain = self._chains[key]
            chain.is_called = True
            change = self._held[chain.sequences[0]]
            call = self._loop.create_task(self._tell(change, chain.failures > 0))
            self._calls[call] = change
            call.add_done_callback(self._end_call)

    async def _tell(self, change: FeedChange, is_again: bool) -> bool:
        """Call the component. Return False if the change need not be told."""
        _, bucket, key, value, is_repeated, _ = change
        watch = self._watch
        if watch is None or (value is None and (bucket, key) in self._deleted):
            return False
        if is_repeated or is_again:
            try:
                is_newest = await self.feed.is_newest(change)
            except StoreError as error:
                raise _NotNowError from error
            if not is_newest:
                return False
        if not self.feed.may_tell():
            raise _NotNowError
        on_set, on_delete = self._subjects
        argument = bucket if watch.bucket_argument is None else watch.bucket_argument
        if value is None:
            call = self._component.invoke(
                on_delete, encode_on_delete(argument, key), decode_nothing, self._limits.timeout_s
            )
        else:
            call = self._component.invoke(
                on_set, encode_on_set(argument, key, value), decode_nothing, self._limits.timeout_s
            )
        await call
        return True

    def _end_call(self, call: asyncio.Task[bool]) -> None:
        change = self._calls.pop(call)
        chain = self._chains[change.bucket, change.key]
        chain.is_called = False
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is None:
            if call.result():
                self._counts.delivered += 1
                self._failures.note_answer()
                self._pause_s = 0.0
                self._note_told(change, chain.is_stale)
            self._finish(chain, change)
        elif isinstance(error, asyncio.CancelledError):  # the process stops, and gives it back
            return
        elif isinstance(error, _NotNowError):
            self._let_go(chain, change)
        else:
            self._counts.failed += 1
            self._failures.note_failure(error, self._loop.time())
            self._try_again(chain, change, error)
        self._start_calls()

    def _note_told(self, change: FeedChange, is_stale: bool) -> None:
        key = change.bucket, change.key
        self._deleted.pop(key, None)
        if change.value is None and not is_stale:
            self._deleted[key] = None
            if len(self._deleted) > DELETED_MAX:
                self._deleted.popitem(last=False)

    def _finish(self, chain: Chain, change: FeedChange) -> None:
        """Acknowledge the first change of a chain, and go on with the next one."""
        self.feed.acknowledge(self._held[change.sequence].reply)
        self._let_go(chain, change)

    def _let_go(self, chain: Chain, change: FeedChange) -> None:
        self._release(change)
        chain.sequences.popleft()
        chain.failures, chain.pause_s, chain.is_stale = 0, 0.0, False
        if chain.sequences:
            self._ready[change.bucket, change.key] = None
        else:
            del self._chains[change.bucket, change.key]

    def _try_again(self, chain: Chain, change: FeedChange, error: BaseException) -> None:
        if isinstance(error, NoProviderError):
            if self._pause is None and self._watch is not None:
                self._pause_s = min(max(2 * self._pause_s, ABSENT_PAUSE_MIN_S), ABSENT_PAUSE_MAX_S)
                self._pause_for(self._pause_s)
        elif not isinstance(error, DisconnectedError):
            self._pause_s = 0.0
        if len(chain.sequences) > 1:
            self._finish(chain, change)  # superseded
        elif self._watch is None or not self.feed.may_tell():
            self._let_go(chain, change)  # not acknowledged, so it is given again, perhaps to another instance
        else:
            chain.failures += 1
            delay_s = 0.0
            if not isinstance(error, NoProviderError):
                delay_s = chain.pause_s = min(max(2 * chain.pause_s, FAILURE_PAUSE_MIN_S), FAILURE_PAUSE_MAX_S)
            self._loop.call_later(delay_s, self._make_ready, chain, change)

    def _make_ready(self, chain: Chain, change: FeedChange) -> None:
        is_known = self._chains.get((change.bucket, change.key)) is chain
        if is_known and not chain.is_called and chain.sequences[0] == change.sequence:
            self._ready[change.bucket, change.key] = None
            self._start_calls()

    def _release(self, change: FeedChange) -> None:
        del self._held[change.sequence]
        self._held_bytes -= size_of(change)

    def _pause_for(self, seconds: float) -> None:
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._start_calls()


def size_of(change: FeedChange) -> int:
    """Return the memory of a change, as the queues of the store in memory count it."""
    return EVENT_BYTES + len(change.bucket) + len(change.key) + (0 if change.value is None else len(change.value))
