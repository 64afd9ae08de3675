"""The NATS connection. It wraps a nats-py client, replaces the client if needed, and translates nats-py's errors.

nats-py connects, authenticates, reconnects and parses frames. This module adds what a process that runs for months
needs:

- Opening succeeds or fails within a limited time.
- Reconnecting never stops. After most errors that a server sends, nats-py gives up and closes its client. This module
  then opens a new client.
- Each loss of the connection and each reconnect is logged once.
- Dropped messages are counted and reported.
- No message is sent late. While the connection is lost, `publish` refuses it. nats-py would send it after the
  reconnect, although its sender has given up and another client may have written since.

                   connected           lost, logged once
    NEW ──> OPENING ───────> CONNECTED ───────────────────> AWAY     nats-py reconnects its client
               │                 ^  ^                       │  │
               │ ConnectError    │  └── back, logged once ──┘  │ nats-py has closed its client
               v                 │                             v
            CLOSED               └──── back, logged once ── REOPENING   new clients try to connect; the first that
                                                                        succeeds takes over the subscriptions

`close` changes every state to CLOSED, which is final.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import nats.errors

from keyvalue_transport.nats.arrival_order import ArrivalOrder, Lane
from keyvalue_transport.nats.connection_state import ConnectionState
from keyvalue_transport.nats.denials import Denials
from keyvalue_transport.nats.direct.routes import DirectRoutes, Frames, InOrder, Quick, Route
from keyvalue_transport.nats.direct.transport import direct_path_unknown
from keyvalue_transport.nats.frame_parser import ReadingFaults
from keyvalue_transport.nats.nats_py_errors import ErrorKind, denied_subject, kind_of, refusal_of, text_of
from keyvalue_transport.nats.opening import (
    RECONNECT_WAIT_S,
    WRITE_BUFFER_BYTES,
    ClientEvents,
    ConnectionOptions,
    LastingClient,
    Opening,
    cancel_until_done,
    close_client,
    explained,
)
from keyvalue_transport.nats.rate_limit import network_limit
from keyvalue_transport.nats.reply_subjects import ReplySubjects
from keyvalue_transport.nats.requests import request
from keyvalue_transport.nats.subscriptions import Callback, InlineCallback, Message, Subscription, never
from keyvalue_transport.nats.urls import login_of, reached_url, redacted_url, split_urls
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

__all__ = ["Connection", "ConnectionOptions", "Message", "Subscription", "redacted_url", "split_urls"]

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_S, FLUSH_ABANDONED_S = 10.0, 3600
#: Limits for the unhandled messages of one subscription. Messages over a limit are dropped and reported to `on_drop`.
PENDING_MESSAGES_MAX, PENDING_BYTES_MAX = 65_536, 64 * 1024 * 1024
REASONS_MAX = 32


class Connection:
    """A connection to NATS. `Connection.open` creates it, and `close` ends it.

    :raises ValueError: a certificate or key is unusable, or the URLs name several users
    :raises ConnectError: TLS is required, but the direct path does not support the installed nats-py
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        login_of(options.urls)  # raises ValueError if the URLs name several users
        self._tls_context = None if options.tls is None else options.tls.context()
        unknown = direct_path_unknown() if options.path == "direct" or options.tls_required else None
        if unknown is not None and options.tls_required:
            raise ConnectError(f"{unknown}; TLS needs one of these versions, so that nothing is sent unencrypted")
        if unknown is not None:
            log.warning("%s; using the plain path", unknown)
        self.replies = ReplySubjects()
        self.direct = DirectRoutes(self.replies) if options.path == "direct" and unknown is None else None
        #: Calls a function once: at the end of the read that is being parsed, or in the next turn of the event loop.
        self.call_soon: Callable[[Callable[[], None]], object] = (
            (lambda act: asyncio.get_running_loop().call_soon(act)) if self.direct is None else self.direct.call_soon
        )
        self.order = ArrivalOrder()  # for the plain path
        self.reconnects = 0
        self.reading = ReadingFaults()
        self.dropped = 0  # number of messages that were dropped because they arrived too fast
        self.on_reconnected: Callable[[], None] | None = None  # called after each reconnect
        self.on_lost: list[Callable[[], None]] = []  # called at each loss
        self.refusal: str | None = None  # why the server last refused a subscription, or our own inbox
        self.denials = Denials()
        self._failures = network_limit()
        self._probing: asyncio.Task[None] | None = None
        self._state = ConnectionState.NEW
        self._changed = asyncio.Event()  # set when the state becomes CONNECTED or CLOSED
        self._client = LastingClient()
        self._subscriptions: list[Subscription] = []
        self._flushing: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.Task[None] | None = None  # set in the state REOPENING
        self._told: set[str] = set()  # why attempts have failed since the connection was lost, as logged

    @classmethod
    async def open(cls, options: ConnectionOptions) -> Connection:
        """Connect within `open_timeout_s`.

        :raises ConnectError: no server answered in time, a server refused the connection, or TLS failed with all
            servers
        :raises ValueError: a certificate or key is unusable, or the URLs name several users
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
        """Return True if the connection is up now, with all its subscriptions."""
        return self._state is ConnectionState.CONNECTED and self._client.is_connected

    @property
    def failed(self) -> BaseException | None:
        """Return the exception that stopped the attempts to reconnect, or None."""
        if self._reopening is not None and self._reopening.done() and not self._reopening.cancelled():
            return self._reopening.exception()
        return None

    @property
    def max_payload(self) -> int:
        """Return the server's limit for the size of a message in bytes, including headers."""
        of_client = self._client.max_payload  # nats-py does not follow an INFO after the first
        of_path = None if self.direct is None else self.direct.max_payload
        return of_client if of_path is None else min(of_client, of_path)

    @property
    def server(self) -> str:
        """Return the URL of the server in use, without secrets."""
        url = self._client.connected_url
        return "none" if url is None else reached_url(url.geturl())

    def new_inbox(self) -> str:
        """Return a new inbox with an unguessable name."""
        return self._client.new_inbox()

    async def wait_connected(self) -> None:
        """Wait until the connection is up.

        :raises DisconnectedError: the connection is closed
        """
        while not self.connected:
            self._check_open()
            self._changed.clear()
            await self._changed.wait()

    def _check_open(self) -> None:
        if self._state is ConnectionState.CLOSED:
            raise DisconnectedError("connection closed")

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message. Wait while the socket takes no more bytes. If the wait is cancelled, nothing is sent.

        :raises DisconnectedError: the message was not sent and will not be sent later
        """
        try:
            if not self._client.has_room():
                await self._client.room()
            await self._client.publish(subject, payload, reply, None if headers is None else dict(headers))
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"a message of {len(payload)} bytes was not sent: {text_of(error)}") from error

    async def publish_all(self, messages: Sequence[tuple[str, bytes, str]]) -> int:
        """Send messages in order. Return the total size of their payloads in bytes.

        Wait only while more than `WRITE_BUFFER_BYTES` bytes are buffered. If the connection is lost, they are dropped.

        :param messages: for each message, its subject, payload and reply subject
        :raises DisconnectedError: the last `unsent` messages were not sent and will not be sent later
        """
        client = self._client
        sent = sent_bytes = 0
        try:
            for subject, payload, reply in messages:
                if client.pending_data_size > WRITE_BUFFER_BYTES:
                    await client.room()
                await client.publish(subject, payload, reply)
                sent += 1
                sent_bytes += len(payload)
        except (nats.errors.Error, OSError) as error:
            unsent = len(messages) - sent
            raise DisconnectedError(f"{unsent} messages were not sent: {text_of(error)}", unsent) from error
        return sent_bytes

    async def check_publishing(self) -> None:
        """Publish to an inbox of ours, now and after each reconnect. If NATS refuses the message, set `refusal`."""
        await self.denials.probe(self)

    def write_now(self, frames: bytes) -> bool:
        """Write PUB frames to the socket at once. Return False if they were not written, and never will be."""
        if not self.connected:
            return False
        if self.direct is None:
            return self._client.write_now(frames)
        return self.direct.protocol is not None and self.direct.protocol.write_now(frames)

    async def write(self, frames: bytes) -> None:
        """Send PUB frames, which is faster than many calls of `publish`.

        :raises DisconnectedError: the frames were not sent
        """
        try:
            await self._client._send_command(frames)
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"{len(frames)} bytes were not sent: {text_of(error)}") from error

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Send a message and return the first reply, which must not be empty.

        :raises TimeoutError: no reply arrived in time, or the reply is empty; the server sends an empty reply if the
            subject has no subscribers
        :raises DisconnectedError: the message could not be sent
        """
        if not self._client.is_connected:
            self._check_open()
            raise DisconnectedError(f"no request to {subject} was sent: the connection is lost")
        return await request(self, self._end, subject, payload, timeout_s)

    async def subscribe(
        self,
        subject: str,
        callback: Callback,
        queue: str = "",
        on_drop: Callable[[str], Awaitable[None]] | None = None,
        route: Route | None = None,
        lane: Lane | None = None,
    ) -> Subscription:
        """Call `callback`, a coroutine function, for each message in turn. The subscription survives reconnects.

        :param on_drop: called with the reply subject of each message that was dropped because too many were waiting
        :param route: the route by which the direct path handles the messages without calling `callback`
        :param lane: a lane that keeps calls in order of arrival relative to the messages of `subscribe_in_order`
        :raises DisconnectedError: the connection is closed or lost
        """
        return await self._subscribe(Subscription(subject, callback, queue, on_drop, route, lane))

    async def subscribe_in_order(self, subject: str, handle: Callable[[bytes], None]) -> Subscription:
        """Call a plain function with each message's payload, in order of arrival. The function must be quick.

        A message is handled after all invocations that arrived earlier on this connection, and before all later
        invocations. Messages of different subscriptions are also handled in order, if this method made them all.

        :raises DisconnectedError: the connection is closed or lost
        """

        def take(message: Message) -> None:
            self.order.change(partial(handle, message.data))

        return await self._subscribe(Subscription(subject, InlineCallback(take), route=InOrder(handle)))

    async def subscribe_frames(
        self, subject: str, handle: Callable[[bytes, bytes, bytes, bytes], None], quick: tuple[Quick, ...] = ()
    ) -> Subscription:
        """Call a plain function with each message, while the bytes are read. The function must be quick.

        :param handle: called with the subject, the reply subject, the header block (`NATS/1.0`, its lines and an empty
            line; b"" without headers) and the payload
        :param quick: handle frames of certain forms instead, on the direct path
        :raises DisconnectedError: the connection is closed or lost
        """
        return await self._subscribe(Subscription(subject, InlineCallback(never), route=Frames(handle, quick)))

    def before_next_call(self, act: Callable[[], None]) -> None:
        """Call `act` once, before the next invocation is handled. `act` can apply several changes together."""
        (self.order if self.direct is None else self.direct).before_next_call(act)

    async def _subscribe(self, subscription: Subscription) -> Subscription:
        # `_reopen` could subscribe this subscription a second time, or lose it in a failed attempt.
        if self._state is ConnectionState.REOPENING:
            raise DisconnectedError(f"{subscription.subject}: not subscribed: the connection is lost")
        await self._carry(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def drain(self, subscriptions: Sequence[Subscription], timeout_s: float) -> list[str]:
        """Unsubscribe, and wait up to `timeout_s` until the messages that were already sent have been handled.

        Return the reply subjects of the messages that have arrived, but are not handled.
        """
        ending = [subscription for subscription in subscriptions if subscription in self._subscriptions]
        for subscription in ending:
            self._subscriptions.remove(subscription)
        if drains := [asyncio.create_task(self._drain(subscription)) for subscription in ending]:
            _, late = await asyncio.wait(drains, timeout=timeout_s)
            await cancel_until_done(*late)
        return [reply for subscription in ending for reply in subscription.left if reply]

    async def _drain(self, subscription: Subscription) -> None:
        # Do not use nats-py's drain. It may send the PING before the UNSUB, and it ends the subscription at the PONG.
        carried, is_drained = subscription.carried, False
        try:
            with suppress(nats.errors.Error, OSError, DisconnectedError):  # a lost connection has nothing to drain
                if subscription.is_carried_by(self._client):
                    await self._client._send_unsubscribe(carried._id)
                    await self.flush(FLUSH_TIMEOUT_S)
                    await carried._pending_queue.join()
                    is_drained = True
        finally:
            subscription.left = [] if is_drained else subscription.take_queued()
            await self._end(subscription)

    async def _end(self, subscription: Subscription) -> None:
        """Unsubscribe, and forget the subscription."""
        with suppress(ValueError):  # a drain has removed it already
            self._subscriptions.remove(subscription)
        if subscription.lane is not None:
            self.order.remove(subscription.lane)
        if subscription.is_carried_by(self._client):
            if self.direct is not None:
                self.direct.remove(subscription.carried._id)
            self._client.frame_handlers.pop(subscription.carried._id, None)
        with suppress(nats.errors.Error, OSError):
            await subscription.carried.unsubscribe()

    async def flush(self, timeout_s: float) -> None:
        """Wait for a round trip to the server.

        The server has then received everything that was sent before the call, and everything that the server sent
        before its answer has arrived.

        :raises DisconnectedError: the server did not answer in time, or the connection is closed or lost
        """
        # The task must outlive the timeout. If a PONG arrives for a cancelled flush, nats-py stops reading for good.
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
            flushing.exception()  # mark the exception as retrieved, so that asyncio does not warn

    async def _flush(self) -> None:
        # Flush twice. The first PING may overtake bytes that wait to be written, but the second PING follows them.
        for _ in range(2):
            await self._client.flush(FLUSH_ABANDONED_S)

    async def close(self) -> None:
        """Write the pending bytes and close the connection. A closed connection cannot be reopened."""
        self._state = ConnectionState.CLOSED
        self._changed.set()
        if self._reopening is not None:
            self._reopening.cancel()
        await self._close_client()

    async def _close_client(self) -> None:
        for flushing in self._flushing:
            flushing.cancel()
        await close_client(self._client)

    def _new_opening(self, first: bool) -> Opening:
        """Replace the client with a new one, and return the `Opening` of the new client."""
        events = ClientEvents(self._on_error, self._on_disconnected, self._on_reconnected, self._on_closed)
        opening = Opening(self.options, self._tls_context, self.direct, events, first, self.reading)
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
        elif isinstance(subscription.route, Frames):
            self._client.frame_handlers[subscription.carried._id] = subscription.route.handle
        if subscription.lane is not None:
            self.order.add(subscription.lane, lambda: subscription.queued)

    # nats-py calls the methods `_on_...`. They must be coroutine functions.

    async def _on_error(self, error: Exception) -> None:
        if self._state is ConnectionState.CLOSED:
            # nats-py may swallow a cancellation while an attempt fails, and would then try to reconnect forever.
            raise asyncio.CancelledError
        if isinstance(error, nats.errors.SlowConsumerError):
            await self._drop(error)
            return
        if self._state is not ConnectionState.CONNECTED:
            error = await explained(error, self._client)
        kind, text = kind_of(error), text_of(error)
        if (denied := denied_subject(error)) is not None:
            self.denials.tell(denied)
        if kind is ErrorKind.SUBSCRIPTION_DENIED:
            self.refusal = text
            log.error("NATS: %s", text)
        elif kind is ErrorKind.PUBLISH_DENIED:
            self.refusal = self.denials.note(text) or self.refusal
        elif self._state is not ConnectionState.CONNECTED and (refusal := refusal_of(error)) is not None:
            self._tell(refusal, is_refused=True)
        elif self._state is not ConnectionState.CONNECTED or kind is ErrorKind.STREAM_ENDED:
            self._tell(text)
        elif kind is ErrorKind.CONNECTION:
            log.warning("NATS: %s", text)
        elif (more := self._failures.admit(monotonic())) is not None:  # raised by a subscription's callback
            log.error("a message was not handled%s", more, exc_info=error)

    async def _drop(self, error: nats.errors.SlowConsumerError) -> None:
        """Count a message that nats-py dropped, and report the message to its subscription."""
        self.dropped += 1
        for subscription in self._subscriptions:
            if subscription.carried is error.sub and subscription.on_drop is not None and error.reply:
                await subscription.on_drop(error.reply)

    def _tell(self, reason: str, is_refused: bool = False) -> None:
        """Log why an attempt failed. Log each reason once until the connection is back, because attempts repeat it."""
        if reason not in self._told and len(self._told) < REASONS_MAX:
            self._told.add(reason)
            level, more = (logging.WARNING, "; still reconnecting") if is_refused else (logging.DEBUG, "")
            log.log(level, "NATS: %s%s", reason, more)

    async def _on_disconnected(self) -> None:
        if self._state is ConnectionState.CONNECTED:
            self._state = ConnectionState.AWAY
            log.warning("NATS: the connection is lost; reconnecting for as long as it takes")
            for listener in self.on_lost:
                listener()

    async def _on_reconnected(self) -> None:
        if self._state in (ConnectionState.AWAY, ConnectionState.CONNECTED):
            self._note_back()

    async def _on_closed(self) -> None:
        if self._state in (ConnectionState.AWAY, ConnectionState.CONNECTED):
            self._state = ConnectionState.REOPENING
            self._reopening = asyncio.create_task(self._reopen())

    async def _reopen(self) -> None:
        """Open a new client, because nats-py closed the old one after an error from the server."""
        while True:
            opening = self._new_opening(first=False)
            try:
                await opening.run()
                for subscription in tuple(self._subscriptions):
                    await self._carry(subscription)
                    if subscription not in self._subscriptions:  # it has ended meanwhile
                        await self._end(subscription)
                await self.flush(FLUSH_TIMEOUT_S)
                if self._client.is_closed:  # nats-py may close a connected client without reporting it here
                    raise DisconnectedError("nats-py closed the client again")
            except (ConnectError, DisconnectedError) as error:
                self._tell(opening.refusal or str(error), is_refused=opening.refusal is not None)
                await self._close_client()
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                self._note_back()
                return

    def _note_back(self) -> None:
        self._state = ConnectionState.CONNECTED
        self._changed.set()
        self._told.clear()
        self.refusal = None  # if the refusal still applies, the server repeats it
        self.reconnects += 1
        if self.denials.own_inbox:
            self._probing = asyncio.create_task(self.check_publishing())
        log.info("NATS: connected again to %s", self.server)
        if self.on_reconnected is not None:
            self.on_reconnected()
