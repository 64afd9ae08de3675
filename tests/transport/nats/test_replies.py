"""The messages that answer an invocation: the same on both paths, and cut at max_payload."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.direct.answers import END, RESULT_LINES, SMALL, FrameReplies
from keyvalue_transport.nats.replies import Send, SubjectReplies
from tests.transport.nats.direct.scene import publications

A = TypeVar("A")
M = TypeVar("M")

INBOX, NOBODY = "_INBOX.server", "_INBOX.nobody"
TOKENS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters=".*>"), min_size=1)
REPLIES = st.lists(TOKENS, min_size=1, max_size=3).map(".".join)


def both(max_payload: int) -> tuple[SubjectReplies, FrameReplies]:
    return SubjectReplies(INBOX, NOBODY, SimpleNamespace(max_payload=max_payload)), FrameReplies(
        INBOX, NOBODY, max_payload, "receipt"
    )


@given(REPLIES, st.none() | TOKENS, st.binary(min_size=1, max_size=200), st.integers(1, 60))
def test_frames_carry_the_messages(reply: str, token: str | None, result: bytes, max_payload: int) -> None:
    subjects, frames = both(max_payload)
    to = reply.encode()
    for written, messages in (
        (frames.accept(to, token), subjects.accept(reply, token)),
        (frames.result(to, result), subjects.result(reply, result)),
        (frames.end(to), subjects.end(reply)),
    ):
        assert publications(b"".join(written)) == messages


@given(REPLIES, st.binary(min_size=1, max_size=200) | st.integers(SMALL - 1, SMALL + 1).map(bytes))
def test_the_pieces_of_the_direct_path_make_the_same_frames(reply: str, result: bytes) -> None:
    """Compare those that `DirectProtocol` adds to its output for a result in one message."""
    subjects, frames = both(len(result))
    to, size = reply.encode(), len(result)
    line = RESULT_LINES[size] if size < SMALL else b".results %d\r\n" % size
    head, tail = to[:1], to[1:]
    pub, handshake, next_pub = frames.begun(head)
    written = b"".join((pub, tail, handshake, tail, line, result, next_pub, tail, END))
    assert publications(written) == subjects.accept(reply, None) + subjects.result(reply, result)


def test_messages() -> None:
    subjects, _ = both(1024)
    assert subjects.accept("R_c", None) == [Send("R_c", b"", NOBODY)]
    assert subjects.accept("R_c", "17") == [Send("R_c", b"", "_INBOX.server.17")]
    assert subjects.result("R_c", b"result") == [Send("R_c.results", b"result"), Send("R_c.results", b"")]
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
    """The limit may change, since another server of the cluster may allow less."""
    limit = SimpleNamespace(max_payload=1024)
    subjects, frames = SubjectReplies(INBOX, NOBODY, limit), FrameReplies(INBOX, NOBODY, 1024, "receipt")
    limit.max_payload = frames.max_payload = max_payload
    messages = [Send("R_c.results", piece) for piece in [*pieces, b""]]
    assert subjects.result("R_c", b"result of val") == messages
    assert publications(b"".join(frames.result(b"R_c", b"result of val"))) == messages
