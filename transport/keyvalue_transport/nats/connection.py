"""The NATS connection: it uses nats-py's client, outlives it, and translates its errors.

nats-py does connect, credentials, reconnect and the parsing of frames. This adds what a process that runs for months needs: it opens within a
bounded time or says why not, reconnects for ever, comes back also where nats-py gives up for good (it closes the client at most errors that
a server sends), tells the log once when the connection is lost and once when it is back, and reports what had to be dropped.

                   connected            lost, told once
    NEW ──> OPENING ───────> CONNECTED ─────────────────> AWAY     nats-py reconnects its client, for ever
               │                 ^  ^                     │  │
               │ ConnectError    │  └── back, told once ──┘  │ nats-py has given its client up
               v                 │                           v
            CLOSED               └──── back, told once ── REOPENING   another client connects, for ever, and carries what is subscribed

`close` leads to CLOSED from everywhere, and nothing leads out of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client

from keyvalue_transport.nats.arrival_order import ArrivalOrder, Lane
from keyvalue_transport.nats.direct.routes import DirectRoutes, InOrder, Route
from keyvalue_transport.nats.direct.transport import direct_path_unknown
from keyvalue_transport.nats.nats_py_errors import ErrorKind, kind_of, refusal_of, text_of
from keyvalue_transport.nats.opening import RECONNECT_WAIT_S, ClientEvents, ConnectionOptions, Opening, close_client
from keyvalue_transport.nats.subscriptions import Callback, InlineCallback, Message, Subscription
from keyvalue_transport.nats.urls import login_of, redacted_url, split_urls
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

__all__ = ["Connection", "ConnectionOptions", "Message", "Subscription", "redacted_url", "split_urls"]

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 10.0
FLUSH_ABANDONED_S = 3600
CANCEL_INTERVAL_S = 0.05
#: Of one subscription, received and not yet handled. What passes this is dropped, and told to `on_drop`.
PENDING_MESSAGES_MAX = 65_536
PENDING_BYTES_MAX = 64 * 1024 * 1024


class ConnectionState(Enum):
    """Where a connection is in its life; the diagram is at the top."""

    NEW = auto()
    OPENING = auto()
    CONNECTED = auto()
    AWAY = auto()
    REOPENING = auto()
    CLOSED = auto()


class Connection:
    """One connection to NATS, from `Connection.open` to `close`.

    :raises ValueError: what a certificate of the options is read from can't be used
    :raises ConnectError: TLS is required, and it is not known whether the installed nats-py sends nothing before
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        login_of(options.urls)  # says what is wrong with it
        self._tls_context = None if options.tls is None else options.tls.context()
        unknown = direct_path_unknown() if options.path == "direct" or options.tls_required else None
        if unknown is not None and options.tls_required:
            raise ConnectError(
                f"{unknown}: TLS is required, and only with these it is sure that nothing is sent in clear"
            )
        if unknown is not None:
            log.warning("%s: the plain path it is", unknown)
        self.direct = DirectRoutes() if options.path == "direct" and unknown is None else None
        self.order = ArrivalOrder()  # of the plain path
        self.reconnects = 0
        self.dropped = 0  # messages that came faster than they were handled
        self.on_reconnected: Callable[[], None] | None = None  # told each time that the connection is back
        self.refusal: str | None = None  # the last subject that the server does not permit
        self._state = ConnectionState.NEW
        self._client = Client()
        self._subscriptions: list[Subscription] = []
        self._flushing: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.Task[None] | None = None  # of the state REOPENING
        self._told: str | None = None  # of the states AWAY and REOPENING: the refusal that was logged last

    @classmethod
    async def open(cls, options: ConnectionOptions) -> Connection:
        """Connect, trying for `open_timeout_s` at the most.

        :raises ConnectError: in that time no server answered; or at once: one refuses us, or TLS fails with each
        :raises ValueError: what a certificate of the options is read from can't be used
        """
        connection = cls(options)
        connection._state = ConnectionState.OPENING
        try:
            await connection._new_opening(first=True).run()
        except BaseException:
            connection._state = ConnectionState.CLOSED
            raise
        connection._state = ConnectionState.CONNECTED
        return connection

    @property
    def connected(self) -> bool:
        """Whether a server is there now."""
        return self._client.is_connected

    @property
    def failed(self) -> BaseException | None:
        """What coming back died of, if it did."""
        if self._reopening is not None and self._reopening.done() and not self._reopening.cancelled():
            return self._reopening.exception()
        return None

    @property
    def max_payload(self) -> int:
        """Bytes of a message, headers included, that the server takes."""
        return self._client.max_payload

    @property
    def server(self) -> str:
        """URL of the server in use, without secrets."""
        url = self._client.connected_url
        return "none" if url is None else redacted_url(url.geturl())

    def new_inbox(self) -> str:
        """An inbox that cannot be guessed."""
        return self._client.new_inbox()

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message. Waits while more than `WRITE_BUFFER_BYTES` wait to be written.

        :raises DisconnectedError: it was not sent and will not be
        """
        try:
            await self._client.publish(subject, payload, reply, None if headers is None else dict(headers))
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"a message of {len(payload)} bytes was not sent: {text_of(error)}") from error

    async def publish_all(self, messages: Sequence[tuple[str, bytes, str]]) -> int:
        """Send messages (subject, payload, reply) in order, without headers, as `publish` does; how many bytes their payloads have.

        :raises DisconnectedError: so many as its `unsent` says were not sent and will not be
        """
        publish = self._client.publish
        sent = sent_bytes = 0
        try:
            for subject, payload, reply in messages:
                await publish(subject, payload, reply)
                sent += 1
                sent_bytes += len(payload)
        except (nats.errors.Error, OSError) as error:
            unsent = len(messages) - sent
            raise DisconnectedError(f"{unsent} messages were not sent: {text_of(error)}", unsent) from error
        return sent_bytes

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """The first reply to a message.

        :raises TimeoutError: none in time, or nobody listens
        :raises DisconnectedError: the message could not be sent
        """
        try:
            reply = await self._client.request(subject, payload, timeout=timeout_s)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError) as error:
            raise TimeoutError(f"no answer to {subject}") from error
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(text_of(error)) from error
        return reply.data

    async def subscribe(
        self,
        subject: str,
        callback: Callback,
        queue: str = "",
        on_drop: Callable[[str], Awaitable[None]] | None = None,
        route: Route | None = None,
        lane: Lane | None = None,
    ) -> Subscription:
        """Have `callback` (a coroutine function) called for each message, one after the other, also after a reconnect.

        :param on_drop: told the reply subject of a message that was dropped because too many wait for the callback
        :param route: on the direct path, what is done with the messages instead
        :param lane: the messages are calls, which keep their order among those of `subscribe_in_order`
        :raises DisconnectedError: the connection is closed, or lost
        """
        return await self._subscribe(Subscription(subject, callback, queue, on_drop, route, lane))

    async def subscribe_in_order(self, subject: str, handle: Callable[[bytes], None]) -> Subscription:
        """Have a plain function, which must be quick, called with each message's payload, in the order of arrival.

        A message takes effect after every invocation that came before it on this connection, and before every one that comes after it.
        So it is for all subjects that are subscribed to in this way.

        :raises DisconnectedError: the connection is closed, or lost
        """

        def take(message: Message) -> None:
            self.order.change(partial(handle, message.data))

        return await self._subscribe(Subscription(subject, InlineCallback(take), route=InOrder(handle)))

    def before_next_call(self, act: Callable[[], None]) -> None:
        """Have `act` called once, before the next invocation is handled: for what changes at once and takes effect together."""
        (self.order if self.direct is None else self.direct).before_next_call(act)

    async def _subscribe(self, subscription: Subscription) -> Subscription:
        if (
            self._state is ConnectionState.REOPENING
        ):  # it would be carried a second time, or be lost with an attempt that fails
            raise DisconnectedError(f"{subscription.subject}: not subscribed: the connection is lost")
        await self._carry(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def drain(self, subscriptions: Sequence[Subscription], timeout_s: float) -> None:
        """End subscriptions once all that the server has sent for them is handled; after `timeout_s` just end them."""
        ending = [subscription for subscription in subscriptions if subscription in self._subscriptions]
        for subscription in ending:
            self._subscriptions.remove(subscription)
        drains = [asyncio.create_task(self._drain(subscription)) for subscription in ending]
        if drains:
            _, late = await asyncio.wait(drains, timeout=timeout_s)
            while late:  # nats-py swallows a cancellation while it waits for a socket that is full
                for drain in late:
                    drain.cancel()
                _, late = await asyncio.wait(late, timeout=CANCEL_INTERVAL_S)

    async def _drain(self, subscription: Subscription) -> None:
        # Not nats-py's drain: it forgets the subscription at a PONG whose PING has overtaken the UNSUB.
        carried = subscription.carried
        try:
            with suppress(nats.errors.Error, OSError, DisconnectedError):  # away: the server has forgotten it
                await self._client._send_unsubscribe(carried._id)
                await self.flush(FLUSH_TIMEOUT_S)
                await carried._pending_queue.join()
        finally:
            if subscription.lane is not None:
                self.order.remove(subscription.lane)
            if self.direct is not None:
                self.direct.remove(carried._id)
            with suppress(nats.errors.Error, OSError):
                await carried.unsubscribe()

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has taken all that was sent before, and all that it sent before that is here.

        :raises DisconnectedError: it has not, in time
        """
        # In a task that goes on when the time is over: nats-py's reading ends for good at a PONG for a flush that was cancelled.
        flushing = asyncio.create_task(self._flush())
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushed)
        await asyncio.wait((flushing,), timeout=timeout_s)
        if not flushing.done():
            raise DisconnectedError(f"the NATS server did not answer within {timeout_s:g} s")
        error = None if flushing.cancelled() else flushing.exception()
        if error is not None:
            raise DisconnectedError(text_of(error)) from error

    def _flushed(self, flushing: asyncio.Task[None]) -> None:
        self._flushing.discard(flushing)
        if not flushing.cancelled():
            flushing.exception()  # told by flush, if it still waits

    async def _flush(self) -> None:
        # Twice: nats-py's PING overtakes what waits to be written, which is written by the time of the first PONG.
        for _ in range(2):
            await self._client.flush(FLUSH_ABANDONED_S)

    async def close(self) -> None:
        """Write what waits, and close. The connection is of no use after it."""
        self._state = ConnectionState.CLOSED
        if self._reopening is not None:
            self._reopening.cancel()
        await self._close_client()

    async def _close_client(self) -> None:
        for flushing in self._flushing:
            flushing.cancel()
        await close_client(self._client)

    def _new_opening(self, first: bool) -> Opening:
        """Put a new client in the place of the one there is, if any."""
        events = ClientEvents(self._on_error, self._on_disconnected, self._on_reconnected, self._on_closed)
        opening = Opening(self.options, self._tls_context, self.direct, events, first)
        self._client = opening.client
        self.order.forget_calls()
        if self.direct is not None:
            self.direct.clear()
        return opening

    async def _carry(self, subscription: Subscription) -> None:
        take = subscription.take
        taker: dict[str, Any] = {"future" if isinstance(take, InlineCallback) else "cb": take}
        try:
            subscription.carried = await self._client.subscribe(
                subscription.subject,
                queue=subscription.queue,
                **taker,
                pending_msgs_limit=PENDING_MESSAGES_MAX,
                pending_bytes_limit=PENDING_BYTES_MAX,
            )
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"{subscription.subject}: not subscribed: {text_of(error)}") from error
        if self.direct is not None and subscription.route is not None:
            self.direct.add(subscription.carried._id, subscription.route)
        if subscription.lane is not None:
            self.order.add(subscription.lane, lambda: subscription.queued)

    # Callbacks of nats-py, which wants coroutine functions.

    async def _on_error(self, error: Exception) -> None:
        if self._state is ConnectionState.CLOSED:
            # nats-py's reconnecting swallows a cancellation that comes as an attempt fails, and would go on for ever.
            raise asyncio.CancelledError
        if isinstance(error, nats.errors.SlowConsumerError):
            await self._drop(error)
            return
        kind, text = kind_of(error), text_of(error)
        if kind is ErrorKind.SUBSCRIPTION_DENIED:
            self.refusal = text
            log.error("NATS: %s", text)
        elif kind is ErrorKind.PUBLISH_DENIED:
            log.debug("NATS: %s", text)  # of a reply subject, which a caller has named
        elif self._state is not ConnectionState.CONNECTED and (refusal := refusal_of(error)) is not None:
            self._tell(refusal)
        elif self._state is not ConnectionState.CONNECTED or kind is ErrorKind.STREAM_ENDED:
            log.debug("NATS: %s", text)  # at each attempt to reconnect; what the end of the stream means is told once
        elif kind is ErrorKind.CONNECTION:
            log.warning("NATS: %s", text)
        else:
            log.error("a message was not handled", exc_info=error)  # what a subscription's callback raised

    async def _drop(self, error: nats.errors.SlowConsumerError) -> None:
        """Count a message that came faster than messages are handled, and tell its subscription."""
        self.dropped += 1
        for subscription in self._subscriptions:
            if subscription.carried is error.sub and subscription.on_drop is not None and error.reply:
                await subscription.on_drop(error.reply)

    def _tell(self, refusal: str) -> None:
        """Why nobody takes us back: once while it is the same."""
        if refusal == self._told:
            log.debug("NATS: %s", refusal)
        else:
            self._told = refusal
            log.warning("NATS: %s; reconnecting goes on", refusal)

    async def _on_disconnected(self) -> None:
        if self._state is ConnectionState.CONNECTED:
            self._state = ConnectionState.AWAY
            log.warning("NATS: the connection is lost; reconnecting for as long as it takes")

    async def _on_reconnected(self) -> None:
        if self._state in (ConnectionState.AWAY, ConnectionState.CONNECTED):
            self._note_back()

    async def _on_closed(self) -> None:
        if self._state in (ConnectionState.AWAY, ConnectionState.CONNECTED):
            self._state = ConnectionState.REOPENING
            self._reopening = asyncio.create_task(self._reopen())

    async def _reopen(self) -> None:
        """nats-py has given up the client for an error that the server sent: go on with another."""
        while True:
            opening = self._new_opening(first=False)
            try:
                await opening.run()
                for subscription in tuple(self._subscriptions):
                    await self._carry(subscription)
                await self.flush(FLUSH_TIMEOUT_S)
                if self._client.is_closed:  # since it answered: nobody else would say so
                    raise DisconnectedError("the client was given up again")
            except (ConnectError, DisconnectedError) as error:
                log.debug("NATS: %s", error)
                if opening.refusal is not None:
                    self._tell(opening.refusal)
                await self._close_client()
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                self._note_back()
                return

    def _note_back(self) -> None:
        self._state = ConnectionState.CONNECTED
        self._told = None
        self.refusal = None  # the server says it again if it still holds
        self.reconnects += 1
        log.info("NATS: connected again, to %s", self.server)
        if self.on_reconnected is not None:
            self.on_reconnected()
