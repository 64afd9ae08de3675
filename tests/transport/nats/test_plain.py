"""The plain path without NATS: what its callbacks publish, in what order, and what an abandoned one leaves.

`test_server.py` tests the rest.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.nats.arrival_order import ArrivalOrder, Lane
from keyvalue_transport.nats.plain import PlainPath
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.reply_subjects import ReplySubjects
from keyvalue_transport.wrpc.errors import DisconnectedError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import Invocations, Step
from tests.invoking import invoke
from tests.recorded_replies import Later

INBOX, NOBODY = "_INBOX.server", "_INBOX.nobody"


class Arrived(NamedTuple):
    """A message from nats-py."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None = None


class Published:
    """A connection that records what is published, and that can be told to wait before each message."""

    def __init__(self, max_payload: int = 1024) -> None:
        self.max_payload = max_payload
        self.order = ArrivalOrder()
        self.replies = ReplySubjects()
        self.open = asyncio.Event()
        self.open.set()
        self.sends: list[Send] = []
        self.receive: Callable[[Any], Awaitable[None]]
        self.refuse: Callable[[str], Awaitable[None]]

    async def subscribe(
        self, subject: str, receive: Any, queue: str = "", on_drop: Any = None, lane: Lane | None = None
    ) -> None:
        assert lane is not None
        self.order.add(lane, lambda: 0)
        self.receive, self.refuse = receive, on_drop

    async def publish_all(self, messages: list[tuple[str, bytes, str]]) -> int:
        for message in messages:
            await self.open.wait()
            self.sends.append(Send(*message))
        return sum(len(payload) for _, payload, _ in messages)


class Plain:
    """The plain path over such a connection."""

    def __init__(self, max_payload: int = 1024) -> None:
        self.connection = Published(max_payload)
        self.steps: list[Step[str, Send]] = []
        connection: Any = self.connection
        self.path = PlainPath(
            connection, INBOX, NOBODY, lambda: "token", None, self.steps.append, self._on_unsent, None
        )

    def _on_unsent(self, error: DisconnectedError) -> None:
        raise error

    async def call(self, handler: Handler, params: bytes, reply: str = "R_c") -> list[Send]:
        """Return what a call of a function publishes."""
        await self.path.subscribe_function("f", handler, "queue")
        await self.connection.receive(Arrived("f", reply, params))
        return self.connection.sends


def handler_of(outcome: bytes | Exception) -> Handler:
    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return handle


@settings(deadline=None)
@given(st.binary(max_size=60) | st.builds(RuntimeError, st.just("boom")), st.integers(1, 60) | st.none())
def test_the_inlined_answer_is_that_of_the_core(outcome: bytes | Exception, max_payload: int | None) -> None:
    """Include a result that is one byte longer than a message."""
    if max_payload is None:
        max_payload = max(1, len(outcome) - 1) if isinstance(outcome, bytes) else 1

    async def run() -> None:
        plain = Plain(max_payload)
        published = await plain.call(handler_of(outcome), b"params")
        core = Invocations(SubjectReplies(INBOX, NOBODY, plain.connection), lambda: "token")
        assert published == invoke(core, handler_of(outcome), "R_c", ANONYMOUS, b"params", 0.0).sends
        counts = core.counts
        counts.received_bytes, counts.sent_bytes = 6, len(outcome) if isinstance(outcome, bytes) else 0
        assert plain.path.invocations.counts == counts

    asyncio.run(run())


async def test_messages_keep_their_order_while_the_connection_is_slow() -> None:
    plain = Plain()
    plain.connection.open.clear()
    sends = [Send("R_c.results", b"%d" % number) for number in range(5)]
    plain.path.send(sends[:2])
    await asyncio.sleep(0)
    plain.path.send(sends[2:3])
    plain.path.send([])
    plain.path.send(sends[3:])
    flushing = asyncio.create_task(plain.path.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    plain.connection.open.set()
    await flushing
    assert plain.connection.sends == sends
    await plain.path.flush()


async def test_an_answer_is_completed_even_if_its_handshake_is_given_up() -> None:
    """Stop with an expired deadline.

    Otherwise the invocation would never end, and its coroutine would never be awaited.
    """
    plain = Plain()
    plain.connection.open.clear()

    async def never() -> bytes:
        raise AssertionError("nobody waits")

    call = asyncio.create_task(plain.call(lambda *_: Later(never()), b""))
    for _ in range(3):
        await asyncio.sleep(0)
    assert plain.path.invocations.waiting == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (step,) = plain.steps
    waiting = step.waiting
    assert waiting is not None
    coroutine: Any = waiting.pending.answer
    coroutine.close()
    gc.collect()


async def test_an_invocation_without_a_reply_subject_is_not_carried_out() -> None:
    """If it is dropped, there is nobody to refuse it to."""
    plain = Plain()
    assert await plain.call(handler_of(AssertionError("it was called")), b"", reply="") == []
    await plain.connection.refuse("")
    await plain.connection.refuse("R_c")
    assert plain.connection.sends == [Send("R_c", b"", NOBODY), Send("R_c.results", b"")]
    counts = plain.path.invocations.counts
    assert (counts.refused, counts.without_reply, counts.failed) == (1, 2, 0)
    assert await plain.call(handler_of(b"result"), b"") == [
        *plain.connection.sends[:2],
        Send("R_c", b"", NOBODY),
        Send("R_c.results", b"result"),
        Send("R_c.results", b""),
    ]


async def test_pieces_that_fail_do_not_hold_up_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plain()
    await plain.path.subscribe_params("inbox.*.params")

    def fail(token: str, piece: bytes, now_s: float) -> Step[str, Send]:
        raise MemoryError("no room")

    monkeypatch.setattr(plain.path.invocations, "receive_params", fail)
    with pytest.raises(MemoryError):
        await plain.connection.receive(Arrived("inbox.token.params", "", b"piece"))
    acts: list[str] = []
    plain.connection.order.change(lambda: acts.append("carried out"))
    assert acts == ["carried out"]
