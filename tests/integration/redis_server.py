"""A real redis-server, and a client that sends the same requests to it and to the provider."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiredis import Reader

from tests.conftest import DEADLINE_S, Process
from tests.provider.observe.test_metrics import debian_program

__all__ = ["Wire", "encode_request", "redis_server"]


def encode_request(parts: Sequence[bytes]) -> bytes:
    """Return a request as clients send it."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Wire:
    """A connection that sends bytes and reads answers. An error is an exception object among the answers."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(DEADLINE_S)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, DEADLINE_S)
        self._reader = Reader()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, read: bytes) -> None:
        self.socket.sendall(read)

    def answer(self) -> Any:
        """Return the next answer."""
        while (answer := self._reader.gets()) is False:
            read = self.socket.recv(1 << 20)
            if not read:
                raise EOFError("the connection was closed")
            self._reader.feed(read)
        return answer

    def call(self, *parts: bytes) -> Any:
        """Send one request, and return its answer."""
        self.send(encode_request(parts))
        return self.answer()

    def calls(self, requests: Sequence[Sequence[bytes]]) -> list[Any]:
        """Send requests in one write, and return their answers."""
        self.send(b"".join(map(encode_request, requests)))
        return [self.answer() for _ in requests]

    def is_closed(self) -> bool:
        """Return True if the other side has closed the connection, and has sent nothing more."""
        return self.socket.recv(1) == b""


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a redis-server. Yield the path of its socket."""
    path = directory / "redis.sock"
    program = debian_program("redis-server", "redis-server")
    process = Process((program, "--port", "0", "--unixsocket", path, "--save", "", "--loglevel", "notice"), directory)
    try:
        process.wait_for("The server is now ready to accept connections")
        yield str(path)
    finally:
        process.kill()
