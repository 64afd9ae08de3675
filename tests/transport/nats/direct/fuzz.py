"""Random streams through the direct path in three ways, which must not differ.

    together  cut anywhere into reads, with what is learnt about frames that are alike, and a socket that blocks
    apart     one frame after the other, each taken apart
    plain     handlers and core as the plain path calls them, for the cases whose frames are all well-formed

usage: python -m tests.transport.nats.direct.fuzz [--frames N] [--seed N] [--case N]

A case is one stream with its own store, links and policy. Its random numbers follow from the seed and its number, so `--case` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import Links, key_of
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import atomics_handlers, atomics_tallies, encode_increment
from keyvalue_transport.keyvalue.batch import batch_handlers, batch_tallies, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set, store_handlers, store_tallies
from keyvalue_transport.nats.direct import protocol as protocol_module
from keyvalue_transport.nats.direct.protocol import OUTPUT_BYTES, DirectProtocol
from keyvalue_transport.nats.direct.routes import InOrder
from keyvalue_transport.nats.headers import headers_of
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Invocations
from tests.conftest import options_of
from tests.invoking import invoke
from tests.transport.nats.direct.scene import (
    INBOX,
    NOBODY,
    OTHERS,
    PIECES,
    Reader,
    Socket,
    Unawaited,
    direct_core,
    publications,
)

__all__ = ["main", "run"]

CHANGES = PIECES + 1  # the subscription to what the host says
FUNCTIONS = CHANGES + 1  # the first of the functions' subscriptions
PROVIDER = "kv"
MAX_PAYLOAD = 5000
LIMITS = InvocationLimits(half_open_max=6, half_open_bytes_max=900, waiting_max=3)
OPTIONS = StoreOptions(key_bytes_max=200, value_bytes_max=400, bucket_name_bytes_max=8, buckets_max=4, keys_max=40)
FRAMES_OF_CASE_MAX = 600
PROGRESS_FRAMES = 500_000

BUCKETS = (b"b", b"b", b"b", b"c", b"", b"\xc3\xb6", b"\xff", b"b" * 9)
KEYS = (b"k1", b"k2", b"k3", b"kk", b"\xc3\xb6", b"\xff\xff", b"k", b"", b"k" * 130, b"MSG f 8 r 2\r\nab\r\n", b"\r\n")
VALUES = (b"", b"v", b"w", b"\r\n" * 20, b"x" * 127, b"y" * 128, b"z" * 400, b"Z" * 401)
REPLIES = (b"r", b"_INBOX.abcdefgh.%d", b"_INBOX.abcdefgh.%d", b"_INBOX.abcdefgh.%d", b"R.%d\xc3\xb6")
ODD_REPLIES = (b"", b"", b"a\rb", b"a b", b"\xff", b"a\nb", b"5", b"a\tb")
LINES = (b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'MSG f 8 r 2'\r\n", b"\r\n", b"\n\r\n", b"msg f 8 r 2\r\n")
MALFORMED_LINES = (
    *(b"MSG\r\n", b"MSG f 5\r\n", b"MSG f 9 r more 2\r\n", b"MSG f 9 r -1\r\n", b"MSG f 9 r x\r\n"),
    *(b"HMSG f 1 12\r\n", b"HMSG f 9 r 12 11\r\n", b"HMSG f 9 r -1 11\r\n", b"HMSG f 9 r more 1 12\r\n"),
    *(b"MSG f 9 r 4294967296\r\n", b"MSG \xff\r\n"),
)
#: Header lines, and what a reader finds in them; None: readers may differ.
HEADER_LINES: tuple[tuple[bytes, tuple[str, str] | None], ...] = (
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
LINK_CONFIGS: tuple[dict[str, str], ...] = (
    {},
    {"access": "read-only"},
    {"bucket_prefix": "p"},
    {"bucket": "c", "access": "read-write"},
    {"access": "malformed"},
    {"quota_keys": "3"},
)
CONFIGS: tuple[dict[str, str], ...] = ({}, {}, {"access": "read-only"}, {"require_link": "true"})


class Invoked(NamedTuple):
    """The first message of an invocation, as nats-py gives it to the plain path."""

    function: str
    reply: str
    headers: dict[str, str] | None
    piece: bytes


class Piece(NamedTuple):
    token: str
    piece: bytes


class Change(NamedTuple):
    payload: bytes


class Limit(NamedTuple):
    max_payload: int


Message = Invoked | Piece | Change | Limit | None


class Wire(NamedTuple):
    """A frame or line, and what it means to the plain path."""

    frame: bytes
    message: Message


# What a case is carried out on.


class World:
    """A store with links and a policy, its handlers, and two that fail and wait. Notes each call."""

    def __init__(self, seed: int) -> None:
        self.store = Store(OPTIONS, seed=seed)
        self.links = Links(PROVIDER)
        self.policy = Policy(OPTIONS, self.links, ProviderOptions.of_store(OPTIONS))
        self.service = service = Service(self.store, self.policy)
        self.tallies = store_tallies() | atomics_tallies() | batch_tallies()
        self.calls: list[tuple[str, Caller, int]] = []
        limits = service.parameter_limits
        handlers = {
            **store_handlers(service, limits, self.tallies),
            **atomics_handlers(service, limits, self.tallies),
            **batch_handlers(service, limits, self.tallies),
            "fail": _fail,
            "wait": lambda caller, buffer, start, end: Unawaited(),
            "echo": lambda caller, buffer, start, end: buffer[start:end],
            "silent": lambda caller, buffer, start, end: b"",
            "large": lambda caller, buffer, start, end: bytes(MAX_PAYLOAD + 10),
        }
        self.handlers = {name: self._noting(name, handler) for name, handler in handlers.items()}

    def _noting(self, name: str, handler: Handler) -> Handler:
        note = self.calls.append

        def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
            note((name, caller, end - start))
            return handler(caller, buffer, start, end)

        return handle

    def change(self, payload: bytes) -> bool:
        """Take what the host says as its session does. Return True if the policy must be told of links."""
        told = json.loads(payload)
        if "source_id" not in told:
            self.policy.configure(options_of(told))
            self.service.policy_changed()
            return False
        key = key_of(told)
        assert key is not None
        if told.get("deleted"):
            self.links.delete(key)
        else:
            with suppress(FieldError):  # it is noted in the links
                self.links.put_value(told)
        return True

    def tell(self) -> None:
        self.policy.links_changed()
        self.service.policy_changed()


def _fail(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
    raise RuntimeError(buffer[start:end])


@dataclass
class Outcome:
    """What a way made of a case."""

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
    """A stream, and how it is cut: reads of these sizes, one after the other again and again.

    :ivar takes: the peer takes what was written after each so-manieth read
    :ivar output_bytes: those that are written before more is parsed
    """

    seed: int
    wires: list[Wire]
    reads: list[int]
    takes: int
    high_water_bytes: int
    output_bytes: int
    is_clean: bool


def direct(loop: asyncio.AbstractEventLoop, case: Case, together: bool) -> Outcome:
    """Return what the direct path makes of a case: together, or apart."""
    world = World(case.seed)
    protocol_module.OUTPUT_BYTES = case.output_bytes
    routes, invocations, steps = direct_core(LIMITS, alike=together, max_payload=MAX_PAYLOAD)

    def take(payload: bytes) -> None:
        if world.change(payload):
            if together:
                routes.before_next_call(world.tell)
            else:
                world.tell()

    routes.add(CHANGES, InOrder(take))
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
    return _outcome(world, b"".join(sent), b"".join(reader.pieces), socket.aborted, invocations.counts, failures)


def _reads(case: Case) -> Iterator[bytes]:
    stream = b"".join(wire.frame for wire in case.wires)
    at = 0
    for size in itertools.cycle(case.reads):
        if at >= len(stream):
            return
        yield stream[at : at + size]
        at += size


def plain(case: Case) -> Outcome:
    """Return what the plain path makes of a case."""
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
            case Change(payload):
                if world.change(payload):
                    world.tell()
                continue
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
    """Return what differs between the ways, or nothing."""
    together, apart = direct(loop, case, together=True), direct(loop, case, together=False)
    if not together.aborted and any(wire.frame in MALFORMED_LINES for wire in case.wires):
        return "together: a malformed line was taken"
    if together.aborted and apart.aborted:
        # Answers of the read that was aborted are lost.
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


class Writer:
    """Writes the frames of one case.

    :param is_clean: each frame is well-formed, and what it means is the same for every reader
    """

    def __init__(self, random: Random, functions: Sequence[str], is_clean: bool) -> None:
        self._random = random
        self._functions = {name: number for number, name in enumerate(functions, FUNCTIONS)}
        self._is_clean = is_clean
        self._number = itertools.count(random.choice((0, 95, 10_000)))
        self._cuts = 0

    def wires(self) -> list[Wire]:
        """Return a stream."""
        random, wires = self._random, list[Wire]()
        kinds: list[tuple[Callable[[], list[Wire]], int]] = [
            (self._run, 60),
            (self._mixture, 10),
            (self._pieces, 12),
            (self._lines, 6),
            (self._changes, 8),
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
        """Return calls of one function by one caller, mostly of one size, with some that are not like the others."""
        random = self._random
        function = random.choice(list(self._functions))
        lines, reply, traced_at = self._lines_of_block(), random.choice(REPLIES), random.choice((None, None, 0, -1))
        keys = [key for key in KEYS if len(key) == len(random.choice(KEYS))] or [b"k1", b"k2"]
        bucket, value = random.choice(BUCKETS), random.choice(VALUES)
        odd = random.choice((0.0, 0.0, 0.03, 0.3))
        changes = random.choice((0.0, 0.0, 0.0, 0.1))
        wires = []
        for _ in range(random.choice((1, 2, 3, 5, 8, 12, 40))):
            key = random.choice(keys)
            if random.random() < changes:
                wires += self._changes()
            if random.random() < odd:
                wires.append(self._odd_call(function, lines, bucket, key, value, reply, traced_at))
            else:
                params = self._params(function, bucket, key, value)
                wires.append(self._call(function, lines, params, self._reply(reply), traced_at))
        return wires

    def _odd_call(
        self,
        function: str,
        lines: list[tuple[bytes, tuple[str, str] | None]],
        bucket: bytes,
        key: bytes,
        value: bytes,
        reply: bytes,
        traced_at: int | None,
    ) -> Wire:
        """Return a call that is like the others of its run but for one thing."""
        random = self._random
        params = self._params(function, bucket, key, value)
        match random.randrange(9):
            case 7 if not lines and traced_at is None:
                # Without a reply subject, and as large as if it had one.
                shown, tail = self._reply(reply), b" %d\r\n%b" % (len(params), params)
                filler = b"x" * max(1, len(shown) - 2 - len(b"%d" % (len(shown) + len(tail))))
                return self._call(function, [], filler + tail, b"", None)
            case 8 if not self._is_clean:  # the word of its reply subject is empty
                wire = self._call(function, lines, params, b"~", traced_at)
                return Wire(wire.frame.replace(b" ~ ", b"  ", 1), None)
            case 0:
                odd = random.choice(ODD_REPLIES[:2] if self._is_clean else ODD_REPLIES)
                return self._call(function, lines, params, odd, traced_at)
            case 1:  # as large, but its lengths claim more
                at = random.randrange(len(params)) if params else 0
                damaged = params[:at] + bytes([random.choice((0, 1, 2, 3, 127, 128, 255))]) + params[at + 1 :]
                self._cuts += 1
                return self._call(function, lines, damaged, self._reply(reply), traced_at)
            case 2:
                self._cuts += 1
                return self._call(
                    function, lines, params[: random.randint(0, len(params))], self._reply(reply), traced_at
                )
            case 3:
                return self._call(function, lines, params + b"\r\nmore", self._reply(reply), traced_at)
            case 4:
                return self._call(function, self._lines_of_block(), params, self._reply(reply), traced_at)
            case 5:
                return self._call(random.choice(list(self._functions)), lines, params, self._reply(reply), traced_at)
            case _:
                return self._call(function, lines, params, self._reply(reply), random.choice((None, 0, -1)), b"\t ")

    def _mixture(self) -> list[Wire]:
        """Return calls that have nothing in common, or two kinds that alternate."""
        random = self._random
        kinds = [
            (random.choice(list(self._functions)), self._lines_of_block(), random.choice(REPLIES))
            for _ in range(random.choice((2, 6)))
        ]
        wires = []
        for function, lines, reply in kinds * random.choice((1, 4)):
            params = self._params(function, random.choice(BUCKETS), random.choice(KEYS), random.choice(VALUES))
            wires.append(self._call(function, lines, params, self._reply(reply), None))
        return wires

    def _pieces(self) -> list[Wire]:
        """Return further pieces of parameters, of invocations that may be half-open."""
        random, wires = self._random, []
        for _ in range(random.choice((1, 3))):
            token = str(max(0, self._cuts - random.randrange(8)))
            piece = random.choice((b"", b"k", b"\x01", b"\x00", b"xyz" * 9, b"\x7f" * 200))
            subject = f"{INBOX}.{token}.params".encode()
            frame = b"MSG %b %d %d\r\n%b\r\n" % (subject, PIECES, len(piece), piece)
            wires.append(Wire(frame, Piece(token, piece)))
        return wires

    def _lines(self) -> list[Wire]:
        if self._random.random() < 0.4:
            max_payload = self._random.choice((7, 64, 300, MAX_PAYLOAD, MAX_PAYLOAD))
            return [Wire(b'INFO {"max_payload": %d}\r\n' % max_payload, Limit(max_payload))]
        return [Wire(self._random.choice(LINES), None)]

    def _changes(self) -> list[Wire]:
        random, wires = self._random, []
        for _ in range(random.choice((1, 1, 3))):
            told: dict[str, object] = {**random.choice(CONFIGS)}
            if random.random() < 0.8:
                config, is_deleted = random.choice(LINK_CONFIGS), random.random() < 0.25
                told = {"source_id": random.choice("abc"), "target": PROVIDER, "name": "default"}
                told |= {"target_config": config, "deleted": is_deleted}
            payload = json.dumps(told).encode()
            frame = b"MSG host %d %d\r\n%b\r\n" % (CHANGES, len(payload), payload)
            wires.append(Wire(frame, Change(payload)))
        return wires

    def _others(self) -> list[Wire]:
        """Return frames that are nats-py's, or of no use to anybody."""
        payload = self._random.choice((b"", b"x", b"MSG f 8 r 2\r\nab\r\n", b"\r\n" * 4))
        subject = b"\xff" if self._random.random() < 0.2 else b"g"
        block = b"NATS/1.0\r\n\r\n"
        if self._random.random() < 0.5:
            return [Wire(b"MSG %b %d r %d\r\n%b\r\n" % (subject, OTHERS, len(payload), payload), None)]
        sizes = b"%d %d" % (len(block), len(block + payload))
        return [Wire(b"HMSG %b %d %b\r\n%b%b\r\n" % (subject, OTHERS, sizes, block, payload), None)]

    def _call(
        self,
        function: str,
        lines: list[tuple[bytes, tuple[str, str] | None]],
        params: bytes,
        reply: bytes,
        traced_at: int | None,
        space: bytes = b"",
    ) -> Wire:
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

    def _lines_of_block(self) -> list[tuple[bytes, tuple[str, str] | None]]:
        random = self._random
        if random.random() < 0.2:
            return []
        if random.random() < 0.6:  # a host's
            return [random.choice(HEADER_LINES[:3]), random.choice(HEADER_LINES[3:6])]
        known = [line for line in HEADER_LINES if line[1] is not None or not self._is_clean]
        return random.choices(known, k=random.randint(1, 4))

    def _reply(self, reply: bytes) -> bytes:
        return reply % next(self._number) if b"%d" in reply else reply

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
        """Change a byte of a frame, its line too. What comes may be no protocol any more."""
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
    """Return a case by its number."""
    random = Random(f"{seed} {number}")
    is_clean = random.random() < 0.4
    wires = Writer(random, list(World(0).handlers), is_clean).wires()
    sizes = random.choice(((1, 40), (1, 700), (2000, 2**16), (2**20, 2**20)))
    reads = [random.randint(*sizes) for _ in range(random.randint(1, 7))]
    takes, high_water_bytes = random.choice((1, 1, 2, 5)), random.choice((0, 3000, 2**40))
    output_bytes = random.choice((1, 2000, OUTPUT_BYTES))
    return Case(random.getrandbits(60), wires, reads, takes, high_water_bytes, output_bytes, is_clean)


def smallest(loop: asyncio.AbstractEventLoop, case: Case) -> Case:
    """Return a case with as few frames as still differ, found by leaving out more and more."""
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


def run(frames: int, seed: int, first: int = 0, tell: Callable[[str], object] = lambda line: None) -> str:
    """Carry out cases with this many frames in all, and return the first difference, or nothing."""
    loop = asyncio.new_event_loop()
    try:
        carried_out = 0
        for number in itertools.count(first):
            case = new_case(seed, number)
            found = difference(loop, case)
            if found:
                case = smallest(loop, case)
                shown = "\n".join(f"  {wire.frame!r}" for wire in case.wires)
                return f"seed {seed}, case {number}: {found}\n{case.reads} {case.takes} {case.high_water_bytes} {case.output_bytes}\n{shown}"
            before, carried_out = carried_out, carried_out + len(case.wires)
            if carried_out // PROGRESS_FRAMES > before // PROGRESS_FRAMES:
                tell(f"{carried_out} frames, {number - first + 1} cases: no difference")
            if carried_out >= frames:
                tell(f"{carried_out} frames, {number - first + 1} cases, seed {seed}: no difference")
                return ""
    finally:
        loop.close()
        protocol_module.OUTPUT_BYTES = OUTPUT_BYTES
    raise AssertionError("cases do not end")


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, default=0, help="the first case")
    arguments = parser.parse_args()
    logging.disable()  # links are malformed, and handlers fail

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    found = run(arguments.frames, arguments.seed, arguments.case, tell)
    if found:
        tell(found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
