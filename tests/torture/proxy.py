"""A TCP proxy between an instance and its NATS server, whose connections can be cut, held or delayed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

__all__ = ["DIRECTIONS", "Proxy"]

#: The two directions of a connection: what the instance sends, and what the server sends.
DIRECTIONS = ("up", "down")
READ_BYTES = 65_536
#: Number of pieces that wait in one direction. Then the proxy stops reading, as a network does.
PIECES_MAX = 64


class Proxy:
    """Accepts connections, and passes each on to the first server that accepts it.

    All methods must be called in the event loop in which it was opened.

    :param targets: the ports of the servers on this machine
    :ivar delays_s: how long each piece is delayed in each direction
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.delays_s = dict.fromkeys(DIRECTIONS, 0.0)
        self._targets = targets
        self._flowing = {direction: asyncio.Event() for direction in DIRECTIONS}
        self._losing: tuple[bytes, asyncio.Event] | None = None
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
        """Hold all answers if the instance sends what `lose_answers` waits for."""
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
        try:
            for port in self._targets:
                with suppress(OSError):
                    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
                    await self._connect((reader, writer), (server_reader, server_writer))
                    return
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._connections.discard(task)

    async def _connect(
        self,
        instance: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Pass bytes on in both directions until one side ends."""
        self._writers.add(server[1])
        passing = [
            asyncio.create_task(self._pass(*ends))
            for ends in ((instance[0], server[1], "up"), (server[0], instance[1], "down"))
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            server[1].transport.abort()
            self._writers.discard(server[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_MAX)

        async def write() -> None:
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(due_s - monotonic())
                await self._flowing[direction].wait()
                if direction == "up":
                    self._note(piece)
                writer.write(piece)
                await writer.drain()

        writing = asyncio.create_task(write())
        try:
            while piece := await reader.read(READ_BYTES):
                await pieces.put((monotonic() + self.delays_s[direction], piece))
        finally:
            writing.cancel()
