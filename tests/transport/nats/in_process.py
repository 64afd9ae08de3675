"""Server, connection and client in this process, over a real NATS server, for several tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

from nats.aio.client import Client

from keyvalue_transport.nats.connection import Connection, Message
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from tests.conftest import DEADLINE_S, RawInvocation
from tests.recorded_replies import Later

INSTANCE = "test:instance/functions@1.0.0"
PREFIXES = (f"default.in-process-{number}" for number in count())


def echo(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    """Return the parameters, and the name of the caller."""
    return b"%s from %s" % (buffer[start:end], (caller.source_id or "nobody").encode())


def read_all(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Read any result of one message."""
    return buffer[at:end], end


def waiting_in(answers: list[asyncio.Future[bytes]], in_task: bool = False) -> Handler:
    """Return a handler that answers with futures, and adds them to a list.

    :param in_task: answer with a coroutine that awaits the future
    """

    async def wait(answer: asyncio.Future[bytes]) -> bytes:
        return await answer

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answers.append(answer)
        return Later(wait(answer) if in_task else answer)

    return handle


class Proxy:
    """A proxy before a NATS server that does what a network or a server may do at the wrong moment.

    After `hold` it passes on what its client sends before its next UNSUB, and then nothing until `release`. `say`
    speaks in the server's place.
    """

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self._holding = False
        self._released = asyncio.Event()
        self._clients: list[asyncio.StreamWriter] = []

    def hold(self) -> None:
        self._holding = True

    def release(self) -> None:
        self._released.set()

    def say(self, line: bytes) -> None:
        """Send a line to all connected clients."""
        for writer in self._clients:
            if not writer.is_closing():
                writer.write(line)

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[str]:
        """Yield the URL of the proxy of the server at this port."""
        async with AsyncExitStack() as stack:

            async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
                self._clients.append(writer)
                for end in (writer, server_writer):
                    stack.callback(end.close)
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(reader, server_writer, holds=True))
                    pumps.create_task(self._pump(server_reader, writer, holds=False))

            async with await asyncio.start_server(connect, "127.0.0.1", 0) as listener:
                yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holds: bool) -> None:
        while piece := await reader.read(65_536):
            before, unsub, after = piece.partition(b"UNSUB ")
            writer.write(before)
            if holds and self._holding and unsub:
                self._holding = False
                self.held.set()
                await self._released.wait()
            writer.write(unsub + after)
        writer.close()


class Setup:
    """A server with its connection, and an independent NATS client."""

    def __init__(self, server: Server, connection: Connection, raw: Client) -> None:
        self.server = server
        self.connection = connection
        self.raw = raw
        self.stopped = False

    async def stop(self, timeout_s: float) -> None:
        """Stop the server once."""
        self.stopped = True
        await self.server.stop(timeout_s)

    async def begin(self, function: str, piece: bytes, headers: dict[str, str] | None = None) -> RawInvocation:
        subject = invocation_subject(self.server.prefix, INSTANCE, function)
        return await RawInvocation.begin(self.raw, subject, piece, headers)


Serve = Callable[..., Awaitable[Setup]]


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds, for conditions without an event of their own."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 # what is waited for is in another library, and tells nobody
            await asyncio.sleep(0.005)


class Heard:
    """The messages of a subscription."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(self, message: Message) -> None:
        await self.messages.put(message.data)

    async def next(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.messages.get()


def with_user(url: str, user: str) -> str:
    return url.replace("//", f"//{user}@") if user else url
