"""Opening a client of nats-py: as whom and how it connects, how long that may take, and when no further attempt makes sense.

nats-py makes one attempt after the other for ever. An `Opening` ends them: after `open_timeout_s`, or at once where a server refuses us or TLS
fails with each server.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import nkeys
from nats.aio.client import Client, RawCredentials

from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.direct.transport import DirectTransport
from keyvalue_transport.nats.headers import read_lines
from keyvalue_transport.nats.nats_py_errors import ATTEMPT_TIMEOUT_S, refusal_of, text_of
from keyvalue_transport.nats.tls import TlsOptions, tls_refusal
from keyvalue_transport.nats.urls import login_of, redacted_url, requires_tls, without_login
from keyvalue_transport.wrpc.errors import ConnectError

__all__ = ["RECONNECT_WAIT_S", "ClientEvents", "ConnectionOptions", "Opening", "close_client"]

log = logging.getLogger(__name__)

RECONNECT_WAIT_S = 0.5
PING_INTERVAL_S = 20
PINGS_UNANSWERED_MAX = 2
#: For writing what waits when a client is closed.
CLOSE_TIMEOUT_S = 0.5
#: Bytes that may wait to be written before `publish` waits, and all that is kept while the server is away.
WRITE_BUFFER_BYTES = 2 * 1024 * 1024
#: Subjects are checked where they come in, or stood in a message: to do so again costs 6 % of a call on the plain path.
NO_SUBJECT_CHECK = "skip_subject_validation"
#: What each block of headers begins with that has no status, and that nats-py can read.
BLOCK_BEGIN = b"NATS/1.0\r\n"


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

    @property
    def tls_required(self) -> bool:
        """Return True if nothing may be sent in clear."""
        return self.tls is not None or requires_tls(self.urls)


class ClientEvents(NamedTuple):
    """What a client of nats-py reports. It wants coroutine functions."""

    on_error: Callable[[Exception], Awaitable[None]]
    on_disconnected: Callable[[], Awaitable[None]]
    on_reconnected: Callable[[], Awaitable[None]]
    on_closed: Callable[[], Awaitable[None]]


class LastingClient(Client):
    """A client whose reading goes on after a message that nats-py can't read. nats-py's own ends for good, and still says that it is connected."""

    def _process_headers(self, headers: bytes) -> Any:
        """Read headers. nats-py fails at a block without lines, and at a status that is no text: of these the status is not read."""
        if headers and not headers.startswith(BLOCK_BEGIN):
            return self._process_odd_headers(headers)
        return super()._process_headers(headers)

    async def _process_odd_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (IndexError, UnicodeDecodeError):
            return read_lines(headers) or None

    def _build_message(self, *parts: Any, **named_parts: Any) -> Any:
        """Return the message, or None, which nats-py ignores, where its subjects are no text: it could not be answered."""
        try:
            return super()._build_message(*parts, **named_parts)
        except UnicodeDecodeError:
            log.debug("NATS: a message was ignored, whose subject or reply subject is no text")
            return None


class Opening:
    """One try to open a client. `events.on_error` hears of errors once the client is open; before that they are the opening's.

    :param context: of TLS, from the options
    :param routes: of the direct path; None on the plain path
    :param first: the first attempt that fails is logged
    """

    def __init__(
        self,
        options: ConnectionOptions,
        context: ssl.SSLContext | None,
        routes: DirectRoutes | None,
        events: ClientEvents,
        first: bool,
    ) -> None:
        self.client = LastingClient()
        self._options = options
        self._context = context
        self._events = events
        self._first = first
        self._is_open = False
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # cancelled where it is over
        self._tls_refusals = 0
        self._last_error: BaseException | None = None
        if routes is not None or options.tls_required:
            has_certificate = options.tls is not None and bool(options.tls.certificate)
            self.client._transport = DirectTransport(routes, options.tls_required, has_certificate)

    @property
    def refusal(self) -> str | None:
        """Why no further attempt makes sense, if that is so."""
        return self._refused.result() if self._refused.done() and not self._refused.cancelled() else None

    async def run(self) -> None:
        """Connect the client; from then on nats-py reconnects it for ever.

        :raises ConnectError: in `open_timeout_s` no server answered; or at once: one refuses us, or TLS fails with each
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
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Take an error of an attempt."""
        options, refusal, tls_refused = self._options, refusal_of(error), tls_refusal(error) is not None
        self._tls_refusals += tls_refused
        if refusal is not None and (not tls_refused or self._tls_refusals >= len(options.urls)):
            self._refused.set_result(refusal)
        elif self._last_error is None and self._first:
            log.warning("NATS: %s; trying again for up to %g s", text_of(error), options.open_timeout_s)
        self._last_error = error

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of nats-py's `connect`.

        :raises ConnectError: the user's seed is none
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
            # Whole numbers of seconds by their types, and any number by what nats-py does with them.
            "connect_timeout": ATTEMPT_TIMEOUT_S,
            "reconnect_time_wait": RECONNECT_WAIT_S,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_INTERVAL_S,
            "max_outstanding_pings": PINGS_UNANSWERED_MAX,
            "pending_size": WRITE_BUFFER_BYTES,
            "inbox_prefix": options.inbox_prefix,
        }
        if NO_SUBJECT_CHECK in signature(Client.connect).parameters:  # in nats-py from 2.15 on
            arguments[NO_SUBJECT_CHECK] = True
        return arguments | credentials_of(options)


async def close_client(client: Client) -> None:
    """Write what waits and close a client, within `CLOSE_TIMEOUT_S`. Then abort its socket, which may still wait for the peer."""
    # In a task of its own: nats-py may wait for a future that a task of its own has cancelled.
    closing = asyncio.create_task(client.close())
    await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT_S)
    writer = getattr(client._transport, "_io_writer", None)  # a web socket has none
    if writer is not None:
        writer.transport.abort()  # closing TLS waits for the peer, and a peer that reads nothing keeps what is unwritten
    await cancel_until_done(closing)
    if not closing.cancelled() and (error := closing.exception()) is not None:
        # As when the server is away, and nats-py writes all the same; when it never began to connect, which it asserts;
        # and before 2.12 when there is nothing to close.
        log.debug("NATS: at the close: %r", error)


async def cancel_until_done(task: asyncio.Task[Any]) -> None:
    """Cancel a task of nats-py until it ends: nats-py swallows a cancellation here and there."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.05)


def credentials_of(options: ConnectionOptions) -> dict[str, Any]:
    """Return as whom to connect, in nats-py's arguments.

    :raises ConnectError: the user's seed is none
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
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except (nkeys.NkeysError, ValueError):
        raise ConnectError("the user's seed is no nkey seed") from None


def _credentials_file(user_jwt: str, user_seed: str) -> str:
    """Return the text of a credentials file, as nats-py reads it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
