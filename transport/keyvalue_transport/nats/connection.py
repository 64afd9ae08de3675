"""The NATS connection: the one place that uses nats-py's client, and translates its errors.

nats-py does connect, credentials, reconnect and the parsing of frames. This adds what a process that runs for months needs: it opens within a
bounded time or says why not, reconnects for ever, comes back also where nats-py gives up for good (it closes the client at most errors that
a server sends), tells the log once when the connection is lost and once when it is back, and reports what had to be dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import nats.errors
import nkeys
from nats.aio.client import Client, RawCredentials

from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.direct.transport import DirectTransport, direct_path_unknown
from keyvalue_transport.nats.subscriptions import AtOnce, Callback, Message, Subscription
from keyvalue_transport.nats.tls import TlsOptions, tls_refusal
from keyvalue_transport.nats.urls import login_of, redacted_url, requires_tls, split_urls, without_login
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError
from keyvalue_transport.wrpc.handler import Handler

__all__ = ["Connection", "ConnectionOptions", "Message", "Subscription", "redacted_url", "split_urls"]

log = logging.getLogger(__name__)

ATTEMPT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 0.5
PING_INTERVAL_S = 20
PINGS_UNANSWERED_MAX = 2
#: For writing what waits when the connection is closed.
CLOSE_TIMEOUT_S = 0.5
FLUSH_TIMEOUT_S = 10.0
FLUSH_ABANDONED_S = 3600
#: Bytes that may wait to be written before `publish` waits, and all that is kept while the server is away.
WRITE_BUFFER_BYTES = 2 * 1024 * 1024
#: Subjects are checked where they come in, or stood in a message: to do so again costs 6 % of a call on the plain path.
NO_SUBJECT_CHECK = "skip_subject_validation"
#: Of one subscription, received and not yet handled. What passes this is dropped, and told to `on_drop`.
PENDING_MESSAGES_MAX = 65_536
PENDING_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Where and as whom to connect. Secrets do not show in `repr`.

    :param urls: as `split_urls` gives them, with user and password or a token in them; a `tls://` URL requires TLS of all
    :param name: what the server's lists of connections show; none unless given
    :param user_jwt: with `user_seed`, a decentralized user; a seed alone is an nkey user
    :param open_timeout_s: for `Connection.open` in all, over all attempts
    :param path: direct (`keyvalue_transport.nats.direct.protocol`), where the installed nats-py is known to it, or plain
    :param tls: unless None TLS is required, as by a `tls://` URL; the certificates are read once
    """

    urls: tuple[str, ...] = field(repr=False)
    name: str = ""
    user_jwt: str = field(default="", repr=False)
    user_seed: str = field(default="", repr=False)
    open_timeout_s: float = 10.0
    inbox_prefix: str = "_INBOX"
    path: str = "direct"
    tls: TlsOptions | None = None


class Connection:
    """One connection to NATS, from `Connection.open` to `close`.

    :raises ValueError: what a certificate of the options is read from can't be used
    :raises ConnectError: TLS is required, and it is not known whether the installed nats-py sends nothing before
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self._login = login_of(options.urls)
        self._tls = None if options.tls is None else options.tls.context()
        self._tls_required = options.tls is not None or requires_tls(options.urls)
        unknown = direct_path_unknown() if options.path == "direct" or self._tls_required else None
        if unknown is not None and self._tls_required:
            raise ConnectError(
                f"{unknown}: TLS is required, and only with these it is sure that nothing is sent in clear"
            )
        if unknown is not None:
            log.warning("%s: the plain path it is", unknown)
        self.direct = DirectRoutes() if options.path == "direct" and unknown is None else None
        self.reconnects = 0
        self.dropped = 0  # messages that came faster than they were handled
        self.on_reconnected: Callable[[], None] | None = None  # told each time that the connection is back
        self.refusal: str | None = None  # the last subject that the server does not permit
        self._client = Client()
        self._subscriptions: list[Subscription] = []
        self._opening: asyncio.Future[str] | None = None  # while `_connect` runs; why no further attempt makes sense
        self._tls_refusals = 0  # while `_connect` runs
        self._flushing: set[asyncio.Task[None]] = set()
        self._closing = False
        self._away = False
        self._reopening: asyncio.Task[None] | None = None
        self._last_error: BaseException | None = None
        self._told: str | None = None  # while away, the refusal that was logged

    @classmethod
    async def open(cls, options: ConnectionOptions) -> Connection:
        """Connect, trying for `open_timeout_s` at the most.

        :raises ConnectError: in that time no server answered; or at once: one refuses us, or TLS fails with each
        :raises ValueError: what a certificate of the options is read from can't be used
        """
        connection = cls(options)
        await connection._connect()
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
            raise DisconnectedError(f"a message of {len(payload)} bytes was not sent: {_text(error)}") from error

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
            raise DisconnectedError(f"{unsent} messages were not sent: {_text(error)}", unsent) from error
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
            raise DisconnectedError(_text(error)) from error
        return reply.data

    async def subscribe(
        self,
        subject: str,
        callback: Callback,
        queue: str = "",
        on_drop: Callable[[str], Awaitable[None]] | None = None,
        route: Handler | str | None = None,
    ) -> Subscription:
        """Have `callback` (a coroutine function) called for each message, one after the other, also after a reconnect.

        :param on_drop: told the reply subject of a message that was dropped because too many wait for the callback
        :raises DisconnectedError: the connection is closed
        """
        return await self._subscribe(Subscription(subject, callback, queue, on_drop, route))

    async def subscribe_at_once(self, subject: str, handle: Callable[[Message], None]) -> Subscription:
        """Have a plain function, which must be quick, called as each message comes: in the order of all that are subscribed to so.

        :raises DisconnectedError: the connection is closed
        """
        return await self._subscribe(Subscription(subject, AtOnce(handle)))

    async def _subscribe(self, subscription: Subscription) -> Subscription:
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
            for drain in late:
                drain.cancel()
            if late:
                await asyncio.wait(late)

    async def _drain(self, subscription: Subscription) -> None:
        # Not nats-py's drain: it forgets the subscription at a PONG whose PING has overtaken the UNSUB.
        carried = subscription.carried
        try:
            with suppress(nats.errors.Error, OSError, DisconnectedError):  # away: the server has forgotten it
                await self._client._send_unsubscribe(carried._id)
                await self.flush(FLUSH_TIMEOUT_S)
                await carried._pending_queue.join()
        finally:
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
            raise DisconnectedError(_text(error)) from error

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
        self._closing = True
        if self._reopening is not None:
            self._reopening.cancel()
        await self._close_client()

    async def _close_client(self) -> None:
        # In a task of its own: nats-py may wait for a future that a task of its own has cancelled.
        for flushing in self._flushing:
            flushing.cancel()
        closing = asyncio.create_task(self._client.close())
        await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT_S)
        if not closing.done():
            closing.cancel()
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            # As when the server is away, and nats-py writes all the same; when it never began to connect, which it asserts;
            # and before 2.12 when there is nothing to close.
            log.debug("NATS: at the close: %r", error)

    async def _connect(self) -> None:
        """A client that is connected; from then on nats-py reconnects it for ever."""
        options = self.options
        credentials = self._credentials()
        self._tls_refusals = 0
        self._opening = asyncio.get_running_loop().create_future()
        self._client = client = Client()
        if self.direct is not None:
            self.direct.clear()
        if self.direct is not None or self._tls_required:
            has_certificate = options.tls is not None and bool(options.tls.certificate)
            client._transport = DirectTransport(self.direct, self._tls_required, has_certificate)
        # The public options take whole numbers of seconds by their types, and any number by what nats-py does with them.
        more: dict[str, Any] = {"connect_timeout": ATTEMPT_TIMEOUT_S, "reconnect_time_wait": RECONNECT_WAIT_S}
        if NO_SUBJECT_CHECK in signature(Client.connect).parameters:  # in nats-py from 2.15 on
            more[NO_SUBJECT_CHECK] = True
        connecting = asyncio.create_task(
            client.connect(
                servers=list(map(without_login, options.urls)),
                tls=self._tls,
                name=options.name or None,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_UNANSWERED_MAX,
                pending_size=WRITE_BUFFER_BYTES,
                inbox_prefix=options.inbox_prefix,
                **more,
                **credentials,
            )
        )
        try:
            await asyncio.wait(
                (connecting, self._opening), timeout=options.open_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if client.is_connected and connecting.done():
                return
            error = connecting.exception() if connecting.done() else self._last_error
            servers = ", ".join(redacted_url(url) for url in options.urls)
            if self._opening.done():
                raise ConnectError(f"{servers}: {self._opening.result()}")
            if connecting.done():
                raise ConnectError(f"{servers}: could not connect: {_text(error)}")
            raise ConnectError(f"{servers}: no NATS server reached within {options.open_timeout_s:g} s: {_text(error)}")
        finally:
            if not client.is_connected:
                if not self._opening.done():
                    self._opening.cancel()
                while not connecting.done():  # nats-py swallows a cancellation here and there
                    connecting.cancel()
                    await asyncio.wait((connecting,), timeout=0.05)
                await self._close_client()
            self._opening = None

    def _credentials(self) -> dict[str, Any]:
        """As whom to connect, in nats-py's options."""
        options = self.options
        credentials: dict[str, Any] = dict(self._login)
        if options.user_seed:
            _check_seed(options.user_seed)
        if options.user_seed and options.user_jwt:
            credentials["user_credentials"] = RawCredentials(_credentials_file(options.user_jwt, options.user_seed))
        elif options.user_seed:
            credentials["nkeys_seed_str"] = options.user_seed
        return credentials

    async def _carry(self, subscription: Subscription) -> None:
        take = subscription.take
        taker: dict[str, Any] = {"future" if isinstance(take, AtOnce) else "cb": take}
        try:
            subscription.carried = await self._client.subscribe(
                subscription.subject,
                queue=subscription.queue,
                **taker,
                pending_msgs_limit=PENDING_MESSAGES_MAX,
                pending_bytes_limit=PENDING_BYTES_MAX,
            )
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"{subscription.subject}: not subscribed: {_text(error)}") from error
        if self.direct is not None and subscription.route is not None:
            self.direct.add(subscription.carried._id, subscription.route)

    # Callbacks of nats-py, which wants coroutine functions.

    async def _on_error(self, error: Exception) -> None:
        if self._closing:
            # nats-py's reconnecting swallows a cancellation that comes as an attempt fails, and would go on for ever.
            raise asyncio.CancelledError
        if isinstance(error, nats.errors.SlowConsumerError):
            self.dropped += 1
            for subscription in self._subscriptions:
                if subscription.carried is error.sub and subscription.on_drop is not None and error.reply:
                    await subscription.on_drop(error.reply)
            return
        text = _text(error)
        if self._opening is not None:
            if self._opening.done():
                return  # the attempts were given up, and why is told
            refusal, tls_refused = _refusal(error), tls_refusal(error) is not None
            self._tls_refusals += tls_refused
            if refusal is not None and (not tls_refused or self._tls_refusals >= len(self.options.urls)):
                self._opening.set_result(refusal)
                if self._away:
                    self._tell(refusal)
            elif self._last_error is None:
                log.warning("NATS: %s; trying again for up to %g s", text, self.options.open_timeout_s)
            self._last_error = error
        elif "permissions violation for subscription" in text.lower():
            self.refusal = text
            log.error("NATS: %s", text)
        elif "permissions violation" in text.lower():
            log.debug("NATS: %s", text)  # of a reply subject, which a caller has named
        elif self._away and (refusal := _refusal(error)) is not None:
            self._tell(refusal)
        elif self._away or isinstance(error, nats.errors.UnexpectedEOF):
            log.debug("NATS: %s", text)  # at each attempt to reconnect; what the end of the stream means is told once
        elif isinstance(error, nats.errors.Error | OSError | asyncio.TimeoutError):
            log.warning("NATS: %s", text)
        else:
            log.error("a message was not handled", exc_info=error)  # what a subscription's callback raised

    def _tell(self, refusal: str) -> None:
        """Why nobody takes us back: once while it is the same."""
        if refusal == self._told:
            log.debug("NATS: %s", refusal)
        else:
            self._told = refusal
            log.warning("NATS: %s; reconnecting goes on", refusal)

    async def _on_disconnected(self) -> None:
        if self._opening is None and not self._closing and not self._away:
            self._away = True
            log.warning("NATS: the connection is lost; reconnecting for as long as it takes")

    async def _on_reconnected(self) -> None:
        self._away = False
        self._told = None
        self.refusal = None  # the server says it again if it still holds
        self.reconnects += 1
        log.info("NATS: connected again, to %s", self.server)
        if self.on_reconnected is not None:
            self.on_reconnected()

    async def _on_closed(self) -> None:
        if self._opening is None and not self._closing and (self._reopening is None or self._reopening.done()):
            self._reopening = asyncio.create_task(self._reopen())

    async def _reopen(self) -> None:
        """nats-py has given up the client for an error that the server sent: go on with another."""
        while True:
            try:
                await self._connect()
                for subscription in tuple(self._subscriptions):
                    await self._carry(subscription)
                await self.flush(FLUSH_TIMEOUT_S)
            except (ConnectError, DisconnectedError) as error:
                log.debug("NATS: %s", error)
                await self._close_client()
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                await self._on_reconnected()
                return


def _text(error: BaseException | None) -> str:
    """What happened, for people: nats-py's errors often say little."""
    if error is None:
        return "no answer"
    if (refusal := tls_refusal(error)) is not None:
        return refusal
    if isinstance(error, asyncio.TimeoutError):
        return f"no greeting of a NATS server within {ATTEMPT_TIMEOUT_S} s"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = " ".join(str(error).removeprefix("nats: ").split())
    if not isinstance(error, nats.errors.Error) or "info message" in text.lower():
        return "what listens there is not a NATS server"
    return text[:256] or type(error).__name__


def _refusal(error: BaseException) -> str | None:
    """Why a server does not take us, or we not it, where the next attempt would end the same; None for all other errors."""
    text = _text(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return f"the NATS server refuses the connection: {text}"
    return tls_refusal(error)


def _check_seed(seed: str) -> None:
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except (nkeys.NkeysError, ValueError):
        raise ConnectError("the user's seed is no nkey seed") from None


def _credentials_file(user_jwt: str, user_seed: str) -> str:
    """The text of a credentials file, as nats-py reads it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
