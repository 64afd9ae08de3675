"""Captured invocations, and a client that replays them: README.md describes the file.

    load() ──> Vector ── state ──> preparation(state): calls that bring a server there
                  └──> Replay: what the captured client sends, and what comes back ──> results_allowed(vector)

This module knows the file and the wire, and nothing of the code under test, which is judged by the bytes. `Replay` does
no I/O, so the same replay runs against the state machine and, over NATS, against a running provider.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, permutations
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

__all__ = ["MAX_PAYLOAD", "Message", "Publish", "Replay", "State", "Vector", "load", "preparation", "results_allowed"]

PATH = Path(__file__).parent / "wrpc_nats_store.json"

#: The largest message of the capture's NATS server.
MAX_PAYLOAD = 1024 * 1024

Arguments: TypeAlias = tuple[bytes | int | None, ...]

#: Buckets, each with all its keys and values. A bucket without keys was written once, and emptied.
State: TypeAlias = Mapping[bytes, Mapping[bytes, bytes]]

BIG = (bytes(range(251)) * 10445)[:2621440]
BIG_LENGTH = bytes.fromhex("8080a001")
#: Bytes that the chunked vectors give only by a checksum: parameters of the set, and result of the get.
BIG_PARAMS = b"\x06bucket\x03big" + BIG_LENGTH + BIG
BIG_RESULT = b"\x00\x01" + BIG_LENGTH + BIG

NO_SUCH_STORE = b"\x01\x00"
#: Results for an unknown bucket of a provider that treats it as an empty one.
OF_AN_EMPTY_BUCKET = {"get": b"\x00\x00", "exists": b"\x00\x00", "delete": b"\x00"}

KEYS = {b"a": b"1", b"bb": b"2", b"key": b"value"}
#: Values of the key, by a text in `state_before`.
VALUES = {
    "key exists": b"value",
    'key holds "value"': b"value",
    'key holds "2"': b"2",
    "key holds one zero byte": b"\x00",
    "key holds ff00fe": b"\xff\x00\xfe",
    "key holds 200 bytes 00..c7": bytes(range(200)),
    "key holds 2621440 bytes": BIG,
    "key holds 2621440 bytes, which stay": BIG,
    "key was set to no bytes": b"",
}
#: Content of the bucket, by a text in `state_before`.
BUCKETS: Mapping[str, Mapping[bytes, bytes]] = {
    "bucket exists": {b"another": b""},
    "bucket exists, key does not": {b"another": b""},
    "bucket exists and holds no key": {},
    "bucket holds keys": KEYS,
    'bucket holds "key"': {b"key": b"value"},
    'bucket holds "a", "bb" and "key"': KEYS,
    'bucket holds "键🔑"': {"键🔑".encode(): b"value"},
}
#: Texts that mean that nothing was written.
NOTHING = {
    "any",
    "fixed answer",
    "bucket never written or listed",
    "first repetition: bucket never written",
    "first repetition: bucket never written or listed",
    "bucket never written, but listed: list-keys made it",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A message. `{R_c}` and `{R_s}` stand for the inboxes of client and server."""

    sender: str  # client | server
    what: str  # invocation | handshake | params | params-end | result | result-end
    subject: str
    reply: str | None
    header_block: bytes | None
    payload: bytes = field(repr=False)

    @property
    def headers(self) -> dict[str, str] | None:
        """Return the headers, or None without a header block."""
        if self.header_block is None:
            return None
        lines = self.header_block.decode().removesuffix("\r\n\r\n").split("\r\n")
        assert lines[0] == "NATS/1.0"
        return dict(line.split(": ", 1) for line in lines[1:])


@dataclass(frozen=True, slots=True)
class Vector:
    """A captured invocation.

    :param arguments: as the server should read them; None where the client sent malformed parameters
    :param fixed: the server gave a fixed answer to any call
    :param state: the server's content before
    :param outcome: the client's outcome, in words
    :param orders: the orders in which the messages came, over the repetitions
    """

    name: str
    function: str
    arguments: Arguments | None = field(repr=False)
    fixed: bool
    state: State = field(repr=False)
    outcome: str
    orders: tuple[tuple[str, ...], ...] = field(repr=False)
    messages: tuple[Message, ...] = field(repr=False)

    @property
    def invocation(self) -> Message:
        """Return the first message."""
        return self.messages[0]

    @property
    def pieces(self) -> list[bytes]:
        """Return the parameters, as the client cut them."""
        return [message.payload for message in self.messages if message.what in ("invocation", "params")]

    @property
    def params(self) -> bytes:
        """Return the parameters, joined."""
        return b"".join(self.pieces)

    @property
    def answer(self) -> list[tuple[str, bytes]]:
        """Return what the server sent, in order: `what` and payload."""
        return [(message.what, message.payload) for message in self.messages if message.sender == "server"]

    @property
    def result(self) -> bytes | None:
        """Return the result, joined, or None if the invocation ended without one."""
        pieces = [message.payload for message in self.messages if message.what == "result"]
        return b"".join(pieces) if pieces else None

    @property
    def closings_last(self) -> list[bool]:
        """Return where the client's closing message was seen: after the end of the result (True), before it, or both."""
        return sorted({order.index("params-end") > order.index("result-end") for order in self.orders})


def load() -> list[Vector]:
    """Return all vectors of the file.

    :raises ValueError: a message given by its checksum is not the one that this module expects
    """
    raw: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
    return [_vector(vector) for vector in raw]


def preparation(state: State) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """Yield calls, by function and arguments, that bring an empty server into a state."""
    for bucket, entries in state.items():
        for key, value in entries.items():
            yield "set", (bucket, key, value)
        if not entries:
            yield "set", (bucket, b"passing", b"")
            yield "delete", (bucket, b"passing")


def results_allowed(vector: Vector, *, strict_buckets: bool = False) -> frozenset[bytes]:
    """Return the results that our provider may give for a vector. If there are none, it ends the invocation without one.

    They are the captured one, except for

    - the order of keys, which is free;
    - a cursor, which the example refuses: a page of the keys at or after it, in any order;
    - an empty value, which the example cannot distinguish from a missing key;
    - an unknown bucket: empty, unless `strict_buckets`. The example creates one in list-keys by mistake.

    The keys of a page are few and short enough to try all orders.
    """
    if vector.result is None:
        return frozenset()
    if vector.function == "list-keys":
        assert vector.arguments is not None
        bucket, cursor = vector.arguments
        assert isinstance(bucket, bytes)
        keys = [bytes([len(key)]) + key for key in vector.state.get(bucket, {})]
        counts = [len(keys)] if cursor is None else range(len(keys) + 1)
        orders = chain.from_iterable(permutations(keys, count) for count in counts)
        return frozenset(bytes([0, len(order), *b"".join(order), 0]) for order in orders)
    if vector.name == "get-empty-value":
        return frozenset({b"\x00\x01\x00"})
    if strict_buckets and vector.name == "get-after-list-keys":
        return frozenset({NO_SUCH_STORE})
    if not strict_buckets and vector.result == NO_SUCH_STORE:
        return frozenset({OF_AN_EMPTY_BUCKET[vector.function]})
    return frozenset({vector.result})


class Publish(NamedTuple):
    """A message that the client sends."""

    subject: str
    payload: bytes
    reply: str = ""
    headers: dict[str, str] | None = None


class Replay:
    """A client that replays a vector, without I/O.

    :ivar answer: the messages that came back, as in `Vector.answer`
    :param inbox: R_c; pass messages to it and to `{inbox}.results` to `receive`
    :param prefix: the server's; None: the captured one
    :param pieces: of the parameters; None: as captured
    :param closing_last: close the parameters only when the result has ended, and not at once
    """

    def __init__(
        self,
        vector: Vector,
        inbox: str,
        *,
        prefix: str | None = None,
        pieces: Sequence[bytes] | None = None,
        closing_last: bool = False,
    ) -> None:
        subject = vector.invocation.subject
        if prefix is not None:
            subject = f"{prefix}.wrpc.{subject.partition('.wrpc.')[2]}"
        self._inbox = inbox
        self._pieces = list(vector.pieces if pieces is None else pieces)
        self._first = Publish(subject, self._pieces.pop(0), inbox, vector.invocation.headers)
        self._closing_last = closing_last
        self._server_inbox = ""
        self.answer: list[tuple[str, bytes]] = []

    @property
    def ended(self) -> bool:
        """Return True if the result has ended."""
        return bool(self.answer) and self.answer[-1][0] == "result-end"

    @property
    def result(self) -> bytes | None:
        """Return the result that came, joined, or None."""
        pieces = [payload for what, payload in self.answer if what == "result"]
        return b"".join(pieces) if pieces else None

    def start(self) -> Publish:
        """Return the invocation."""
        return self._first

    def receive(self, subject: str, payload: bytes, reply: str = "") -> list[Publish]:
        """Take a message of the server, which must arrive in order. Return the messages to send next."""
        if subject == self._inbox:
            assert self.answer == [], "the handshake comes first, and once"
            assert reply, "the handshake names the server's inbox"
            self.answer.append(("handshake", payload))
            self._server_inbox = reply
            sends = [Publish(f"{reply}.params", piece) for piece in self._pieces]
            return sends if self._closing_last else [*sends, self._closing]
        assert subject == f"{self._inbox}.results"
        assert not reply
        assert self.answer, "the handshake precedes the result"
        assert not self.ended, "nothing comes after the end"
        self.answer.append(("result" if payload else "result-end", payload))
        return [self._closing] if self._closing_last and self.ended else []

    @property
    def _closing(self) -> Publish:
        return Publish(f"{self._server_inbox}.params", b"")


def _vector(raw: dict[str, Any]) -> Vector:
    arguments = _arguments(raw)
    return Vector(
        name=raw["name"],
        function=raw["op"],
        arguments=arguments,
        fixed=raw["server"].endswith("with a fixed answer"),
        state=_state(raw, arguments),
        outcome=raw["outcome_at_client"],
        orders=tuple(tuple(order.split()) for order in raw["orders_seen"]),
        messages=tuple(_messages(raw)),
    )


def _messages(raw: dict[str, Any]) -> Iterator[Message]:
    streams = {"client": BIG_PARAMS, "server": BIG_RESULT}
    for message in raw["messages"]:
        sender = message["from"]
        size = message["payload_len"]
        if "payload_hex" in message:
            payload = bytes.fromhex(message["payload_hex"])
        else:
            payload = streams[sender][:size]
            if sha256(payload).hexdigest() != message["payload_sha256"]:
                raise ValueError(f"{raw['name']}: found another checksum than that of a piece of {size} bytes")
            streams[sender] = streams[sender][size:]
        if len(payload) != size:
            raise ValueError(f"{raw['name']}: found {len(payload)} bytes, announced {size}")
        header_block = None if message["header_hex"] is None else bytes.fromhex(message["header_hex"])
        yield Message(sender, message["what"], message["subject"], message["reply"], header_block, payload)


def _arguments(raw: dict[str, Any]) -> Arguments | None:
    args = raw["args"]
    match raw["op"], args:
        case _, {"params_hex": _}:
            return None
        case "set", {"bucket": str(bucket), "key": str(key), "value_hex": str(value)}:
            return bucket.encode(), key.encode(), bytes.fromhex(value)
        case "set", {"bucket": str(bucket), "key": str(key), "value": "2621440 bytes, byte i is i mod 251"}:
            return bucket.encode(), key.encode(), BIG
        case "get" | "delete" | "exists", {"bucket": str(bucket), "key": str(key)}:
            return bucket.encode(), key.encode()
        case "list-keys", {"bucket": str(bucket), "cursor": cursor}:
            return bucket.encode(), None if cursor is None else int(cursor)
    raise ValueError(f"{raw['name']}: found arguments of another form: {sorted(args)}")


def _state(raw: dict[str, Any], arguments: Arguments | None) -> State:
    before = raw["state_before"]
    if raw["name"] == "trailing-bytes":  # its arguments are not in the file; its bytes ask for "bb"
        return {b"bucket": {b"bb": b"2"}}
    if before in NOTHING:
        return {}
    if arguments is None:
        raise ValueError(f"{raw['name']}: found no bucket to hold what is said of it: {before}")
    bucket = arguments[0]
    assert isinstance(bucket, bytes)
    if before in VALUES:
        key = arguments[1]
        assert isinstance(key, bytes)
        return {bucket: {key: VALUES[before]}}
    return {bucket: BUCKETS[before]}
