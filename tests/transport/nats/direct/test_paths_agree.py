"""One stream of messages over both paths: what is sent, stored and counted is the same, wherever the reads of the direct path end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set, store_handlers, store_tallies
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from bench.load.responder import PARAMS
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Waiting
from keyvalue_transport.nats.replies import Send
from tests.invoking import invoke
from tests.transport.nats.direct.test_protocol import INBOX, NOBODY, Reader, Socket, cut, publications

FAILING, WAITING = "failing", "waiting"
PIECES = 50  # the subscription to further pieces of parameters
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
    """What both paths end in: a store, its handlers, and the life of invocations."""

    def __init__(self) -> None:
        self.store = Store(OPTIONS)
        self.tallies = store_tallies()
        service = Service(self.store)
        self.handlers = store_handlers(service, service.parameter_limits, self.tallies)
        self.callers: list[Caller] = []
        self.failures: list[str] = []
        self.waiting: list[Waiting] = []
        self.handlers[FAILING] = self._failing
        self.handlers[WAITING] = self._waiting
        tokens = itertools.count()
        self.invocations = Invocations(INBOX, NOBODY, lambda: str(next(tokens)), LIMITS, 5000)

    def _failing(self, caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        self.callers.append(caller)
        raise RuntimeError("the disk is on fire")

    def _waiting(self, caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        self.callers.append(caller)
        return Ready()

    def outcome(self, sends: list[Send]) -> Outcome:
        sent = defaultdict(list)
        for subject, payload, reply in sends:
            sent[subject.removesuffix(".results")].append((f"{subject} {reply}", payload))
        buckets = ((name, self.store.bucket(name)) for name in self.store.bucket_names())
        counts = asdict(self.invocations.counts)
        del counts["received_bytes"], counts["sent_bytes"]  # with their framing, on the direct path
        self.store.check()
        return Outcome(
            dict(sent),
            {name: {key: bucket.get(key) for key in set(bucket.keys())} for name, bucket in buckets},
            counts,
            {name: dict(zip(OUTCOMES, tally, strict=True)) for name, tally in self.tallies.items()},
            self.callers,
            self.failures,
            (self.invocations.half_open, self.invocations.half_open_bytes, self.invocations.waiting),
        )


class Ready:
    """An answer to wait for, that these tests never get."""

    def __await__(self) -> Generator[object, object, bytes]:
        raise AssertionError("nobody waits")


def plain(stream: list[Message], tokens: dict[int, str]) -> Outcome:
    """As the server's callbacks do it. Notes under which token an invocation is half-open."""
    core = Core()
    sends: list[Send] = []
    for message in stream:
        match message:
            case Invoked(function, reply, caller, piece, traceparent):
                if not reply:
                    core.invocations.counts.without_reply += 1
                    continue
                step = invoke(core.invocations, core.handlers[function], reply, caller, piece, 0.0, traceparent)
            case Piece(invocation, piece):
                step = core.invocations.receive_params(tokens.get(invocation, "none"), piece, 0.0)
            case Limit(max_payload):
                core.invocations.max_payload = max_payload
                continue
            case Line():
                continue
        for send in step.sends:
            if send.reply.startswith(INBOX):
                tokens[int(send.subject.rpartition(".")[2])] = send.reply.rpartition(".")[2]
        sends += step.sends
        if step.failure is not None:
            core.failures.append(repr(step.failure))
    return core.outcome(sends)


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
    loop: asyncio.AbstractEventLoop, stream: list[Message], tokens: dict[int, str], cuts: list[int], takes: list[bool]
) -> tuple[Outcome, bytes]:
    """As `DirectProtocol` does it, and what it left to nats-py. The socket blocks after each write, until a true one of `takes`."""
    core = Core()
    routes = DirectRoutes()
    routes.invocations = core.invocations
    routes.on_step = lambda step: None if step.failure is None else core.failures.append(repr(step.failure))
    subscriptions = {name: number for number, name in enumerate(core.handlers, 1)}
    for name, number in subscriptions.items():
        routes.add(number, core.handlers[name])
    routes.add(PIECES, PARAMS)
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
    return core.outcome(publications(b"".join(sent))), b"".join(reader.pieces)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is asked for its time alone."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


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
    outcome, passed = direct(loop, stream, tokens, cuts, takes)
    assert outcome == expected
    left = [message for message in stream if isinstance(message, Line | Limit)]
    assert passed == frames(left, {}, {})


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
    outcome, _ = direct(loop, stream, tokens, [], [True])
    assert outcome == expected
    counts = outcome.counts
    assert (counts["answered"], counts["damaged"], counts["refused"], counts["failed"]) == (2, 1, 1, 1)
    assert (counts["without_reply"], counts["stray_pieces"]) == (1, 1)
    assert [len(payload) for _, payload in outcome.sent["_INBOX.c.6"]] == [0, 100, 100, 100, 4, 0]
    assert outcome.stored == {b"b": {b"k": b"v" * 300}}
    assert [failure.rpartition("traceparent=")[2] for failure in outcome.failures] == ["'00-1-2-01')", "None)"]
    assert outcome.callers == [Caller("a", None), ANONYMOUS, ANONYMOUS, ANONYMOUS]
    assert outcome.held == (0, 0, 2)
