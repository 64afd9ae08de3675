"""Random streams through the direct path in three ways, which must agree.

    together  cut into reads anywhere; it learns the shapes of frames, and the socket blocks at times
    apart     one frame after another, each parsed
    plain     handlers and core as the plain path calls them, for cases whose frames are all well-formed

A case is one stream with its own store. tests/integration/test_order.py tests changes by the host among the calls.
The seed and the case's number determine its random numbers: `run(1, seed, number)` repeats it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import atomics_handlers, atomics_tallies, encode_increment
from keyvalue_transport.keyvalue.batch import batch_handlers, batch_tallies, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set, store_handlers, store_tallies
from keyvalue_transport.nats.direct import protocol as protocol_module
from keyvalue_transport.nats.direct import writing_protocol
from keyvalue_transport.nats.direct.protocol import OUTPUT_BYTES, DirectProtocol
from keyvalue_transport.nats.direct.writing_protocol import FULL_BYTES
from keyvalue_transport.nats.headers import headers_of
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.wrpc.half_open import INVOCATION_BYTES
from keyvalue_transport.wrpc.handler import Again, Caller, ForRuns, Handler, HandlerResult, Pending, RunResults
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Invocations
from tests.invoking import invoke
from tests.recorded_replies import Later
from tests.transport.nats.direct.scene import (
    INBOX,
    MALFORMED_LINES,
    NOBODY,
    OTHERS,
    PIECES,
    RECEIPT_SUBJECT,
    Reader,
    Socket,
    direct_core,
    publications,
)

FUNCTIONS = PIECES + 1  # the first of the functions' subscriptions
MAX_PAYLOAD = 5000
LIMITS = InvocationLimits(
    half_open_max=16, half_open_bytes_max=11 * INVOCATION_BYTES // 2, waiting_max=3, expected_bytes_max=500
)
OPTIONS = StoreOptions(key_bytes_max=200, value_bytes_max=400, bucket_name_bytes_max=8, buckets_max=4, keys_max=40)
FRAMES_OF_CASE_MAX = 600
RECEIPTS = rb"PUB %b \d+\r\n\d+\r\n" % re.escape(RECEIPT_SUBJECT.encode())

BUCKETS = (b"b", b"b", b"b", b"c", b"", b"\xc3\xb6", b"\xff", b"b" * 9)
KEYS = (b"k1", b"k2", b"k3", b"kk", b"\xc3\xb6", b"\xff\xff", b"k", b"", b"k" * 130, b"MSG f 8 r 2\r\nab\r\n", b"\r\n")
VALUES = (b"", b"v", b"w", b"\r\n" * 20, b"x" * 127, b"y" * 128, b"z" * 400, b"Z" * 401)
REPLIES = (b"r", b"_INBOX.abcdefgh.%d", b"_INBOX.abcdefgh.%d", b"_INBOX.abcdefgh.%d", b"R.%d\xc3\xb6")
ODD_REPLIES = (b"", b"", b"a\rb", b"a b", b"\xff", b"a\nb", b"5", b"a\tb")
ODD_BYTES = (b"\r", b" ", b"\xff", b"\n", b"\t")
#: First bytes of a length.
LENGTHS = (b"\x00", b"\x01", b"\x02", b"\x03", b"\x7f", b"\x80", b"\xff")
LINES = (b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'MSG f 8 r 2'\r\n", b"\r\n", b"\n\r\n", b"msg f 8 r 2\r\n")
HeaderLine: TypeAlias = tuple[bytes, tuple[str, str] | None]
#: Header lines, and what a reader finds in them; None: readers may differ.
HEADER_LINES: tuple[HeaderLine, ...] = (
    (b"source-id: a", ("source-id", "a")),
    (b"source-id: b", ("source-id", "b")),
    (b"source-id: c", ("source-id", "c")),
    (b"link-name: default", ("link-name", "default")),
    (b"link-name: default", ("link-name", "default")),
    (b"link-name: another", ("link-name", "another")),
    (b"other: x", ("other", "x")),
    (b"no colon", None),
    (b"source-id : a", None),
    (b" link-name: default", None),
    (b"source-id: \xff", None),
    (b"traceparent : odd", None),
    (b"traceparent: twice", None),
)


class Invoked(NamedTuple):
    """The first message of an invocation, as nats-py passes it to the plain path."""

    function: str
    reply: str
    headers: dict[str, str] | None
    piece: bytes


class Piece(NamedTuple):
    token: str
    piece: bytes


class Limit(NamedTuple):
    max_payload: int


Message = Invoked | Piece | Limit | None


class Wire(NamedTuple):
    """A frame or line, and what it means to the plain path."""

    frame: bytes
    message: Message


# The store and handlers of a case.


def _fail(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    raise RuntimeError(buffer[start:end])


#: An answer that a server would have to await.
NOT_AWAITED: Any = SimpleNamespace(close=lambda: None)
#: Functions that accept any parameters.
OWN_FUNCTIONS: dict[str, Handler] = {
    "fail": _fail,
    "wait": lambda caller, buffer, start, end: Later(NOT_AWAITED),
    "echo": lambda caller, buffer, start, end: buffer[start:end],
    "silent": lambda caller, buffer, start, end: b"",
    "large": lambda caller, buffer, start, end: bytes(MAX_PAYLOAD + 10),
}


class World:
    """A store and its handlers, some of which accept anything. It records each call."""

    def __init__(self, seed: int) -> None:
        self.store = Store(OPTIONS, secret=seed.to_bytes(16))
        service = Service(self.store)
        limits = service.parameter_limits
        self.tallies = store_tallies() | atomics_tallies() | batch_tallies()
        self.calls: list[tuple[str, Caller, int]] = []
        handlers: dict[str, Handler] = {
            **store_handlers(service, limits, self.tallies),
            **atomics_handlers(service, limits, self.tallies),
            **batch_handlers(service, limits, self.tallies),
            **OWN_FUNCTIONS,
        }
        self.handlers = {name: self._noting(name, handler) for name, handler in handlers.items()}

    def _noting(self, name: str, handler: Handler) -> Handler:
        note = self.calls.append
        if isinstance(handler, ForRuns):
            split_run, handle_run = handler.split, handler.call_run

            def split(params: Sequence[bytes]) -> tuple[int, object] | None:
                arguments = split_run(params)
                return None if arguments is None else (len(params[0]), arguments)

            def call_run(caller: Caller, split: tuple[int, object]) -> RunResults | Again | None:
                results = handle_run(caller, split[1])
                if isinstance(results, tuple):
                    self.calls += [(name, caller, split[0])] * len(results[1])
                return results

            return ForRuns(self._noting(name, handler.handler), split, call_run)

        def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
            note((name, caller, end - start))
            return handler(caller, buffer, start, end)

        return handle


@dataclass
class Outcome:
    """The outcome of a case in one of the ways."""

    sent: bytes | list[Send]
    passed: bytes
    aborted: bool
    calls: list[tuple[str, Caller, int]]
    failures: list[tuple[str, str | None]]
    counts: dict[str, int]
    tallies: dict[str, list[int]]
    stored: dict[bytes, dict[bytes, bytes | None]]


def _outcome(
    world: World,
    sent: bytes | list[Send],
    passed: bytes,
    aborted: bool,
    counts: InvocationCounts,
    failures: list[tuple[str, str | None]],
) -> Outcome:
    world.store.check()
    buckets = {name: world.store.bucket(name) for name in world.store.bucket_names()}
    stored = {name: {key: bucket.get(key) for key in set(bucket.keys())} for name, bucket in buckets.items()}
    return Outcome(sent, passed, aborted, world.calls, failures, asdict(counts), world.tallies, stored)


# The three ways.


class Case(NamedTuple):
    """A stream, and the sizes of the reads that it is cut into, which repeat.

    :ivar takes: the peer takes the output after every read whose number is a multiple of this
    :ivar output_bytes: the output that is written before parsing goes on
    """

    seed: int
    wires: list[Wire]
    reads: list[int]
    takes: int
    high_water_bytes: int
    output_bytes: int
    is_clean: bool


def direct(loop: asyncio.AbstractEventLoop, case: Case, together: bool) -> Outcome:
    """Return the outcome of a case on the direct path: together, or apart."""
    world = World(case.seed)
    protocol_module.OUTPUT_BYTES, writing_protocol.FULL_BYTES = case.output_bytes, case.high_water_bytes
    routes, invocations, steps = direct_core(LIMITS, alike=together, max_payload=MAX_PAYLOAD, room=True)

    for number, handler in enumerate(world.handlers.values(), FUNCTIONS):
        routes.add(number, handler)
    socket = Socket(case.high_water_bytes if together else 2**60)
    reader = Reader(loop)
    protocol = socket.protocol = DirectProtocol(reader, routes, loop)
    protocol.connection_made(socket)  # type: ignore[arg-type] # what is used of it
    protocol.data_received(b'INFO {"max_payload": %d}\r\n' % MAX_PAYLOAD)
    sent: list[bytes] = []
    for number, read in enumerate(_reads(case) if together else [wire.frame for wire in case.wires], 1):
        protocol.data_received(read)
        if number % case.takes == 0:
            sent.append(socket.take())
        if socket.aborted:
            break
    while socket.buffer:
        sent.append(socket.take())
    for step in tuple(steps):
        if step.waiting is not None:
            sent += invocations.finish(step.waiting, b"late").sends
    sent += invocations.close().sends
    failures = [(repr(step.failure.error), step.failure.traceparent) for step in steps if step.failure is not None]
    assert routes.server is not None
    output = re.sub(RECEIPTS, b"", b"".join(sent))  # their places depend on the reads
    return _outcome(world, output, b"".join(reader.pieces), socket.aborted, invocations.counts, failures)


def _reads(case: Case) -> Iterator[bytes]:
    stream = b"".join(wire.frame for wire in case.wires)
    at = 0
    for size in itertools.cycle(case.reads):
        if at >= len(stream):
            return
        yield stream[at : at + size]
        at += size


def plain(case: Case) -> Outcome:
    """Return the outcome of a case on the plain path."""
    world = World(case.seed)
    numbers = itertools.count()
    server = SimpleNamespace(max_payload=MAX_PAYLOAD)
    invocations = Invocations(SubjectReplies(INBOX, NOBODY, server), lambda: str(next(numbers)), LIMITS)
    sent: list[Send] = []
    waiting = []
    failures: list[tuple[str, str | None]] = []
    for _, message in case.wires:
        match message:
            case Invoked(function, reply, headers, piece):
                if not reply:
                    invocations.counts.without_reply += 1
                    continue
                caller, traceparent = headers_of(headers)
                step = invoke(invocations, world.handlers[function], reply, caller, piece, 0.0, traceparent)
            case Piece(token, piece):
                step = invocations.receive_params(token, piece, 0.0)
            case Limit(max_payload):
                server.max_payload = max_payload
                continue
            case _:
                continue
        sent += step.sends
        if step.failure is not None:
            failures.append((repr(step.failure.error), step.failure.traceparent))
        if step.waiting is not None:
            waiting.append(step.waiting)
    for answer in waiting:
        sent += invocations.finish(answer, b"late").sends
    sent += invocations.close().sends
    return _outcome(world, sent, b"", False, invocations.counts, failures)


def difference(loop: asyncio.AbstractEventLoop, case: Case) -> str:
    """Return how the ways differ, or nothing."""
    together, apart = direct(loop, case, together=True), direct(loop, case, together=False)
    if not together.aborted and any(wire.frame in MALFORMED_LINES for wire in case.wires):
        return "together: a malformed line was taken"
    if together.aborted and apart.aborted:
        # Answers of the aborted read are lost.
        assert isinstance(together.sent, bytes)
        together.sent = apart.sent = b""
        together.passed = apart.passed = b""
        for counts in (together.counts, apart.counts):
            counts["received_bytes"] = counts["sent_bytes"] = 0
    found = _unlike(together, apart, "together", "apart")
    if found or not case.is_clean:
        return found
    expected = plain(case)
    assert isinstance(together.sent, bytes)
    together.sent = publications(together.sent)
    expected.passed = together.passed
    for name in ("received_bytes", "sent_bytes"):  # with their framing, on the direct path
        expected.counts[name] = together.counts[name]
    return _unlike(together, expected, "together", "plain")


def _unlike(one: Outcome, other: Outcome, name: str, other_name: str) -> str:
    for place in fields(Outcome):
        mine, others = getattr(one, place.name), getattr(other, place.name)
        if mine != others:
            return f"{place.name}: {name} and {other_name} differ{_first_difference(mine, others)}"
    return ""


def _first_difference(mine: Any, others: Any) -> str:
    if not isinstance(mine, bytes | list):
        return f": {mine} and {others}"
    at = next((at for at, pair in enumerate(zip(mine, others, strict=False)) if pair[0] != pair[1]), -1)
    at = min(len(mine), len(others)) if at < 0 else at
    start = max(0, at - 60) if isinstance(mine, bytes) else at
    return f" at {at}: {mine[start : at + 60]!r:.400} and {others[start : at + 60]!r:.400}"


# Streams.


class Kind(NamedTuple):
    """Properties that the calls of a run share.

    :ivar traced_at: where the trace's header line is inserted; None: there is none
    """

    function: str
    lines: list[HeaderLine]
    reply: bytes
    traced_at: int | None = None


class Writer:
    """Writes the frames of one case.

    :param is_clean: every frame is well-formed, and all readers agree on it
    """

    def __init__(self, random: Random, functions: Sequence[str], is_clean: bool) -> None:
        self._random = random
        self._functions = {name: number for number, name in enumerate(functions, FUNCTIONS)}
        self._is_clean = is_clean
        self._number = itertools.count(random.choice((0, 95, 10_000)))
        self._rests: dict[int, bytes] = {}  # of the cut parameters, by the token that they are likely to get

    def wires(self) -> list[Wire]:
        """Return a stream."""
        random, wires = self._random, list[Wire]()
        kinds: list[tuple[Callable[[], list[Wire]], int]] = [
            (self._run, 60),
            (self._mixture, 10),
            (self._pieces, 12),
            (self._lines, 6),
            (self._others, 4),
        ]
        choices, weights = zip(*kinds, strict=True)
        number = random.choice((5, 40, FRAMES_OF_CASE_MAX))
        while len(wires) < number:
            wires += random.choices(choices, weights)[0]()
        if not self._is_clean and random.random() < 0.5:
            self._damage(wires)
        return wires

    def _run(self) -> list[Wire]:
        """Return calls of one kind, mostly of one size, with a few that differ."""
        random = self._random
        kind = self._kind()._replace(traced_at=random.choice((None, None, 0, -1)))
        keys = [key for key in KEYS if len(key) == len(random.choice(KEYS))] or [b"k1", b"k2"]
        bucket, value = random.choice(BUCKETS), random.choice(VALUES)
        odd = random.choice((0.0, 0.0, 0.03, 0.3))
        wires = []
        for _ in range(random.choice((1, 2, 3, 5, 8, 12, 40))):
            write = self._odd_call if random.random() < odd else self._call
            wires.append(write(kind, self._params(kind.function, bucket, random.choice(keys), value)))
        return wires

    def _odd_call(self, kind: Kind, params: bytes) -> Wire:
        """Return a call that differs from the others of its run in one way."""
        random = self._random
        match random.randrange(9):
            case 7 if not kind.lines and kind.traced_at is None:
                # Without a reply subject, and as large as if it had one.
                shown, tail = self._reply(kind.reply), b" %d\r\n%b" % (len(params), params)
                filler = b"x" * max(1, len(shown) - 2 - len(b"%d" % (len(shown) + len(tail))))
                return self._call(kind._replace(reply=b""), filler + tail)
            case 8 if not self._is_clean:  # its reply subject is empty
                return Wire(self._call(kind._replace(reply=b"~"), params).frame.replace(b" ~ ", b"  ", 1), None)
            case 0:
                odd = random.choice(ODD_REPLIES[:2] if self._is_clean else ODD_REPLIES)
                if not self._is_clean and random.random() < 0.5:  # as long as the others
                    shown = self._reply(kind.reply)
                    at = random.randrange(len(shown))
                    odd = shown[:at] + random.choice(ODD_BYTES) + shown[at + 1 :]
                return self._call(kind._replace(reply=odd), params)
            case 1:  # as large, but its lengths claim more
                at = random.randrange(len(params))
                return self._call(kind, params[:at] + random.choice(LENGTHS) + params[at + 1 :])
            case 2:
                return self._call(kind, self._cut(kind.function, params))
            case 3:
                return self._call(kind, params + b"\r\nmore")
            case 4:
                return self._call(kind._replace(lines=self._lines_of_block()), params)
            case 5:
                return self._call(kind._replace(function=random.choice(list(self._functions))), params)
            case _:
                return self._call(kind._replace(traced_at=random.choice((None, 0, -1))), params, b"\t ")

    def _mixture(self) -> list[Wire]:
        """Return unrelated calls, or two kinds that alternate."""
        kinds = [self._kind() for _ in range(self._random.choice((2, 6)))] * self._random.choice((1, 4))
        return [self._call(kind, self._any_params(kind.function)) for kind in kinds]

    def _pieces(self) -> list[Wire]:
        """Return cut parameters, and further pieces for possibly half-open calls: the rest, or bytes that do not belong to it."""
        random, wires = self._random, []
        if random.random() < 0.7:
            kind = self._kind()._replace(lines=[])
            wires.append(self._call(kind, self._cut(kind.function, self._any_params(kind.function))))
        for _ in range(random.choice((1, 3))):
            number = random.randint(max(0, len(self._rests) - 4), len(self._rests))
            rest = self._rests.get(number, b"k")
            token, piece = (
                str(number),
                random.choice((b"", b"k", b"\x01", b"\x00", b"\x7f" * 200, rest, rest, rest[:3])),
            )
            if number in self._rests:
                self._rests[number] = rest.removeprefix(piece)
            subject = f"{INBOX}.{token}.params".encode()
            frame = b"MSG %b %d %d\r\n%b\r\n" % (subject, PIECES, len(piece), piece)
            wires.append(Wire(frame, Piece(token, piece)))
        return wires

    def _cut(self, function: str, params: bytes) -> bytes:
        """Return the first piece of parameters, and keep the rest."""
        at = self._random.randrange(len(params))
        if function not in OWN_FUNCTIONS:
            self._rests[len(self._rests)] = params[at:]
        return params[:at]

    def _lines(self) -> list[Wire]:
        if self._random.random() < 0.4:
            max_payload = self._random.choice((7, 64, 300, MAX_PAYLOAD, MAX_PAYLOAD))
            return [Wire(b'INFO {"max_payload": %d}\r\n' % max_payload, Limit(max_payload))]
        return [Wire(self._random.choice(LINES), None)]

    def _others(self) -> list[Wire]:
        """Return frames for nats-py, or for nobody."""
        payload = self._random.choice((b"", b"x", b"MSG f 8 r 2\r\nab\r\n", b"\r\n" * 4))
        subject = b"\xff" if self._random.random() < 0.2 else b"g"
        block = b"NATS/1.0\r\n\r\n"
        if self._random.random() < 0.5:
            return [Wire(b"MSG %b %d r %d\r\n%b\r\n" % (subject, OTHERS, len(payload), payload), None)]
        sizes = b"%d %d" % (len(block), len(block + payload))
        return [Wire(b"HMSG %b %d %b\r\n%b%b\r\n" % (subject, OTHERS, sizes, block, payload), None)]

    def _kind(self) -> Kind:
        return Kind(self._random.choice(list(self._functions)), self._lines_of_block(), self._random.choice(REPLIES))

    def _call(self, kind: Kind, params: bytes, space: bytes = b"") -> Wire:
        function, lines, reply, traced_at = kind
        reply = self._reply(reply)
        subject, number = b"f." + function.encode(), self._functions[function]
        to = b"%b %d %b" % (subject, number, reply + b" " if reply else b"")
        decoded_reply = reply.decode(errors="replace")
        if not lines and traced_at is None:
            frame = b"MSG %b%d\r\n%b\r\n" % (to, len(params), params)
            return Wire(frame, Invoked(function, decoded_reply, None, params))
        if traced_at is not None:
            trace = b"00-%032x-01" % self._random.getrandbits(128)
            if not self._is_clean and self._random.random() < 0.1:
                odd = self._random.choice(
                    (b"\r", b"\n", b" ", b"\r\n", b"\xff", b"\r\nsource-id: c", b"\r\nlink-name: x")
                )
                trace = trace[:9] + odd + trace[9 + len(odd) :]
            traced = (b"traceparent: " + trace + space, ("traceparent", trace.decode(errors="replace")))
            lines = [traced, *lines] if traced_at == 0 else [*lines, traced]
        block = b"NATS/1.0\r\n%b\r\n" % b"".join(line + b"\r\n" for line, _ in lines)
        if not self._is_clean and self._random.random() < 0.02:
            block = block[: -self._random.choice((1, 2, 3, len(block) - 2))]
        frame = b"HMSG %b%d %d\r\n%b%b\r\n" % (to, len(block), len(block) + len(params), block, params)
        headers = dict(header for _, header in lines if header is not None)
        return Wire(frame, Invoked(function, decoded_reply, headers, params))

    def _lines_of_block(self) -> list[HeaderLine]:
        random = self._random
        if random.random() < 0.2:
            return []
        if random.random() < 0.6:  # a host's
            return [random.choice(HEADER_LINES[:3]), random.choice(HEADER_LINES[3:6])]
        known = [line for line in HEADER_LINES if line[1] is not None or not self._is_clean]
        return random.choices(known, k=random.randint(1, 4))

    def _reply(self, reply: bytes) -> bytes:
        return reply % next(self._number) if b"%d" in reply else reply

    def _any_params(self, function: str) -> bytes:
        return self._params(
            function, self._random.choice(BUCKETS), self._random.choice(KEYS), self._random.choice(VALUES)
        )

    def _params(self, function: str, bucket: bytes, key: bytes, value: bytes) -> bytes:
        random = self._random
        match function:
            case "set":
                return encode_set(bucket, key, value)
            case "list-keys":
                return encode_list_keys(bucket, random.choice((None, 0, 2**63, 2**64 - 1)))
            case "increment":
                return encode_increment(bucket, key, random.choice((0, 1, 2**64 - 1)))
            case "get-many" | "delete-many":
                return encode_bucket_keys(bucket, [key, random.choice(KEYS)])
            case "set-many":
                return encode_set_many(bucket, [(key, value), (b"many", b"v")])
            case _:
                return encode_bucket_key(bucket, key)

    def _damage(self, wires: list[Wire]) -> None:
        """Change a byte of a frame or of its line. The result may no longer be valid protocol."""
        random = self._random
        number = random.randrange(len(wires) // 2, len(wires))
        if random.random() < 0.2:
            wires.insert(number, Wire(random.choice(MALFORMED_LINES), None))
            return
        frame = wires[number].frame
        at = random.randrange(min(len(frame), 60)) if frame else 0
        with_byte = random.choice((b"", b" ", b"\r", b"\n", b"0", b"9", b"-", b"\xff", frame[at : at + 1] * 2))
        wires[number] = Wire(frame[:at] + with_byte + frame[at + 1 :], None)


def new_case(seed: int, number: int) -> Case:
    """Return the case of this number."""
    random = Random(f"{seed} {number}")
    is_clean = random.random() < 0.4
    wires = Writer(random, list(World(0).handlers), is_clean).wires()
    sizes = random.choice(((1, 40), (1, 700), (2000, 2**16), (2**20, 2**20)))
    reads = [random.randint(*sizes) for _ in range(random.randint(1, 7))]
    takes, high_water_bytes = random.choice((1, 1, 2, 5)), random.choice((0, 3000, 2**40))
    output_bytes = random.choice((1, 2000, OUTPUT_BYTES))
    return Case(random.getrandbits(60), wires, reads, takes, high_water_bytes, output_bytes, is_clean)


def smallest(loop: asyncio.AbstractEventLoop, case: Case) -> Case:
    """Return a case with as few frames as still show a difference, by leaving out more and more."""
    size = len(case.wires) // 2
    while size:
        at = 0
        while at < len(case.wires):
            fewer = case._replace(wires=case.wires[:at] + case.wires[at + size :])
            if fewer.wires and difference(loop, fewer):
                case = fewer
            else:
                at += size
        size //= 2
    return case


def run(frames: int, seed: int, first: int = 0) -> str:
    """Run cases with this many frames in all. Return the first difference, or nothing."""
    loop = asyncio.new_event_loop()
    try:
        for number in itertools.count(first):
            case = new_case(seed, number)
            if found := difference(loop, case):
                case = smallest(loop, case)
                shown = "\n".join(f"  {wire.frame!r}" for wire in case.wires)
                return f"seed {seed}, case {number}: {found}\n{case._replace(wires=[])}\n{shown}"
            frames -= len(case.wires)
            if frames <= 0:
                return ""
    finally:
        loop.close()
        protocol_module.OUTPUT_BYTES, writing_protocol.FULL_BYTES = OUTPUT_BYTES, FULL_BYTES
    raise AssertionError("cases do not end")
