"""The listener: sockets, the connections on them, and their limits.

    socket ── read ──> ClientConnection.data_received ──> RequestReader ──> RedisSession ──> one write

All requests of a read are executed, and their answers are written together. A connection stops reading while its output
is not written, or while requests wait. A client that reads nothing then holds the answers of a full session, a full
write buffer, and what the socket holds.
"""

from __future__ import annotations

import asyncio
import ssl
from time import perf_counter
from typing import Any

from keyvalue_transport.redis.answers import error
from keyvalue_transport.redis.durations import CommandDurations
from keyvalue_transport.redis.errors import ListenError
from keyvalue_transport.redis.limits import Address, ListenerLimits
from keyvalue_transport.redis.requests import Request, RequestReader
from keyvalue_transport.redis.runs import RUN_BYTES_MIN, RUN_REQUESTS_MIN, RequestRun, execute, run_of, split_run
from keyvalue_transport.redis.session import Commands, RedisSession
from keyvalue_transport.redis.short_calls import SHORT_CALL_BYTES_MAX, answer_short
from keyvalue_transport.redis.sockets import bind_path, keep_alive, unlink
from keyvalue_transport.redis.surroundings import Client, Surroundings
from keyvalue_transport.redis.tls_server import TlsServer

__all__ = ["ClientConnection", "ListenerCounts", "RedisListener"]

#: A connection stops reading when more than this is not written. Smaller rests are not counted in `unsent_bytes`, so all
#: connections together must be able to hold them.
HIGH_WATER_BYTES = 16 * 1024
#: The memory of an argument of a request that waits, besides its bytes.
ARGUMENT_BYTES = 48
BACKLOG = 1024
#: How often idle connections are looked for, in seconds.
IDLE_CHECK_S = 1.0
TOO_MANY = error("ERR max number of clients reached")


class ListenerCounts:
    """Numbers since the start.

    :ivar rejected: connections that were closed at once, because there were too many
    :ivar malformed: connections that were closed because of bytes that are no request
    :ivar foreign: connections that were closed because they spoke HTTP
    :ivar slow: connections that were closed because clients did not read their answers
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.rejected = 0
        self.malformed = 0
        self.foreign = 0
        self.slow = 0
        self.received_bytes = 0
        self.sent_bytes = 0


class ClientConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, listener: RedisListener, number: int) -> None:
        self.number = number
        self._listener = listener
        self._session = RedisSession(listener.surroundings, listener.commands, number, self._output_later)
        self._reader = RequestReader(listener.limits.request_bytes_max)
        self._takes_short_calls = listener.limits.request_bytes_max >= SHORT_CALL_BYTES_MAX
        self._counts = listener.counts
        self._durations = listener.durations
        self._transport: Any = None
        self._held_bytes = 0  # counted in the listener's
        self._unsent_bytes = 0  # counted in the listener's
        self._buffered_bytes = 0  # at the last look for idle connections
        self._is_paused = self._is_full = self._is_due = self._is_ended = False
        self._began_s = self.last_s = perf_counter()

    @property
    def user(self) -> str:
        """The name of the user, or nothing."""
        account = self._session.account
        return "" if account is None else account.name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many connections."""
        self._transport = transport
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        keep_alive(self._transport.get_extra_info("socket"))
        if not self._listener.add(self):
            self._transport.write(TOO_MANY)
            self._transport.close()

    def data_received(self, read: bytes) -> None:
        """Execute the requests of a read, and write their answers."""
        self.last_s = perf_counter()
        session = self._session
        if session.is_free:
            out = answer_short(session, read)
            if out is not None:
                counts = self._counts
                counts.received_bytes += len(read)
                if out:
                    counts.sent_bytes += len(out)
                    self._transport.write(out)
                if self._durations is not None:
                    self._durations.observe_alike(read[8:11], 1, perf_counter() - self.last_s)
                return
            if len(read) >= RUN_BYTES_MIN and (run := split_run(read)) is not None:
                read = self._execute_run(run, read)
                if not read:
                    return
        self._execute(read)

    def _execute_run(self, run: RequestRun, read: bytes) -> bytes:
        """Execute a read that is a run, as far as possible. Return the rest of the read."""
        done = execute(self._session, run)
        done_bytes = done * (len(read) // len(run.keys))
        if done:
            self._counts.received_bytes += done_bytes
            self._write()
            if self._durations is not None:
                self._durations.observe_alike(run.word, done, perf_counter() - self.last_s)
        return read[done_bytes:]

    def _execute(self, read: bytes) -> None:
        """Do the work of `data_received` for any read."""
        session, reader = self._session, self._reader
        self._counts.received_bytes += len(read)
        before: list[Request] = []
        if session.account is None:
            before, read = self._execute_before_auth(read)
        requests = reader.feed(read) if read else []
        held_bytes = reader.scanner.held_bytes
        done = 0
        if len(requests) >= RUN_REQUESTS_MIN and session.may_run and (run := run_of(requests)) is not None:
            done = execute(session, run)
        session.receive(requests[done:] if done else requests)
        if held_bytes or not session.is_between:
            session.is_between = not held_bytes and self._takes_short_calls and reader.error is None
            session.settle()
        if session.out:
            self._write()
        if self._durations is not None and (requests or before):
            if before:
                self._durations.observe(before + requests, perf_counter() - self.last_s)
            elif done == len(requests):
                self._durations.observe_alike(requests[0][0], done, perf_counter() - self.last_s)
            else:
                self._durations.observe(requests, perf_counter() - self.last_s)
        if reader.error is not None or session.ends or session.waits:
            self._end_or_wait()
        if session.queue:
            held_bytes += sum(sum(map(len, request)) + ARGUMENT_BYTES * (len(request) + 1) for request in session.queue)
        if self._held_bytes or held_bytes:
            self._hold(held_bytes)

    def _execute_before_auth(self, read: bytes) -> tuple[list[Request], bytes]:
        """Execute requests until the client has given a password. Return them, and the rest of the read."""
        session, reader = self._session, self._reader
        done: list[Request] = []
        at, size = 0, len(read)
        while at < size and session.account is None:
            requests, at = reader.feed_before_auth(read, at)
            session.receive(requests)
            done += requests
            if reader.error is not None or session.ends:
                return done, b""
        return done, read[at:]

    def pause_writing(self) -> None:
        """Stop, because the client does not read."""
        self._is_full = True
        self._pause()
        self._count_unsent(self._output_bytes())

    def resume_writing(self) -> None:
        """Go on."""
        self._is_full = False
        self.last_s = perf_counter()
        self._count_unsent(0)
        self._go_on()

    def eof_received(self) -> bool:
        """Close the connection once all answers are written: a client may end its requests before it reads them.

        Over TLS, the end of the requests ends the connection.
        """
        session = self._session
        self._is_ended = bool(session.unanswered or session.waits or session.out)
        return self._is_ended and self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._hold(0)
        self._count_unsent(0)
        self._session.close()
        self._listener.remove(self)

    def describe(self) -> dict[str, object]:
        """Return the fields of CLIENT LIST."""
        session, now_s = self._session, perf_counter()
        return {
            "id": self.number,
            "addr": _shown(self._transport.get_extra_info("peername")),
            "laddr": _shown(self._transport.get_extra_info("sockname")),
            "name": session.name.decode(),
            "age": int(now_s - self._began_s),
            "idle": int(now_s - self.last_s),
            "flags": "N",
            "db": session.database,
            "sub": 0,
            "psub": 0,
            "multi": -1,
            "qbuf": self._held_bytes,
            "omem": self._output_bytes(),
            "user": self.user,
            "resp": session.resp,
            "lib-name": session.library["LIB-NAME"].decode(),
            "lib-ver": session.library["LIB-VER"].decode(),
        }

    def kill(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def finish(self) -> None:
        """Close the connection once the output is written."""
        if self._session.out:
            self._write()
        self._transport.close()

    def end_if_idle(self, before_s: float) -> None:
        """Close the connection if nothing has arrived or was sent since a time, and no answer is missing."""
        buffered_bytes = self._transport.get_write_buffer_size()
        if buffered_bytes != self._buffered_bytes:  # the client reads a large answer
            self._buffered_bytes, self.last_s = buffered_bytes, perf_counter()
        if self.last_s >= before_s:
            return
        if buffered_bytes:
            self._counts.slow += 1
            self.kill()
        elif not self.unanswered:
            self.finish()

    @property
    def unanswered(self) -> int:
        """The number of requests that have no answer yet."""
        return self._session.unanswered

    def _write(self) -> None:
        out = self._session.take_output()
        self._counts.sent_bytes += len(out)
        self._transport.write(out)

    def _end_or_wait(self) -> None:
        """Act on requests that wait, an error of the protocol, or the end of the session."""
        session, failure = self._session, self._reader.error
        while session.waits and not session.ends and not self._is_blocked():
            session.go_on()
            if not session.out:
                break
            self._write()
        if session.ends:
            self._transport.close()
        elif session.waits or (failure is not None and session.unanswered):
            self._pause()
        elif failure is not None:
            self._counts.malformed += 1
            self._transport.write(error(f"ERR Protocol error: {failure}"))
            self._transport.close()
        elif self._is_ended:
            if not session.unanswered:
                self._transport.close()
        elif not self._is_full and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _output_later(self) -> None:
        """Write the answers that have come in this turn of the event loop, all at once."""
        if not self._is_due:
            self._is_due = True
            self._listener.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        self._session.count()
        if self._transport.is_closing():
            return
        if self._is_blocked():
            self._count_unsent(self._output_bytes())
            return
        if self._session.out:
            self.last_s = perf_counter()
            self._write()
        self._session.settle()
        self._end_or_wait()
        if self._held_bytes and not self._session.queue:
            self._hold(self._reader.scanner.held_bytes)

    def _output_bytes(self) -> int:
        written: int = self._transport.get_write_buffer_size()
        return written + self._session.held_bytes + self._session.kept_bytes

    def _is_blocked(self) -> bool:
        """Return True if nothing should be written now. `resume_writing` is called later."""
        return self._is_full or self._transport.get_write_buffer_size() > HIGH_WATER_BYTES

    def _pause(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _hold(self, held_bytes: int) -> None:
        """Count the bytes of requests that are incomplete or wait. Close the connection if all connections hold too many."""
        listener = self._listener
        listener.held_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes
        if listener.held_bytes > listener.limits.held_bytes_max and held_bytes:
            listener.counts.malformed += 1
            self._transport.write(error("ERR too many bytes of incomplete or waiting requests on all connections"))
            self._transport.abort()

    def _count_unsent(self, unsent_bytes: int) -> None:
        listener = self._listener
        listener.unsent_bytes += unsent_bytes - self._unsent_bytes
        self._unsent_bytes = unsent_bytes
        if listener.unsent_bytes > listener.limits.unsent_bytes_max and unsent_bytes:
            listener.counts.slow += 1
            self._transport.abort()


class RedisListener:
    """Listens on addresses, and keeps the connections.

    :ivar held_bytes: bytes of requests on all connections that are incomplete, or wait for answers or output
    :ivar unsent_bytes: bytes that clients do not read
    :ivar durations: counts how long the commands of later connections take; None if nobody wants to know
    """

    def __init__(
        self,
        surroundings: Surroundings,
        commands: Commands,
        limits: ListenerLimits,
    ) -> None:
        self.surroundings = surroundings
        self.commands = commands
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.counts = ListenerCounts()
        self.durations: CommandDurations | None = None
        self.held_bytes = 0
        self.unsent_bytes = 0
        #: The addresses that are listened on. A port that the system chose is in them.
        self.addresses: list[Address] = []
        self._connections: dict[int, ClientConnection] = {}
        self._handshakes: set[asyncio.Protocol] = set()
        self._servers: list[asyncio.Server | TlsServer] = []
        self._paths: list[tuple[str, int]] = []
        self._idle_check: asyncio.TimerHandle | None = None

    async def start(
        self, addresses: list[Address], context: ssl.SSLContext | None = None, socket_mode: int = 0o700
    ) -> None:
        """Listen on all addresses. Call `stop` after an error too.

        :param context: the TLS context for TCP connections; None for no TLS
        :param socket_mode: the permissions of Unix sockets
        :raises ListenError: an address is not available
        """
        server: asyncio.Server | TlsServer
        for address in addresses:
            try:
                if address.path:
                    bound, inode = bind_path(address.path, socket_mode)
                    self._paths.append((address.path, inode))
                    server = await self.loop.create_unix_server(self._accept, sock=bound, backlog=BACKLOG)
                elif context is not None:
                    server = TlsServer(self, context)
                    await server.start(address.host, address.port, BACKLOG)
                else:
                    server = await self.loop.create_server(self._accept, address.host, address.port, backlog=BACKLOG)
            except OSError as failure:
                raise ListenError(f"redis_address {address}: {failure.strerror or failure}") from None
            self._servers.append(server)
            port = address.port or (0 if address.path else server.sockets[0].getsockname()[1])
            self.addresses.append(address._replace(port=port))
        if self.limits.idle_timeout_s:
            self._check_idle()

    def _accept(self) -> ClientConnection:
        self.counts.accepted += 1
        return ClientConnection(self, self.counts.accepted)

    def begin_handshake(self) -> ClientConnection | None:
        """Return a connection whose handshake begins, or None if there are too many connections."""
        connection = self._accept()
        if self._is_full():
            return None
        self._handshakes.add(connection)
        return connection

    def end_handshake(self, connection: asyncio.Protocol) -> None:
        """Forget a handshake. If it has succeeded, the connection was kept before."""
        self._handshakes.discard(connection)

    def _is_full(self) -> bool:
        if len(self) < self.limits.connections_max:
            return False
        self.counts.rejected += 1
        return True

    def add(self, connection: ClientConnection) -> bool:
        """Keep a connection. Return False if there are too many."""
        if connection in self._handshakes:
            self._handshakes.remove(connection)
        elif self._is_full():
            return False
        self._connections[connection.number] = connection
        return True

    def remove(self, connection: ClientConnection) -> None:
        """Forget a connection."""
        self._connections.pop(connection.number, None)

    def clients(self) -> list[Client]:
        """Return all connections."""
        return [*self._connections.values()]

    def __len__(self) -> int:
        """Return the number of connections, with those in their handshakes."""
        return len(self._connections) + len(self._handshakes)

    @property
    def unanswered(self) -> int:
        """The number of requests that have no answer yet."""
        return sum(connection.unanswered for connection in self._connections.values())

    def _check_idle(self) -> None:
        before_s = perf_counter() - self.limits.idle_timeout_s
        for connection in list(self._connections.values()):
            connection.end_if_idle(before_s)
        self._idle_check = self.loop.call_later(IDLE_CHECK_S, self._check_idle)

    async def stop(self, timeout_s: float) -> None:
        """Accept no more connections, wait for the answers that are missing, and close all connections."""
        for server in self._servers:
            server.close()
        for path, inode in self._paths:
            unlink(path, inode)
        self._paths.clear()
        if self._idle_check is not None:
            self._idle_check.cancel()
        ends_s = self.loop.time() + timeout_s
        while self.unanswered and self.loop.time() < ends_s:  # noqa: ASYNC110 # no event tells that all are answered
            await asyncio.sleep(0.005)
        for connection in list(self._connections.values()):
            connection.finish()
        await asyncio.sleep(0)


def _shown(name: Any) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else f"{name or 'unix'}:0"
