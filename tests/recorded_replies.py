"""Recorded replies, which test the core without NATS, and pending answers without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple, TypeAlias

from keyvalue_transport.wrpc.handler import Pending
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations

__all__ = ["Core", "Later", "Reply", "accept", "ended", "new_core", "outcome_of", "result", "waited"]


class Reply(NamedTuple):
    """A message that answers an invocation.

    :ivar kind: accept, result or end
    :ivar content: the token of a handshake, a result, or None
    """

    kind: str
    to: str
    content: str | bytes | None = None


def accept(to: str, token: str | None = None) -> Reply:
    return Reply("accept", to, token)


def result(to: str, result: bytes) -> Reply:
    return Reply("result", to, result)


def ended(to: str) -> Reply:
    return Reply("end", to)


class RecordedReplies:
    """Records each message by its kind. A result is one message, however long."""

    def accept(self, reply: str, token: str | None, /) -> list[Reply]:
        return [accept(reply, token)]

    def result(self, reply: str, content: bytes, /) -> list[Reply]:
        assert content, "a result has at least one byte"
        return [result(reply, content), ended(reply)]

    def end(self, reply: str, /) -> list[Reply]:
        return [ended(reply)]


Core: TypeAlias = Invocations[str, Reply]


def new_core(limits: InvocationLimits | None = None) -> Core:
    """Return invocations whose half-open ones get the tokens 0, 1 and so on."""
    tokens = count()
    return Invocations(RecordedReplies(), lambda: str(next(tokens)), limits)


class Later:
    """A pending answer that is its own result.

    :ivar answer: the awaitable that the server waits for
    """

    def __init__(self, answer: Awaitable[bytes]) -> None:
        self.answer = answer

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return the answer as it is."""
        value = read()
        assert isinstance(value, bytes)
        return value


def waited(pending: Pending) -> bytes:
    """Return the result of a pending answer, awaited on its own loop. Raise what its function raised."""

    async def wait() -> object:
        return await pending.answer

    def read() -> object:
        with asyncio.Runner() as runner:
            return runner.run(wait())

    return pending.encode(read)


def outcome_of(pending: Pending) -> bytes | Exception:
    """Return the argument that a server passes to `finish`."""
    try:
        return waited(pending)
    except Exception as error:
        return error
