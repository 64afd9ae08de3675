"""A client that calls an instance over the Redis protocol. It raises the same errors as a client over NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import Reader

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from tests.integration.redis_server import encode_request

__all__ = ["RedisClient", "common"]

READ_BYTES = 65_536
#: The command of each function, and what makes the checker's result of its answer.
COMMANDS: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    "get": (b"GET", lambda value: value),
    "exists": (b"EXISTS", bool),
    "set": (b"SET", lambda _: None),
    "increment": (b"INCRBY", int),
    "set-missing": (b"SETNX", bool),
    "remove": (b"DEL", bool),
    "take": (b"GETDEL", lambda value: value),
    "replace": (b"GETSET", lambda value: value),
}


def common(values: Sequence[bytes | None]) -> bytes | None:
    """Return the value of all keys of a group. Values that differ become a value that nobody has set."""
    first, *others = values
    return first if all(value == first for value in others) else repr([first, *others]).encode()


#: The same for all keys of a group.
GROUP_COMMANDS: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    "get": (b"MGET", common),
    "set": (b"MSET", lambda _: None),
    "set-missing": (b"MSETNX", bool),
}


class RedisClient:
    """A client with one connection, which it opens when it is needed, and again after an error.

    :param group: the keys that the key `group` stands for
    """

    def __init__(self, path: str, timeout_s: float, group: Sequence[str]) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._group = [key.encode() for key in group]
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __enter__(self) -> RedisClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    async def ask(self, key: str, function: str, argument: bytes | int | None) -> Any:
        """Make a call, and return its answer.

        :raises NoProviderError: the call certainly had no effect
        :raises TransportError: there is no answer
        :raises OtherError: the answer is an error
        """
        keys = self._group if key == "group" else [key.encode()]
        command, result_of = (GROUP_COMMANDS if key == "group" else COMMANDS)[function]
        arguments = [] if argument is None else [argument if isinstance(argument, bytes) else b"%d" % argument]
        request = encode_request([command, *(part for each in keys for part in (each, *arguments))])
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._exchange(request)
        except (OSError, EOFError, TimeoutError) as error:
            raise TransportError(f"no answer: {error!r}") from error
        except BaseException:
            self._close()
            raise
        if isinstance(answer, Exception):
            if str(answer).startswith("LOADING"):
                raise NoProviderError(self._path)
            raise OtherError(str(answer))
        return result_of(answer)

    async def _exchange(self, request: bytes) -> Any:
        if self._connection is None:
            try:
                self._connection = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                raise NoProviderError(self._path) from error
        reader, writer = self._connection
        parser = Reader()
        try:
            writer.write(request)
            while (answer := parser.gets()) is False:
                read = await reader.read(READ_BYTES)
                if not read:
                    raise EOFError("the connection was closed")
                parser.feed(read)
        except BaseException:
            self._close()  # a late answer must not be taken for the next one
            raise
        return answer

    def _close(self) -> None:
        if self._connection is not None:
            self._connection[1].transport.abort()
            self._connection = None
