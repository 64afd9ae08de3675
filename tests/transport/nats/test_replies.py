"""The messages that answer an invocation: the same over both paths, and cut at max_payload."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.direct.answers import END, NEXT_PUB, PUB, RESULT_LINES, SMALL, FrameReplies
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Replies
from tests.invoking import invoke
from tests.recorded_replies import Later, outcome_of
from tests.transport.nats.direct.scene import publications

A = TypeVar("A")
M = TypeVar("M")

INBOX, NOBODY = "_INBOX.server", "_INBOX.nobody"
TOKENS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters=".*>"), min_size=1)
REPLIES = st.lists(TOKENS, min_size=1, max_size=3).map(".".join)


def both(max_payload: int) -> tuple[SubjectReplies, FrameReplies]:
    return SubjectReplies(INBOX, NOBODY, SimpleNamespace(max_payload=max_payload)), FrameReplies(
        INBOX, NOBODY, max_payload
    )


def sent(frames: list[bytes]) -> list[Send]:
    """Return the messages of frames, each of which is one."""
    return [send for frame in frames for send in publications(frame)]


# One message each.


@given(REPLIES, st.none() | TOKENS, st.binary(min_size=1, max_size=200), st.integers(1, 60))
def test_frames_say_what_messages_say(reply: str, token: str | None, result: bytes, max_payload: int) -> None:
    subjects, frames = both(max_payload)
    to = reply.encode()
    for written, messages in (
        (frames.accept(to, token), subjects.accept(reply, token)),
        (frames.result(to, result), subjects.result(reply, result)),
        (frames.end(to), subjects.end(reply)),
    ):
        assert [publications(frame) for frame in written] == [[message] for message in messages]


@given(REPLIES, st.binary(min_size=1, max_size=200) | st.integers(SMALL - 1, SMALL + 1).map(bytes))
def test_the_pieces_of_the_direct_path_make_the_same_frames(reply: str, result: bytes) -> None:
    """Those that `DirectProtocol` adds to its output for a result in one message."""
    subjects, frames = both(len(result))
    to, size = reply.encode(), len(result)
    line = RESULT_LINES[size] if size < SMALL else b".results %d\r\n" % size
    written = b"".join((PUB, to, frames.handshake, to, line, result, NEXT_PUB, to, END))
    assert publications(written) == subjects.accept(reply, None) + subjects.result(reply, result) + subjects.end(reply)


def test_messages() -> None:
    subjects, _ = both(1024)
    assert subjects.accept("R_c", None) == [Send("R_c", b"", NOBODY)]
    assert subjects.accept("R_c", "17") == [Send("R_c", b"", "_INBOX.server.17")]
    assert subjects.result("R_c", b"result") == [Send("R_c.results", b"result")]
    assert subjects.end("R_c") == [Send("R_c.results", b"")]


@pytest.mark.parametrize(
    ("max_payload", "pieces"),
    [
        (13, [b"result of val"]),
        (12, [b"result of va", b"l"]),
        (7, [b"result ", b"of val"]),
        (5, [b"resul", b"t of ", b"val"]),
        (1, [b"%c" % byte for byte in b"result of val"]),
    ],
)
def test_a_result_is_cut_at_max_payload(max_payload: int, pieces: list[bytes]) -> None:
    subjects, _ = both(max_payload)
    assert subjects.result("R_c", b"result of val") == [Send("R_c.results", piece) for piece in pieces]


def test_max_payload_may_change() -> None:
    """Another server of the cluster may take less."""
    limit = SimpleNamespace(max_payload=1024)
    subjects, frames = SubjectReplies(INBOX, NOBODY, limit), FrameReplies(INBOX, NOBODY, 1024)
    limit.max_payload = frames.max_payload = 10
    assert [send.payload for send in subjects.result("R_c", b"result of val")] == [b"result of ", b"val"]
    assert sent(frames.result(b"R_c", b"result of val")) == subjects.result("R_c", b"result of val")


# Through the core: handshake, pieces and end of whole lives.


def plain(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    """Return the parameters, which are whole if they end with a full stop."""
    if buffer[end - 1 : end] != b".":
        raise NeedMoreBytes(end + 1)
    return buffer[start:end]


def waiting(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    result = plain(caller, buffer, start, end)
    assert isinstance(result, bytes)

    async def wait() -> bytes:
        return result

    return Later(wait())


def empty(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    plain(caller, buffer, start, end)
    return b""


def failing(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    plain(caller, buffer, start, end)
    raise DecodeError("found 7, allowed 3")


def life(replies: Replies[A, M], reply: A, handler: Handler, pieces: list[bytes], half_open_max: int) -> list[list[M]]:
    """Return what is sent at each piece, at the answer and at the expiry of one that is never whole."""
    tokens = count()
    invocations = Invocations(replies, lambda: str(next(tokens)), InvocationLimits(half_open_max=half_open_max))
    first, *rest = pieces
    steps = [invoke(invocations, handler, reply, ANONYMOUS, first, 0.0)]
    steps += [invocations.receive_params("0", piece, 0.0) for piece in rest]
    steps += [
        invocations.finish(step.waiting, outcome_of(step.waiting.pending)) for step in steps if step.waiting is not None
    ]
    steps.append(invocations.expire(1000.0))
    assert sum(message == end for step in steps for message in step.sends for end in replies.end(reply)) == 1
    return [step.sends for step in steps]


@given(
    REPLIES,
    st.sampled_from([plain, waiting, empty, failing]),
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 1),
    st.integers(1, 60),
)
def test_lives_are_told_alike(
    reply: str, handler: Handler, pieces: list[bytes], is_whole: bool, half_open_max: int, max_payload: int
) -> None:
    if is_whole:
        pieces = [*pieces[:-1], pieces[-1] + b"."]
    subjects, frames = both(max_payload)
    messages = life(subjects, reply, handler, pieces, half_open_max)
    written = life(frames, reply.encode(), handler, pieces, half_open_max)
    assert [sent(step) for step in written] == messages
    results = [message.payload for step in messages for message in step if message.subject == f"{reply}.results"]
    assert all(len(piece) <= max_payload for piece in results)
