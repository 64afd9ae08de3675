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
from contextlib import nullcontext
from dataclasses import replace
from time import monotonic

from keyvalue_engine import Store, StoreOptions
from keyvalue_replica.catching_up import CATCHING_UP, wait_delivered, wait_whole
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.company import Company, Serving
from keyvalue_replica.core import Core
from keyvalue_replica.errors import StreamError, UnavailableError
from keyvalue_replica.layout import NS_PER_S, Layout
from keyvalue_replica.old_barriers import OldBarriers
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.publications import ReplicaCounts
from keyvalue_replica.pulse import why_lost
from keyvalue_replica.stream import (
    AGE_CHANGED,
    AWAY,
    Api,
    ApiError,
    StreamState,
    consumer_config,
    create_consumer,
    open_stream,
    stream_state,
    unfinished,
)
from keyvalue_replica.wires import OwnWire, Wire
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Follower"]

log = logging.getLogger(__name__)

#: Seconds between two looks at the stream's state. A company may have many streams.
LOOK_S, COMPANY_LOOK_S = 1.0, 5.0
RETRY_S = 1.0
OPEN_RETRY_S = 0.25
#: Seconds before the end of a stop at which the calls that wait get an error.
GIVE_UP_S = 0.03
#: Number of keys that are removed from the engine between two calls.
EMPTIED_KEYS = 2_000


class _Broken(Exception):
    """The stream can't be followed any longer as it is. The text says why."""


class Follower:
    """Follows the stream for one instance. Implements `Outside` for the core.

    :param layout: that of a KV bucket with plain names; None for encoded names
    :param company: what it shares with others; None if it has everything for itself
    :ivar fault: why the instance does not serve, or None
    :ivar core: created by `open`
    :ivar created: when the stream was created, as text; another text means another stream
    :ivar served_from: the sequence that was applied when it last began to serve
    """

    def __init__(
        self,
        connection: Connection,
        options: ReplicaOptions,
        layout: PlainLayout | None = None,
        company: Company | None = None,
    ) -> None:
        self.fault: str | None = "not opened yet"
        self.core: Core
        self.layout = layout or Layout(options.bucket, options.domain)
        self._wire: Wire = OwnWire(connection) if company is None else company.wires.wire()
        self._company = company
        self._look_s = LOOK_S if company is None else COMPANY_LOOK_S
        self.api = Api(connection, options.domain)
        self.served_from = 0
        self._connection = connection
        # For the core, without a function between, for speed:
        self.call_soon, self.write = connection.call_soon, connection.write_now
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._message_bytes_max: int | None = None
        self.created = ""
        self._stream_bytes = 0
        self._must_read_again = False
        self._broken = asyncio.Event()
        self._why = ""
        self._seen_ns = 0  # the server's time when the stream was last followed
        self._consumer = ""
        self._listening: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._refused: str | None = None
        self._suspicions = 0
        self._instance = secrets.token_hex(8)
        self._old_barriers = OldBarriers(self.api, self.layout)
        self._torn_s = 0.0
        self._caught_up = asyncio.Event()

    async def open(self, options: StoreOptions, timeout_s: float) -> Core:
        """Open or create the bucket, and return the core with an empty engine.

        :param timeout_s: how long to wait until JetStream is ready
        :raises StreamError: the bucket can't be used; the text says what was found and what is needed
        :raises DisconnectedError: the connection is closed
        """
        state, company = await self._open(timeout_s), self._company
        if company is None:
            clock = ServerClock()
            store = Store(options, secret=state.secret, clock=clock, is_limited=False)
            reservations = None
        else:
            store, clock, reservations = company.store, company.clock, company.reservations
            assert self.layout.bucket is not None
            store.set_secret(self.layout.bucket, state.secret)
        clock.note(state.now_ns)
        self._seen_ns = state.now_ns
        self._options = replace(self._options, secret=state.secret)  # for a bucket that is created again
        self._message_bytes_max = state.message_bytes_max
        self.created, self._stream_bytes = state.created, state.size
        names = self._wire.inbox, self._instance, self._options.timeout_s
        self.core = Core(store, self.layout, self, *names, clock, reservations)
        await self._wire.open(self.core)
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
        self._tasks = [asyncio.create_task(self._run(serving))]
        if self._company is None:
            self._tasks.append(asyncio.create_task(self._tick()))

    @property
    def identity(self) -> str:
        """Return a text that is the same at all instances with this bucket, and different for every other bucket."""
        return f"jetstream {self._options.bucket} {self.created}"

    @property
    def is_serving(self) -> bool:
        """Return True while the instance follows the stream and answers calls."""
        return self.fault is None

    @property
    def is_refused(self) -> bool:
        """Return True if the follower has stopped for good."""
        return self._refused is not None

    @property
    def is_reading(self) -> bool:
        """Return True while the instance reads the stream, but has not caught up."""
        return (self.fault or "").startswith(CATCHING_UP)

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
        for task in self._running():
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    def _running(self) -> list[asyncio.Task[None]]:
        """Return all background tasks."""
        return self._tasks if self._listening is None else [*self._tasks, self._listening]

    async def wait_caught_up(self) -> None:
        """Wait until the instance has caught up for the first time."""
        await self._caught_up.wait()

    def give_up_after(self, timeout_s: float) -> None:
        """Answer the calls that still wait after a time, because the instance stops."""
        self._loop.call_later(max(timeout_s - GIVE_UP_S, 0.0), self.core.give_up)

    async def stop(self) -> None:
        """Stop following, and remove what this instance has in JetStream."""
        tasks = self._running()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._wire.close()
        if self._on_lost in self._connection.on_lost:
            self._connection.on_lost.remove(self._on_lost)
        if self._consumer and self._connection.connected:
            subject = f"{self.api.prefix}.CONSUMER.DELETE.{self.layout.stream}.{self._consumer}"
            self.write(f"PUB {subject} 2\r\n{{}}\r\n".encode())
            if removal := self._old_barriers.removal_of(self._instance):
                self.write(removal)
        self.write = lambda frames: False

    # The surroundings of the core.

    #: Returns the local time in seconds.
    now_s = staticmethod(monotonic)

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call `act` once, after the delay."""
        self._loop.call_later(delay_s, act)

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
        company = self._company
        async with nullcontext() if company is None else company.reading.turn(self, self._stream_bytes):
            await self._begin_following()
        core = self.core
        await wait_whole(core, self._tell)  # others may read meanwhile, because a barrier may be refused for ever
        self.served_from = core.position.applied
        self.fault = None
        log.info(
            "replica: caught up with %s at message %d: %d keys", self.layout.stream, core.position.applied, self._keys()
        )
        await serving.join()
        self._caught_up.set()
        await self._watch()

    async def _begin_following(self) -> None:
        """Follow the stream from the position, or read all of it. Return when everything is delivered.

        :raises _Broken: the stream must be followed again
        """
        state = await stream_state(self.api, self.layout)
        if state is None:
            self._must_read_again = True
            if self._company is not None:  # only a call may create it
                self.stop_serving(f"the KV bucket {self._options.bucket} was deleted")
                raise _Broken(self._why)
            state = await open_stream(self.api, self.layout, self._options)
        self._check_import(state)
        core = self.core
        why = state.why_read_again(self.created, core.position.applied, self._away_s(state), self.layout.max_age_ns)
        if why and not self._must_read_again:
            log.warning("replica: reading the whole bucket again: %s", why)
            self._must_read_again = True
        core.clock.note(state.now_ns)
        self._stream_bytes = state.size
        self._note_allowed(state)
        core.position.trusts_pending = state.replicas == 1
        if self._must_read_again:
            await self.empty()
            core.restart()
            self.created, self.layout.max_age_ns = state.created, state.max_age_ns
            self._must_read_again = False
        await self._consume()
        await wait_delivered(self.core, self._tell)
        self._seen_ns = state.now_ns

    def _away_s(self, state: StreamState) -> float:
        """Return for how long the instance may have missed changes. A process may have stood still without noticing it."""
        return (state.now_ns - self._seen_ns) / NS_PER_S - 2 * self._look_s

    async def _end_consumer(self) -> None:
        """Take no more deliveries of the last consumer."""
        if self._listening is not None:
            self._listening.cancel()
        await self._wire.unfollow()
        self.core.position.tear()

    async def empty(self) -> None:
        """Remove all keys from the engine, in steps between other work."""
        store, own = self.core.store, self.layout.bucket
        for name in store.bucket_names() if own is None else [own]:
            bucket = store.bucket(name)
            while keys := bucket.page(keys_max=EMPTIED_KEYS).keys:
                bucket.delete_many(keys)
                await asyncio.sleep(0)

    async def _consume(self) -> None:
        """Create a consumer from the position, or of the whole bucket if nothing is applied."""
        core = self.core
        self._consumer = secrets.token_hex(8)
        config = consumer_config(self._consumer, self.layout, core.next_sequence() if core.position.applied else None)
        core.begin()
        config["deliver_subject"] = await self._wire.follow(self._consumer)
        pending = await create_consumer(self.api, self.layout, config)
        self._listening = asyncio.create_task(self._listen())
        core.position.expect(pending)
        if not pending:
            core.mend()

    def _tell(self, fault: str) -> None:
        self.fault = fault
        self._check_unbroken()

    async def _listen(self) -> None:
        """Follow again if the consumer is lost."""
        name, tries = f"{self.layout.stream}.{self._consumer}", 2 if self.core.position.trusts_pending else 1
        self.follow_again(await why_lost(self._connection, self.api, name, self.core, tries))

    def _check_unbroken(self) -> None:
        if self._broken.is_set():
            raise _Broken(self._why)

    async def _watch(self) -> None:
        """Look at the stream again and again."""
        while True:
            try:
                async with asyncio.timeout(self._look_s):
                    await self._broken.wait()
            except TimeoutError:
                await self._look()
            self._check_unbroken()

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
        if state.has_lost_deletes(self._away_s(state)):
            self._must_read_again = True
            raise _Broken(AWAY)
        self._seen_ns = state.now_ns
        self._note_allowed(state)
        await self._old_barriers.remove(core.position.applied)
        if (state.replicas == 1) != core.position.trusts_pending:
            raise _Broken(f"the stream has {state.replicas} replicas now")
        if state.created != self.created:
            self._must_read_again = True
            raise _Broken("the stream was created again")
        if state.max_age_ns != self.layout.max_age_ns:
            self._must_read_again = True
            raise _Broken(AGE_CHANGED)
        if state.last_sequence < core.position.applied:
            core.barrier()  # its sequence decides: an old leader may have answered
        self._suspicions = self._suspicions + 1 if self._lacks_keys(state) else 0
        if self._suspicions > 1:
            self._suspicions = 0
            self._must_read_again = True
            raise _Broken(f"the stream was purged: it has {state.keys} subjects, and {self._keys()} keys were applied")

    def _check_import(self, state: StreamState) -> None:
        """Check that no snapshot is being imported, and that none has replaced the secret of the order of keys.

        :raises _Broken: the instance can't serve
        """
        if state.importing:
            raise _Broken(unfinished(self._options.bucket))
        if state.secret != self._options.secret:
            again = "restart this instance" if self._company is None else "it is opened again"
            self.stop_serving(f"the bucket has another secret of the order of keys now: {again}")
            raise _Broken(self._why)

    def _lacks_keys(self, state: StreamState) -> bool:
        """Return True if the stream has fewer keys than were applied up to its last message."""
        core = self.core
        if core.position.applied != state.last_sequence or not core.position.is_whole:
            return False
        while self._keys() > state.keys and core.store.sweep():
            pass
        return self._keys() > state.keys

    def _keys(self) -> int:
        """Return the number of keys that were applied."""
        own, store = self.layout.bucket, self.core.store
        return len(store) if own is None else len(store.bucket(own))

    def _note_allowed(self, state: StreamState) -> None:
        """Note what the stream allows now. An administrator may change it."""
        self._message_bytes_max = state.message_bytes_max
        if isinstance(self.layout, PlainLayout):
            self.layout.allow(state.allows_ttl, state.allows_batches)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._options.tick_s)
            self.tick()

    def tick(self) -> None:
        """Give up what has waited for too long. This method is called every `ReplicaOptions.tick_s`."""
        self.core.tick()
        if self.fault is None and not self.core.position.is_whole:
            self._torn_s += self._options.tick_s
