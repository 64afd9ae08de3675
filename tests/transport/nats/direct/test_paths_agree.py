"""One stream of messages over both paths: what is sent, stored and counted is the same, wherever the reads of the direct path end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set, store_handlers, store_tallies
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Invocations
from tests.invoking import invoke
from tests.transport.nats.direct.scene import (
    INBOX,
    NOBODY,
    PIECES,
    Reader,
    Socket,
    Unawaited,
    cut,
    direct_core,
    publications,
)

FAILING, WAITING = "failing", "waiting"
FUNCTIONS = PIECES + 1  # the first of the functions' subscriptions
MAX_PAYLOAD = 5000
GREETING = b'INFO {"max_payload": 5000}\r\n'
LIMITS = InvocationLimits(half_open_max=4, half_open_bytes_max=600, waiting_max=2)
OPTIONS = StoreOptions(key_bytes_max=20, value_bytes_max=400, bucket_name_bytes_max=8, buckets_max=2, keys_max=6)


class Invoked(NamedTuple):
    """The first message of an invocation; empty `reply`: nobody to answer to."""

    function: str
    reply: str
    caller: Caller
    piece: bytes
    traceparent: str | None = None


class Piece(NamedTuple):
    """A further message of the invocation that began as the so-manieth, which may never have been half-open."""

    invocation: int
    piece: bytes


class Line(NamedTuple):
    """Of no invocation."""

    frame: bytes


class Limit(NamedTuple):
    """The server has another largest message from now on."""

    max_payload: int


Message = Invoked | Piece | Line | Limit


# Streams.

KEYS = st.sampled_from([b"", b"k", "ключ".encode(), b"\r\nMSG f 1 r 2\r\n", b"k" * 20, b"k" * 21])
BUCKETS = st.sampled_from([b"b", b"", b"other", b"third", b"b" * 9])
VALUES = st.one_of(
    st.binary(max_size=40), st.sampled_from([bytes(127), bytes(128), b"\r\n" * 150, bytes(400), bytes(401), bytes(900)])
)
PARAMETERS = {
    "get": st.builds(encode_bucket_key, BUCKETS, KEYS),
    "delete": st.builds(encode_bucket_key, BUCKETS, KEYS),
    "exists": st.builds(encode_bucket_key, BUCKETS, KEYS),
    "set": st.builds(encode_set, BUCKETS, KEYS, VALUES),
    "list-keys": st.builds(encode_list_keys, BUCKETS, st.none() | st.integers(0, 2**64 - 1)),
    FAILING: st.just(b"x"),
    WAITING: st.binary(max_size=40),
}
CALLERS = st.sampled_from(
    [
        ANONYMOUS,
        Caller(None, None),
        Caller("a", "default"),
        Caller("b", None),
    ]
)
TRACES = st.sampled_from([None, None, "00-0af7-b7ad-01", "00-0af7-b7ad-02", "00"])
LINES = st.sampled_from(
    [
        b"PING\r\n",
        b"PONG\r\n",
        b"+OK\r\n",
        b"-ERR 'Slow'\r\n",
        b"MSG g 77 9\r\nMSG f 1 r\r\n",
        b"HMSG g 77 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    ]
)


@st.composite
def messages(draw: st.DrawFn, number: int) -> list[Message]:
    """All messages of one invocation, in their order."""
    function = draw(st.sampled_from(list(PARAMETERS)))
    whole = draw(PARAMETERS[function])
    damage = draw(st.sampled_from(["none"] * 6 + ["short", "byte", "any", "more"]))
    if damage == "short":
        whole = whole[: draw(st.integers(0, len(whole)))]
    elif damage == "byte" and whole:
        at = draw(st.integers(0, len(whole) - 1))
        whole = whole[:at] + bytes([draw(st.sampled_from([0, 1, 2, 127, 128, 255]))]) + whole[at + 1 :]
    elif damage == "any":
        whole = draw(st.binary(max_size=12))
    elif damage == "more":
        whole += draw(st.binary(min_size=1, max_size=6))
    ends = draw(st.lists(st.integers(0, len(whole)), max_size=4)) if draw(st.booleans()) else []
    first, *rest = cut(whole, ends) or [b""]
    reply = f"_INBOX.c.{number}" if draw(st.integers(0, 9)) else ""
    closing = [Piece(number, b"")] if draw(st.integers(0, 5)) else []
    caller = draw(CALLERS)
    trace = None if caller is ANONYMOUS else draw(TRACES)
    return [Invoked(function, reply, caller, first, trace), *(Piece(number, piece) for piece in rest), *closing]


@st.composite
def streams(draw: st.DrawFn) -> list[Message]:
    """Invocations whose messages are interleaved, with other frames between them; some pieces come out of order."""
    queues = [draw(messages(number)) for number in range(draw(st.integers(1, 8)))]
    stream: list[Message] = []
    while queues:
        stream += draw(
            st.sampled_from([[]] * 4 + [[Line(draw(LINES))], [Limit(draw(st.sampled_from([7, 64, 300, 5000])))]])
        )
        queue = queues[draw(st.integers(0, min(2, len(queues) - 1)))]
        stream.append(queue.pop(0))
        if len(queue) > 1 and not draw(st.integers(0, 9)):
            queue.reverse()
        queues = [queue for queue in queues if queue]
    return stream


# Both paths.


@dataclass
class Outcome:
    """What a path made of a stream."""

    sent: dict[str, list[tuple[str, bytes]]]
    stored: dict[bytes, dict[bytes, bytes | None]]
    counts: dict[str, int]
    tallies: dict[str, dict[str, int]]
    callers: list[Caller]
    failures: list[str]
    held: tuple[int, int, int]


class Core:
    """What both paths end in: a store and its handlers."""

    def __init__(self) -> None:
        self.store = Store(OPTIONS)
        self.tallies = store_tallies()
        service = Service(self.store)
        self.callers: list[Caller] = []
        self.failures: list[str] = []
        self.handlers: dict[str, Handler] = {
            **store_handlers(service, service.parameter_limits, self.tallies),
            FAILING: self._failing,
            WAITING: self._waiting,
        }

    def _failing(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self.callers.append(caller)
        raise RuntimeError("the disk is on fire")

    def _waiting(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self.callers.append(caller)
        return Unawaited()

    def outcome(self, sends: list[Send], counts: InvocationCounts, held: tuple[int, int, int]) -> Outcome:
        sent = defaultdict(list)
        for subject, payload, reply in sends:
            sent[subject.removesuffix(".results")].append((f"{subject} {reply}", payload))
        buckets = ((name, self.store.bucket(name)) for name in self.store.bucket_names())
        self.store.check()
        return Outcome(
            dict(sent),
            {name: {key: bucket.get(key) for key in set(bucket.keys())} for name, bucket in buckets},
            # The bytes are with their framing, on the direct path.
            {name: number for name, number in asdict(counts).items() if not name.endswith("_bytes")},
            {name: dict(zip(OUTCOMES, tally, strict=True)) for name, tally in self.tallies.items()},
            self.callers,
            self.failures,
            held,
        )


def plain(stream: list[Message], tokens: dict[int, str]) -> Outcome:
    """As the server's callbacks do it. Notes under which token an invocation is half-open."""
    core = Core()
    new_tokens = itertools.count()
    server = SimpleNamespace(max_payload=MAX_PAYLOAD)
    invocations = Invocations(SubjectReplies(INBOX, NOBODY, server), lambda: str(next(new_tokens)), LIMITS)
    sends: list[Send] = []
    for message in stream:
        match message:
            case Invoked(function, reply, caller, piece, traceparent):
                if not reply:
                    invocations.counts.without_reply += 1
                    continue
                step = invoke(invocations, core.handlers[function], reply, caller, piece, 0.0, traceparent)
            case Piece(invocation, piece):
                step = invocations.receive_params(tokens.get(invocation, "none"), piece, 0.0)
            case Limit(max_payload):
                server.max_payload = max_payload
                continue
            case Line():
                continue
        for send in step.sends:
            if send.reply.startswith(INBOX):
                tokens[int(send.subject.rpartition(".")[2])] = send.reply.rpartition(".")[2]
        sends += step.sends
        if step.failure is not None:
            core.failures.append(repr(step.failure))
    held = invocations.half_open, invocations.half_open_bytes, invocations.waiting
    return core.outcome(sends, invocations.counts, held)


def frames(stream: Sequence[Message], subscriptions: dict[str, int], tokens: dict[int, str]) -> bytes:
    """The stream as a NATS server sends it."""
    written = []
    for message in stream:
        match message:
            case Invoked(function, reply, caller, piece, traceparent):
                to = f"f {subscriptions[function]} {reply}".strip()
                if caller is ANONYMOUS:
                    frame = f"MSG {to} {len(piece)}\r\n".encode() + piece
                else:
                    names = ("source-id", "link-name", "traceparent")
                    lines = (
                        f"{name}: {value}\r\n"
                        for name, value in zip(names, (*caller, traceparent), strict=True)
                        if value
                    )
                    block = f"NATS/1.0\r\nother: x\r\n{''.join(lines)}\r\n".encode()
                    frame = f"HMSG {to} {len(block)} {len(block) + len(piece)}\r\n".encode() + block + piece
                written.append(frame + b"\r\n")
            case Piece(invocation, piece):
                subject = f"{INBOX}.{tokens.get(invocation, 'none')}.params"
                written.append(f"MSG {subject} {PIECES} {len(piece)}\r\n".encode() + piece + b"\r\n")
            case Limit(max_payload):
                written.append(b"INFO %b\r\n" % json.dumps({"max_payload": max_payload}).encode())
            case Line(frame):
                written.append(frame)
    return b"".join(written)


def direct(
    loop: asyncio.AbstractEventLoop,
    alike: bool,
    stream: list[Message],
    tokens: dict[int, str],
    cuts: list[int],
    takes: list[bool],
) -> tuple[Outcome, bytes]:
    """As `DirectProtocol` does it, and what it left to nats-py. The socket blocks after each write, until a true one of `takes`."""
    core = Core()
    routes, invocations, steps = direct_core(LIMITS, alike=alike, max_payload=MAX_PAYLOAD)
    subscriptions = {name: number for number, name in enumerate(core.handlers, FUNCTIONS)}
    for name, number in subscriptions.items():
        routes.add(number, core.handlers[name])
    socket, reader = Socket(high_water_bytes=0), Reader(loop)
    protocol = socket.protocol = DirectProtocol(reader, routes, loop)
    protocol.connection_made(socket)  # type: ignore[arg-type] # what is used of it
    protocol.data_received(GREETING)
    reader.pieces.clear()
    written = frames(stream, subscriptions, tokens)
    sent = []
    pieces = cut(written, (at % (len(written) + 1) for at in cuts)) if written else []
    for piece, take in zip(pieces, itertools.cycle(takes)):
        protocol.data_received(piece)
        if take:
            sent.append(socket.take())
    while socket.buffer:
        sent.append(socket.take())
    assert not socket.aborted
    core.failures += [repr(step.failure) for step in steps if step.failure is not None]
    held = invocations.half_open, invocations.half_open_bytes, invocations.waiting
    return core.outcome(publications(b"".join(sent)), invocations.counts, held), b"".join(reader.pieces)


@settings(max_examples=400)
@given(
    stream=streams(),
    cuts=st.lists(st.integers(0, 2**16), max_size=30),
    takes=st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_the_paths_agree(
    loop: asyncio.AbstractEventLoop, stream: list[Message], cuts: list[int], takes: list[bool]
) -> None:
    tokens: dict[int, str] = {}
    expected = plain(stream, tokens)
    left = [message for message in stream if isinstance(message, Line | Limit)]
    for alike in (True, False):
        assert direct(loop, alike, stream, tokens, cuts, takes) == (expected, frames(left, {}, {}))


def test_streams_hold_what_they_should(loop: asyncio.AbstractEventLoop) -> None:
    """One stream of every kind of outcome, so that the paths agree on more than nothing."""
    whole = encode_set(b"b", b"k", b"v" * 300)
    stream: list[Message] = [
        Invoked("set", "_INBOX.c.0", Caller("a", "default"), whole[:9]),
        Invoked("set", "_INBOX.c.1", ANONYMOUS, whole[:9]),
        Piece(0, whole[9:]),
        Invoked("set", "", ANONYMOUS, whole),
        Invoked(FAILING, "_INBOX.c.2", Caller("a", None), b"x", "00-1-2-01"),
        *(Invoked(WAITING, f"_INBOX.c.{number}", ANONYMOUS, b"") for number in (3, 4, 5)),
        Piece(1, b""),
        Piece(0, b"late"),
        Limit(100),
        Invoked("get", "_INBOX.c.6", ANONYMOUS, encode_bucket_key(b"b", b"k")),
    ]
    tokens: dict[int, str] = {}
    expected = plain(stream, tokens)
    assert tokens == {0: "0", 1: "1"}
    for alike in (True, False):
        outcome, _ = direct(loop, alike, stream, tokens, [], [True])
        assert outcome == expected
    counts = outcome.counts
    assert (counts["answered"], counts["damaged"], counts["refused"], counts["failed"]) == (2, 1, 1, 1)
    assert (counts["without_reply"], counts["stray_pieces"]) == (1, 1)
    assert [len(payload) for _, payload in outcome.sent["_INBOX.c.6"]] == [0, 100, 100, 100, 4, 0]
    assert outcome.stored == {b"b": {b"k": b"v" * 300}}
    assert [failure.rpartition("traceparent=")[2] for failure in outcome.failures] == ["'00-1-2-01')", "None)"]
    assert outcome.callers == [Caller("a", None), ANONYMOUS, ANONYMOUS, ANONYMOUS]
    assert outcome.held == (0, 0, 2)
