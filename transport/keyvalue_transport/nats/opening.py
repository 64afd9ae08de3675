"""How a nats-py client is opened: the options, the credentials, and when to give up.

nats-py tries to connect forever. An `Opening` gives up after `open_timeout_s`. It gives up earlier if a server refuses
the connection, or if TLS fails with every server.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client, RawCredentials

from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.direct.transport import DirectTransport
from keyvalue_transport.nats.direct.writing_protocol import UNREAD_BYTES_MAX
from keyvalue_transport.nats.frame_parser import FrameParser, ReadingFaults
from keyvalue_transport.nats.headers import BLOCK_KEPT_BYTES_MAX, read_lines, read_used_lines
from keyvalue_transport.nats.nats_py_errors import ATTEMPT_TIMEOUT_S, is_about_one_message, refusal_of, text_of
from keyvalue_transport.nats.tls import TlsOptions, tls_refusal
from keyvalue_transport.nats.unread_errors import error_to_new_clients
from keyvalue_transport.nats.urls import login_of, redacted_url, requires_tls, without_login
from keyvalue_transport.wrpc.errors import ConnectError

__all__ = [
    "RECONNECT_WAIT_S",
    "ClientEvents",
    "ConnectionOptions",
    "Opening",
    "cancel_until_done",
    "close_client",
    "explained",
]

log = logging.getLogger(__name__)

RECONNECT_WAIT_S = 0.5
PING_INTERVAL_S = 20
PINGS_UNANSWERED_MAX = 2
#: Seconds for writing pending bytes when a client is closed.
CLOSE_TIMEOUT_S = 0.5
#: Seconds between two attempts to cancel a nats-py task.
CANCEL_INTERVAL_S = 0.05
#: When more bytes than this are to be written in one turn of the event loop, the next message waits.
WRITE_BUFFER_BYTES = 2 * 1024 * 1024
#: nats-py's option for the messages that it keeps for the next connection. With 0, it refuses them instead.
NOTHING_KEPT = 0
#: The value of SO_LINGER that makes the kernel drop unsent bytes when a socket is closed.
DROP_UNSENT = struct.pack("ii", 1, 0)
#: The option to skip nats-py's check of subjects. That check takes 6 % of a call on the plain path. It is not needed,
#: because every subject was already checked or comes from a message.
NO_SUBJECT_CHECK = "skip_subject_validation"
#: The start of an ordinary header block. Other blocks have a status, or nats-py may be unable to read them.
BLOCK_BEGIN = b"NATS/1.0\r\n"
#: A write fails in one of these ways if the server has closed the connection.
FAILED_WRITES = (BrokenPipeError, ConnectionAbortedError, ConnectionResetError)


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Servers, credentials and other options of a connection. `repr` shows no secrets.

    :param urls: URLs from `split_urls`, with or without a login; if one begins with `tls://`, all require TLS
    :param name: the client's name for the server's list of connections
    :param user_jwt: the JWT of a decentralized NATS user; requires `user_seed`
    :param user_seed: the user's seed; without `user_jwt`, the user is an nkey user
    :param open_timeout_s: the total time for all attempts of `Connection.open`, in seconds
    :param path: `direct` or `plain`; plain is also used if the direct path does not support the installed nats-py
    :param tls: certificates, which are read once; if set, TLS is required, as with a `tls://` URL
    """

    urls: tuple[str, ...] = field(repr=False)
    name: str = ""
    user_jwt: str = field(default="", repr=False)
    user_seed: str = field(default="", repr=False)
    open_timeout_s: float = 10.0
    inbox_prefix: str = "_INBOX"
    path: str = "direct"
    tls: TlsOptions | None = None

    @property
    def tls_required(self) -> bool:
        """Return True if nothing may be sent unencrypted."""
        return self.tls is not None or requires_tls(self.urls)


class ClientEvents(NamedTuple):
    """Callbacks for the events of a nats-py client. They must be coroutine functions."""

    on_error: Callable[[Exception], Awaitable[None]]
    on_disconnected: Callable[[], Awaitable[None]]
    on_reconnected: Callable[[], Awaitable[None]]
    on_closed: Callable[[], Awaitable[None]]


class LastingClient(Client):
    """A nats-py client that keeps reading, whatever arrives, and that sends nothing late.

    nats-py's own client stops reading for good at messages that it cannot parse, but still claims to be connected.
    `FrameParser` prevents this. If the reading ends nevertheless, this client reconnects at once.

    nats-py also keeps messages for the next connection, and sends them although their senders have given up. Here, a
    message is written to the socket at once, or it is never sent.
    """

    def __init__(self, faults: ReadingFaults | None = None) -> None:
        super().__init__()
        self._faults = ReadingFaults() if faults is None else faults
        self._ps = FrameParser(self, self._faults)
        self.frame_handlers = self._ps.handlers
        self._reviving: asyncio.Task[None] | None = None

    def has_room(self) -> bool:
        """Return True if `room` would return at once, and this is quick to see."""
        stream = stream_of(self)
        return (
            stream is not None
            and self._pending_data_size <= WRITE_BUFFER_BYTES
            and stream.get_write_buffer_size() == 0
            and not stream.is_closing()
        )

    async def room(self) -> None:
        """Wait while the socket takes no more bytes. A cancelled wait leaves nothing behind.

        :raises OSError: the connection is lost
        """
        transport = self._transport
        while self.is_connected and transport is not None:
            await transport.drain()  # type: ignore[no-untyped-call] # nats-py's
            if self._pending_data_size <= WRITE_BUFFER_BYTES:
                return
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            transport.writelines(pending)

    def write_now(self, frames: bytes) -> bool:
        """Write frames to the socket at once, after what nats-py has not written yet. Return False if there is none,
        or if the server does not read.
        """
        transport, stream = self._transport, stream_of(self)
        if transport is None or not self.is_connected:
            return False
        if stream is not None and stream.get_write_buffer_size() > UNREAD_BYTES_MAX:  # a web socket has none
            return False
        pending, self._pending, self._pending_data_size = self._pending, [], 0
        transport.writelines([*pending, frames])
        return True

    async def _process_connect_init(self) -> None:
        """Start a new connection without what the last one left unwritten, and watch the task that reads.

        nats-py repeats the subscriptions.
        """
        self._pending, self._pending_data_size = [], 0
        self._end_round_trips()
        await super()._process_connect_init()
        assert self._reading_task is not None
        self._reading_task.add_done_callback(self._on_reading_ended)

    def _on_reading_ended(self, reading: asyncio.Task[None]) -> None:
        """Reconnect if the reading has ended for any other reason than the end of the connection."""
        if reading is self._reading_task and self.is_connected:
            self._faults.ended += 1
            log.error("NATS: the reading has ended, although the connection is up; reconnecting")
            self._reviving = asyncio.create_task(self._process_op_err(nats.errors.Error("nats: the reading has ended")))

    async def _process_err(self, err_msg: str) -> None:
        """Handle an error from the server. Do not close the client for an error about a single message."""
        if is_about_one_message(err_msg):
            await self._error_cb(nats.errors.Error(f"nats: {err_msg}"))
        else:
            await super()._process_err(err_msg.lower())

    async def _attempt_reconnect(self) -> None:
        """Reconnect. Drop the old socket with its unsent bytes, which a network that heals could still deliver."""
        stream = stream_of(self)
        if stream is not None and (lost := stream.get_extra_info("socket")) is not None:
            with suppress(OSError):  # the socket is already closed
                lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP_UNSENT)
            stream.abort()
        self._end_round_trips()
        await super()._attempt_reconnect()

    def _end_round_trips(self) -> None:
        """End the waits for PONGs of a lost connection. nats-py forgets them, and they would last for their whole time."""
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if not pong.done():
                pong.set_exception(nats.errors.ConnectionClosedError())
                pong.exception()  # perhaps nobody waits for it

    def _process_headers(self, headers: bytes) -> Any:
        """Parse headers. If nats-py cannot parse them, parse them without the status.

        nats-py fails on a block without lines, and on a status that is not text. From a large block, keep only the
        headers that are used, because nats-py does not count headers in its limit for queued messages.
        """
        if headers and len(headers) > BLOCK_KEPT_BYTES_MAX:
            return self._process_large_headers(headers)
        if headers and not headers.startswith(BLOCK_BEGIN):
            return self._process_odd_headers(headers)
        return super()._process_headers(headers)

    async def _process_large_headers(self, headers: bytes) -> dict[str, str] | None:
        return read_used_lines(headers) or None

    async def _process_odd_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (IndexError, UnicodeDecodeError):
            return read_lines(headers) or None


class Opening:
    """An attempt to open one client. It handles all errors until the client is open. Later errors go to `events`.

    :param context: the TLS context for the options
    :param routes: the routes of the direct path; None on the plain path
    :param first: True to log the first failed attempt
    :param faults: counts what goes wrong while the client reads
    """

    def __init__(
        self,
        options: ConnectionOptions,
        context: ssl.SSLContext | None,
        routes: DirectRoutes | None,
        events: ClientEvents,
        first: bool,
        faults: ReadingFaults | None = None,
    ) -> None:
        self.client = LastingClient(faults)
        self._options = options
        self._context = context
        self._events = events
        self._first = first
        self._is_open = False
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # `run` cancels it at the end
        self._tls_refusals = 0
        self._last_error: BaseException | None = None
        if routes is not None or options.tls_required:
            has_certificate = options.tls is not None and bool(options.tls.certificate)
            self.client._transport = DirectTransport(routes, options.tls_required, has_certificate)

    @property
    def refusal(self) -> str | None:
        """Return why another attempt is pointless, or None."""
        return self._refused.result() if self._refused.done() and not self._refused.cancelled() else None

    async def run(self) -> None:
        """Connect the client. nats-py then reconnects it whenever the connection is lost.

        :raises ConnectError: no server answered within `open_timeout_s`, a server refused the connection, or TLS failed
            with every server
        """
        options, client = self._options, self.client
        connecting = asyncio.create_task(client.connect(**self._arguments()))
        try:
            await asyncio.wait(
                (connecting, self._refused), timeout=options.open_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if client.is_connected and connecting.done():
                self._is_open = True
                return
            error = connecting.exception() if connecting.done() else self._last_error
            servers = ", ".join(redacted_url(url) for url in options.urls)
            if self.refusal is not None:
                raise ConnectError(f"{servers}: {self.refusal}")
            if connecting.done():
                raise ConnectError(f"{servers}: could not connect: {text_of(error)}")
            raise ConnectError(
                f"{servers}: no NATS server reached within {options.open_timeout_s:g} s: {text_of(error)}"
            )
        finally:
            self._refused.cancel()
            if not client.is_connected:
                await cancel_until_done(connecting)
                await close_client(client)

    async def _on_error(self, error: Exception) -> None:
        if self._is_open:
            await self._events.on_error(error)
        elif not self._refused.done():
            self._note(await explained(error, self.client))

    def _note(self, error: Exception) -> None:
        """Record the error of an attempt, and decide whether to give up."""
        options, refusal, tls_refused = self._options, refusal_of(error), tls_refusal(error) is not None
        self._tls_refusals += tls_refused
        if refusal is not None and (not tls_refused or self._tls_refusals >= len(options.urls)):
            self._refused.set_result(refusal)
        elif self._last_error is None and self._first:
            log.warning("NATS: %s; trying again for up to %g s", text_of(error), options.open_timeout_s)
        self._last_error = error

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of nats-py's `connect`.

        :raises ConnectError: the user's seed is malformed
        """
        options, events = self._options, self._events
        arguments: dict[str, Any] = {
            "servers": list(map(without_login, options.urls)),
            "tls": self._context,
            "name": options.name or None,
            "error_cb": self._on_error,
            "disconnected_cb": events.on_disconnected,
            "reconnected_cb": events.on_reconnected,
            "closed_cb": events.on_closed,
            # nats-py declares some of the parameters below as int, but accepts any number of seconds.
            "connect_timeout": ATTEMPT_TIMEOUT_S,
            "reconnect_time_wait": RECONNECT_WAIT_S,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_INTERVAL_S,
            "max_outstanding_pings": PINGS_UNANSWERED_MAX,
            "pending_size": NOTHING_KEPT,
            "inbox_prefix": options.inbox_prefix,
        }
        if NO_SUBJECT_CHECK in signature(Client.connect).parameters:  # since nats-py 2.15
            arguments[NO_SUBJECT_CHECK] = True
        return arguments | credentials_of(options)


async def explained(error: Exception, client: Client) -> Exception:
    """Return the server's error for a client that tries to connect, if a failed write may have hidden it, or `error`."""
    server = client._current_server
    if not isinstance(error, FAILED_WRITES) or server is None or not server.uri.hostname:
        return error
    text = await error_to_new_clients(server.uri.hostname, server.uri.port or 4222)
    return error if text is None else nats.errors.Error(f"nats: {text}")


def stream_of(client: Client) -> asyncio.WriteTransport | None:
    """Return a client's asyncio transport, or None if it has none, as before it connects and on a web socket."""
    writer: asyncio.StreamWriter | None = getattr(client._transport, "_io_writer", None)
    return None if writer is None else writer.transport


async def close_client(client: Client) -> None:
    """Write the pending bytes and close a client, within `CLOSE_TIMEOUT_S`. Then abort its socket."""
    # Close in a separate task, because nats-py may wait for a future that one of its own tasks has cancelled.
    closing = asyncio.create_task(client.close())
    await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT_S)
    stream = stream_of(client)
    if stream is not None:
        # Closing TLS waits for the peer. If the peer reads nothing, unwritten bytes keep the socket open.
        stream.abort()
    await cancel_until_done(closing)
    if not closing.cancelled() and (error := closing.exception()) is not None:
        # nats-py tries to write even if the server is away, and fails if the client has not begun to connect. Before
        # version 2.12, nats-py also fails if there is nothing to close.
        log.debug("NATS: closing the client failed: %r", error)


async def cancel_until_done(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks of nats-py repeatedly until they end, because nats-py sometimes swallows a cancellation."""
    remaining = {task for task in tasks if not task.done()}
    while remaining:
        for task in remaining:
            task.cancel()
        _, remaining = await asyncio.wait(remaining, timeout=CANCEL_INTERVAL_S)


def credentials_of(options: ConnectionOptions) -> dict[str, Any]:
    """Return the credentials as arguments of nats-py's `connect`.

    :raises ConnectError: the user's seed is malformed
    """
    credentials: dict[str, Any] = dict(login_of(options.urls))
    if options.user_seed:
        _check_seed(options.user_seed)
    if options.user_seed and options.user_jwt:
        credentials["user_credentials"] = RawCredentials(_credentials_file(options.user_jwt, options.user_seed))
    elif options.user_seed:
        credentials["nkeys_seed_str"] = options.user_seed
    return credentials


def _check_seed(seed: str) -> None:
    import nkeys  # here, because most hosts give no seed, and importing this module takes 5 ms

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except (nkeys.NkeysError, ValueError):
        raise ConnectError("the user's seed is not an nkey seed") from None


def _credentials_file(user_jwt: str, user_seed: str) -> str:
    """Return the text of a credentials file, in the format that nats-py reads."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
