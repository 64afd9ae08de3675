"""The parser for nats-py: cut anywhere, it handles the same messages, and no message stops it."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from keyvalue_transport.nats.frame_parser import FrameParser, ReadingFaults
from keyvalue_transport.nats.opening import LastingClient

MESSAGES = [
    (b"a", b"", b"", b"payload"),
    (b"a", b"r\x0b5", b"", b"12\r\n"),
    (b"a.\xff", b"\xff", b"NATS/1.0\r\na: b\r\n\r\n", b""),
    (b"a\rb.\x0c", b"a\rb", b"x", b"MSG a 1 1\r\n"),
    (b"s" * 3_000, b"r" * 2_000, b"\r\n\r\n", b"x" * 9_000),
]


class Client:
    """A client that keeps what the parser gives it, and fails at each message with a header block."""

    max_payload = 100_000

    def __init__(self) -> None:
        self.found: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.found.append((subject, reply, headers, data))
        if headers:
            raise ZeroDivisionError

    async def _process_err(self, text: str) -> None:
        self.found.append(text)

    async def _process_pong(self) -> None:
        self.found.append("PONG")


def frame(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bytes:
    size = b"%d" % len(headers + payload)
    if headers:
        size = b"%d %b" % (len(headers), size)
    words = [b"HMSG" if headers else b"MSG", subject, b"1", *([reply] if reply else []), size]
    return b"%b\r\n%b%b\r\n" % (b" ".join(words), headers, payload)


@given(st.lists(st.sampled_from(MESSAGES), max_size=5), st.lists(st.integers(0, 50_000)))
def test_no_message_stops_it(messages: list[tuple[bytes, ...]], cuts: list[int]) -> None:
    client, faults = Client(), ReadingFaults()
    parser = FrameParser(client, faults)
    stream = b"".join(frame(*message) + b"PONG\r\n" for message in messages) + b"-ERR 'Odd \xff'\r\nINFO {\r\n-ERR\r\n"
    places = [0, *sorted({cut % len(stream) for cut in cuts}), len(stream)]

    async def run() -> None:
        for start, end in pairwise(places):
            await parser.parse(stream[start:end])

    asyncio.run(run())
    expected = [one for message in messages for one in (message, "PONG")]
    assert client.found == [*expected, "Odd \ufffd", ""]
    assert faults.ignored == 1 + sum(bool(headers) for _, _, headers, _ in messages)


@pytest.mark.parametrize("stream", [b"HTTP/1.1\r\n", b"MSG a 1 x\r\n", b"MSG a 1 9000000\r\n", b"MSG a\r\n"])
async def test_other_protocols_are_an_error(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        await FrameParser(Client(), ReadingFaults()).parse(stream)


async def test_nothing_is_handled_after_the_connection_ended() -> None:
    client = Client()
    parser = FrameParser(client, ReadingFaults())

    async def reset() -> None:
        parser.reset()

    client._process_pong = reset  # type: ignore[method-assign]
    await parser.parse(b"PONG\r\n" + frame(*MESSAGES[0]))
    await parser.parse(frame(*MESSAGES[1])[:20])
    assert client.found == []


def test_a_client_uses_it() -> None:
    assert isinstance(LastingClient()._ps, FrameParser)
