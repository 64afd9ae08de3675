"""A TCP proxy in front of a NATS server, whose connections can be cut, held or delayed.

It stands between an instance and its server, or between two servers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

__all__ = ["DIRECTIONS", "Proxy"]

#: The two directions of a connection: what the one who has connected sends, and what the server sends.
DIRECTIONS = ("up", "down")
READ_BYTES = 65_536
#: Number of pieces that wait in one direction. Then the proxy stops reading, as a network does.
PIECES_MAX = 64
CREATING = re.compile(rb"\$JS\.API\.CONSUMER\.CREATE\.[^. ]+\.(\w+)")


class Proxy:
    """Accepts connections, and passes each on to the first server that accepts it.

    All methods must be called in the event loop in which it was opened.

    :param targets: the ports of the servers on this machine
    :ivar delays_s: how long each piece is delayed in each direction
    :ivar target: the port of the server that accepted the last connection
    :ivar consumer: the name of the last consumer that was created through it, or ""
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.delays_s = dict.fromkeys(DIRECTIONS, 0.0)
        self.target = 0
        self.consumer = ""
        self._targets = targets
        self._flowing = {direction: asyncio.Event() for direction in DIRECTIONS}
        self._losing: tuple[bytes, asyncio.Event] | None = None
        self._cut = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        for direction in DIRECTIONS:
            self.release(direction)

    async def open(self) -> str:
        """Listen, and return the URL."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset all connections. All bytes on the way are lost."""
        for writer in self._writers:
            writer.transport.abort()
        self._cut.set()
        self._cut = asyncio.Event()

    def hold(self, direction: str) -> None:
        """Pass nothing on in a direction until `release`. Nothing is lost."""
        self._flowing[direction].clear()

    def release(self, direction: str) -> None:
        """Pass on the bytes that were held."""
        self._flowing[direction].set()

    async def lose_answers(self, begin: bytes, seconds: float) -> None:
        """Wait for a message that begins so. Let the server take it, and cut the connection instead of passing answers on."""
        is_sent = asyncio.Event()
        self._losing = begin, is_sent
        try:
            await is_sent.wait()
            await asyncio.sleep(seconds)
            self.cut()
        finally:
            self._losing = None
            self.release("down")

    def _note(self, piece: bytes) -> None:
        """Note the name of a consumer. Hold all answers if the instance sends what `lose_answers` waits for."""
        if (creating := CREATING.search(piece)) is not None:
            self.consumer = creating[1].decode()
        if self._losing is not None:
            begin, is_sent = self._losing
            if piece.startswith(begin) or b"\n" + begin in piece:
                self.hold("down")
                is_sent.set()

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        is_cut = self._cut
        try:
            for port in self._targets:
                with suppress(OSError):
                    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
                    self.target = port
                    await self._connect((reader, writer), (server_reader, server_writer), is_cut)
                    return
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._connections.discard(task)

    async def _connect(
        self,
        instance: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        is_cut: asyncio.Event,
    ) -> None:
        """Pass bytes on in both directions until one side ends, or the connection is cut."""
        self._writers.add(server[1])
        try:
            await first_of(
                self._pass(instance[0], server[1], "up"),
                self._pass(server[0], instance[1], "down"),
                is_cut.wait(),
            )
        finally:
            server[1].transport.abort()
            self._writers.discard(server[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_MAX)

        async def read() -> None:
            while piece := await reader.read(READ_BYTES):
                await pieces.put((monotonic() + self.delays_s[direction], piece))

        async def write() -> None:
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(due_s - monotonic())
                await self._flowing[direction].wait()
                if direction == "up":
                    self._note(piece)
                writer.write(piece)
                await writer.drain()

        await first_of(read(), write())


async def first_of(*parts: Coroutine[Any, Any, object]) -> None:
    """Return when one of the parts ends, and end the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
