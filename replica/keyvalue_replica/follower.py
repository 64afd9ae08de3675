"""Keeps the core connected to the stream: opens the bucket, follows it, and notices when it has to begin again.

    open ──> read the stream ──> caught up: serving ──┬── deliveries lost, silence, a reconnect ──> follow again
                 ^                                    │
                 └── empty the engine <───────────────┴── created again, purged, cut, away for too long

An instance serves only while it follows the stream. Otherwise it leaves the queue group, so that other instances
answer the calls.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol

from keyvalue_engine import Store, StoreOptions
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.core import Core
from keyvalue_replica.errors import StreamError, UnavailableError
from keyvalue_replica.layout import MARKER_S, Layout
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.publications import ReplicaCounts
from keyvalue_replica.quick import Acknowledgements, Barriers, Deliveries
from keyvalue_replica.stream import NS_PER_S, Api, ApiError, StreamState, open_stream, stream_state, unfinished
from keyvalue_transport.nats.connection import Connection, Subscription
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Follower"]

log = logging.getLogger(__name__)

#: Seconds between two heartbeats of an idle consumer.
HEARTBEAT_S = 0.5
#: Seconds of silence after which the consumer counts as lost.
SILENCE_S = 2.0
#: Seconds after which the server removes a consumer that nobody reads.
INACTIVE_S = 30
TICK_S = 0.05
#: Seconds between two looks at the stream's state.
LOOK_S = 1.0
RETRY_S = 1.0
OPEN_RETRY_S = 0.25
#: Seconds before the end of a stop at which the calls that wait get an error.
GIVE_UP_S = 0.03
#: Seconds between two log lines while an instance catches up.
PROGRESS_S = 5.0
#: Number of keys that are removed from the engine between two calls.
EMPTIED_KEYS = 2_000


class Serving(Protocol):
    """Who answers the calls, while the instance follows the stream."""

    async def join(self) -> None: ...

    async def leave(self) -> None: ...


class _Broken(Exception):
    """The stream can't be followed any longer as it is. The text says why."""


class Follower:
    """Follows the stream for one instance. Implements `Outside` for the core.

    :ivar fault: why the instance does not serve, or None
    :ivar core: created by `open`
    :ivar served_from: the sequence that was applied when it last began to serve
    """

    def __init__(self, connection: Connection, options: ReplicaOptions) -> None:
        self.fault: str | None = "not opened yet"
        self.core: Core
        self.layout = Layout(options.bucket, options.domain)
        self.api = Api(connection, options.domain)
        self.served_from = 0
        self._connection = connection
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._message_bytes_max: int | None = None
        self._created = ""
        self._must_read_again = False
        self._broken = asyncio.Event()
        self._why = ""
        self._left_s = monotonic()  # when the stream was last followed
        self._consumer = ""
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._refused: str | None = None
        self._suspicions = 0
        self._torn_s = 0.0
        self._caught_up = asyncio.Event()

    async def open(self, options: StoreOptions, timeout_s: float) -> Core:
        """Open or create the bucket, and return the core with an empty engine.

        :param timeout_s: how long to wait until JetStream is ready
        :raises StreamError: the bucket can't be used; the text says what was found and what is needed
        :raises DisconnectedError: the connection is closed
        """
        state = await self._open(timeout_s)
        clock = ServerClock()
        clock.note(state.now_ns)
        store = Store(options, secret=state.secret, clock=clock, is_limited=False)
        self._options = replace(self._options, secret=state.secret)  # for a bucket that is created again
        inbox = self._connection.new_inbox()
        self._message_bytes_max = state.message_bytes_max
        self._created = state.created
        self.core = Core(store, self.layout, self, inbox, secrets.token_hex(8), self._options.timeout_s, clock)
        quick = (Acknowledgements(self.core, inbox),)
        self._subscriptions.append(await self._connection.subscribe_frames(f"{inbox}.*", self.core.acknowledge, quick))
        self._must_read_again = True
        return self.core

    async def _open(self, timeout_s: float) -> StreamState:
        ends_s, is_told = monotonic() + timeout_s, False
        while True:
            try:
                return await open_stream(self.api, self.layout, self._options)
            except (UnavailableError, DisconnectedError) as error:
                if monotonic() > ends_s:
                    raise StreamError(f"{error} (tried for {timeout_s:g} s)") from None
                if not is_told:
                    log.warning("replica: %s; trying again for up to %g s", error, timeout_s)
                is_told = True
            await asyncio.sleep(OPEN_RETRY_S)

    def start(self, serving: Serving) -> None:
        """Begin to follow, and let `serving` join whenever the instance has caught up."""
        self._connection.on_lost.append(self._on_lost)
        self._tasks = [asyncio.create_task(self._run(serving)), asyncio.create_task(self._tick())]

    @property
    def identity(self) -> str:
        """Return a text that is the same at all instances with this bucket, and different for every other bucket."""
        return f"jetstream {self._options.bucket} {self._created}"

    @property
    def is_serving(self) -> bool:
        """Return True while the instance follows the stream and answers calls."""
        return self.fault is None

    @property
    def applied(self) -> int:
        """Return the sequence of the last message that was applied."""
        return self.core.position.applied

    @property
    def behind(self) -> int:
        """Return the number of messages that had not been delivered at the last delivery."""
        return self.core.position.pending

    @property
    def torn_s(self) -> float:
        """Return the seconds in which an older change may have been missing while the instance served, up to the last tick."""
        return self._torn_s

    @property
    def counts(self) -> ReplicaCounts:
        """Return the numbers since the start."""
        return self.core.counts

    @property
    def excess(self) -> dict[str, int]:
        """Return by how much the store exceeds each limit, by the name of its option."""
        return self.core.reservations.excess()

    def remarks(self) -> list[str]:
        """Return what an operator should know, although the instance serves."""
        return [
            f"the KV bucket exceeds {name} by {excess}: other instances or clients have stored more than this one may"
            for name, excess in self.excess.items()
            if excess
        ]

    @property
    def failed(self) -> BaseException | None:
        """Return the exception that ended a background task, or None."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    async def wait_caught_up(self) -> None:
        """Wait until the instance has caught up for the first time."""
        await self._caught_up.wait()

    def give_up_after(self, timeout_s: float) -> None:
        """Answer the calls that still wait after a time, because the instance stops."""
        self._loop.call_later(max(timeout_s - GIVE_UP_S, 0.0), self.core.give_up)

    async def stop(self) -> None:
        """Stop following, and remove what this instance has in JetStream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._consumer and self._connection.connected:
            subject = f"{self.api.prefix}.CONSUMER.DELETE.{self.layout.stream}.{self._consumer}"
            self.write(f"PUB {subject} 2\r\n{{}}\r\n".encode())

    # The surroundings of the core.

    def write(self, frames: bytes) -> bool:
        """Send frames at once. Return False if they were not sent, and never will be."""
        return self._connection.write_now(frames)

    def now_s(self) -> float:
        """Return the local time in seconds."""
        return monotonic()

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call `act` once, after the delay, at the end of the current read or in the next turn of the event loop."""
        if delay_s:
            self._loop.call_later(delay_s, act)
        else:
            self._connection.call_soon(act)

    def max_payload(self) -> int:
        """Return the limit for the headers and the payload of a message in bytes."""
        of_stream, of_server = self._message_bytes_max, self._connection.max_payload
        return of_server if of_stream is None else min(of_stream, of_server)

    def read_again(self, why: str) -> None:
        """Read the whole bucket again."""
        self._must_read_again = True
        self.follow_again(why)

    def follow_again(self, why: str) -> None:
        """Follow the stream again from the position."""
        self._why = why
        self._broken.set()

    def stop_serving(self, why: str) -> None:
        """Stop for good, because the bucket holds what this version cannot read."""
        if self._refused is None:
            log.error("replica: %s", why)
        self._refused = why
        self.follow_again(why)

    def _on_lost(self) -> None:
        self.core.position.tear()
        self.follow_again("the connection to NATS was lost")

    # Following.

    async def _run(self, serving: Serving) -> None:
        while True:
            try:
                await self._connection.wait_connected()
                self._broken.clear()
                await self._follow(serving)
            except (_Broken, StreamError, UnavailableError, ApiError) as error:
                self.fault = str(error)
                log.warning("replica: %s", error)
            except DisconnectedError as error:
                self.fault = str(error)
            self.core.position.tear()
            await serving.leave()
            if self._refused is not None:
                self.fault = self._refused
                return
            if not self._broken.is_set():
                await asyncio.sleep(RETRY_S)

    async def _follow(self, serving: Serving) -> None:
        """Follow the stream until that is no longer possible.

        :raises _Broken: the stream must be followed again
        """
        await self._end_consumer()
        state = await stream_state(self.api, self.layout)
        if state is None:
            self._must_read_again = True
            state = await open_stream(self.api, self.layout, self._options)
        self._check_import(state)
        core = self.core
        why = self._why_read_again(state)
        if why and not self._must_read_again:
            log.warning("replica: reading the whole bucket again: %s", why)
            self._must_read_again = True
        core.clock.note(state.now_ns)
        core.position.trusts_pending = state.replicas == 1
        if self._must_read_again:
            await self._empty()
            core.restart()
            self._created = state.created
            self._must_read_again = False
        await self._consume()
        await self._catch_up()
        self.served_from = core.position.applied
        self.fault = None
        log.info(
            "replica: caught up with %s at message %d: %d keys",
            self.layout.stream,
            core.position.applied,
            len(core.store),
        )
        await serving.join()
        self._caught_up.set()
        try:
            await self._watch()
        finally:
            self._left_s = monotonic()

    async def _end_consumer(self) -> None:
        """Take no more deliveries of the last consumer. They could advance the position of an emptied engine."""
        while len(self._subscriptions) > 1:
            await self._connection.drain([self._subscriptions.pop()], 0.0)
        self.core.position.tear()

    def _why_read_again(self, state: StreamState) -> str:
        """Return why the instance can't go on from its position, or "" if it can."""
        applied = self.core.position.applied
        if state.created != self._created:
            return "the stream was created again or restored"
        # With several servers, the leader may not have applied yet what another server has delivered. If messages are
        # really lost, the next barrier gets a sequence that was used before.
        if state.last_sequence < applied and state.replicas == 1:
            return f"the stream ends at message {state.last_sequence}, but {applied} was applied"
        if monotonic() - self._left_s > MARKER_S / 2:
            return "the instance was away for too long"
        return ""

    async def _empty(self) -> None:
        """Remove all keys from the engine, in steps between other work."""
        store = self.core.store
        for name in store.bucket_names():
            bucket = store.bucket(name)
            while keys := bucket.page(keys_max=EMPTIED_KEYS).keys:
                bucket.delete_many(keys)
                await asyncio.sleep(0)

    async def _consume(self) -> None:
        """Create a consumer from the position, or of the whole bucket if nothing is applied."""
        connection, core, stream = self._connection, self.core, self.layout.stream
        inbox = connection.new_inbox()
        self._consumer = secrets.token_hex(8)
        config: dict[str, Any] = {
            "name": self._consumer,
            "deliver_subject": inbox,
            "ack_policy": "none",
            "filter_subject": self.layout.subjects,
            "idle_heartbeat": int(HEARTBEAT_S * NS_PER_S),
            "flow_control": True,
            "inactive_threshold": INACTIVE_S * NS_PER_S,
            "mem_storage": True,
            "num_replicas": 1,
            "max_deliver": 1,
            "deliver_policy": "last_per_subject",
        }
        if core.position.applied:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": core.next_sequence()}
        core.begin()
        quick = Deliveries(core, self._consumer), Barriers(core, self._consumer)
        self._subscriptions.append(await connection.subscribe_frames(inbox, core.deliver, quick))
        name = f"CONSUMER.CREATE.{stream}.{self._consumer}.{self.layout.subjects}"
        answer = await self.api.call(name, {"stream_name": stream, "config": config})
        core.position.expect(pending := int(answer.get("num_pending", 0)))
        if not pending:
            core.mend()

    async def _catch_up(self) -> None:
        position, told_s = self.core.position, monotonic()
        while not position.is_whole:
            self.fault = f"catching up, {max(position.pending, 1)} left"
            if monotonic() - told_s > PROGRESS_S:
                told_s = monotonic()
                log.info("replica: %s", self.fault)
            self._check_alive()
            await asyncio.sleep(0.01)

    def _check_alive(self) -> None:
        if self._broken.is_set():
            raise _Broken(self._why)
        if monotonic() - self.core.heard_s > SILENCE_S:
            raise _Broken(f"the consumer was silent for {SILENCE_S:g} s")

    async def _watch(self) -> None:
        """Look at the stream again and again."""
        looked_s = monotonic()
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._broken.wait()
            except TimeoutError:
                pass
            self._check_alive()
            if monotonic() - looked_s > LOOK_S:
                looked_s = monotonic()
                await self._look()

    async def _look(self) -> None:
        """Compare the stream's state with what was applied.

        :raises _Broken: they do not fit
        """
        try:
            state = await stream_state(self.api, self.layout)
        except UnavailableError:
            return  # a server that does not answer is noticed by its silence
        if state is None:
            self._must_read_again = True
            raise _Broken("the stream was deleted")
        self._check_import(state)
        core = self.core
        core.clock.note(state.now_ns)
        if (state.replicas == 1) != core.position.trusts_pending:
            raise _Broken(f"the stream has {state.replicas} replicas now")
        if state.created != self._created:
            self._must_read_again = True
            raise _Broken("the stream was created again")
        if state.last_sequence < core.position.applied:
            core.barrier()  # its sequence decides: an old leader may have answered
        self._suspicions = self._suspicions + 1 if self._lacks_keys(state) else 0
        if self._suspicions > 1:
            self._suspicions = 0
            self._must_read_again = True
            raise _Broken(
                f"the stream was purged: it has {state.keys} subjects, and {len(core.store)} keys were applied"
            )

    def _check_import(self, state: StreamState) -> None:
        """Check that no snapshot is being imported, and that none has replaced the secret of the order of keys.

        :raises _Broken: the instance can't serve
        """
        if state.importing:
            raise _Broken(unfinished(self._options.bucket))
        if state.secret != self._options.secret:
            self.stop_serving("the bucket has another secret of the order of keys now: restart this instance")
            raise _Broken(self._why)

    def _lacks_keys(self, state: StreamState) -> bool:
        """Return True if the stream has fewer keys than were applied up to its last message."""
        core = self.core
        if core.position.applied != state.last_sequence or not core.position.is_whole:
            return False
        while len(core.store) > state.keys and core.store.sweep():
            pass
        return len(core.store) > state.keys

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.core.tick()
            if self.fault is None and not self.core.position.is_whole:
                self._torn_s += TICK_S
