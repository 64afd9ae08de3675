"""Our codec, client and server against messages captured between the Go client and the Go provider."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import (
    ParameterLimits,
    decode_unit_result,
    encode_bucket_key,
    encode_error,
    encode_unit_result,
)
from keyvalue_transport.keyvalue.store import (
    STORE,
    KeyResponse,
    decode_delete,
    decode_exists,
    decode_get,
    decode_get_result,
    decode_key_response,
    decode_list_keys,
    decode_set,
    decode_truth_result,
    encode_get_result,
    encode_key_response,
    encode_list_keys,
    encode_set,
    encode_truth_result,
    store_handlers,
)
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.subjects import invocation_subject, params_token
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import DecodeError, InvocationEndedError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, Invocations, Step
from tests.invoking import invoke
from tests.recorded_replies import Later
from tests.vectors import MAX_PAYLOAD, Publish, Replay, Vector, load, preparation, results_allowed

#: As long as the captured ones: the size of a first piece depends on it.
CLIENT_INBOX = "_INBOX." + "c" * 22
SERVER_INBOX = "_INBOX.server"
NOBODY = "_INBOX.nobody"
SEED = 1
SMALL_BYTES_MAX = 512

ENCODE: dict[str, Callable[..., bytes]] = {
    "get": encode_bucket_key,
    "set": encode_set,
    "delete": encode_bucket_key,
    "exists": encode_bucket_key,
    "list-keys": encode_list_keys,
}
DECODE: dict[str, Callable[[bytes, int, int, ParameterLimits], tuple[tuple[Any, ...], int]]] = {
    "get": decode_get,
    "set": decode_set,
    "delete": decode_delete,
    "exists": decode_exists,
    "list-keys": decode_list_keys,
}
ENCODE_RESULT: dict[str, Callable[[Any], bytes]] = {
    "get": encode_get_result,
    "set": encode_unit_result,
    "delete": encode_unit_result,
    "exists": encode_truth_result,
    "list-keys": encode_key_response,
}
DECODE_RESULT: dict[str, Callable[[bytes, int, int], tuple[object, int]]] = {
    "get": decode_get_result,
    "set": decode_unit_result,
    "delete": decode_unit_result,
    "exists": decode_truth_result,
    "list-keys": decode_key_response,
}
#: Answers of the servers with a fixed one, by what the vectors' names say.
FIXED: dict[str, object] = {
    "some-empty": b"",
    "none": None,
    "cursor-some-0": KeyResponse([b"a"], 0),
    "cursor-some-300": KeyResponse([b"a", b"", "键".encode()], 300),
    "cursor-some-max": KeyResponse([], 2**64 - 1),
    "no-such-store": NoSuchStoreError(),
    "access-denied": AccessDeniedError(),
    "other": OtherError("сбой: disk"),
    "handler-failed": RuntimeError("the handler failed"),
}
#: What our server finds wrong with parameters; only its log says it.
FAULTS = {
    "damaged-no-params": "found 0 bytes of parameters of at least 1",
    "damaged-not-utf8": "found a string that is not UTF-8 at its byte 1",
    "damaged-option-tag": "found 2 as the tag of an option, allowed 0 to 1",
    "chunked-set-library-as-it-is": "found 1048413 bytes of parameters of at least 2621455",
}

VECTORS = load()
READABLE = [vector for vector in VECTORS if vector.arguments is not None and vector.name not in FAULTS]
ENGINE = [vector for vector in VECTORS if not vector.fixed]
SMALL = [vector for vector in ENGINE if 0 < len(vector.params) <= SMALL_BYTES_MAX]
STRICT = [vector for vector in ENGINE if results_allowed(vector) != results_allowed(vector, strict_buckets=True)]
ANSWERED = [vector for vector in VECTORS if vector.result is not None]


def each(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=[vector.name for vector in vectors])


WAITING = pytest.mark.parametrize("waiting", [False, True], ids=["plain", "coroutine"])


class FixedStore:
    """`store` that gives or raises the same whatever is asked."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def _give(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> bytes | None:
        return self._give()  # type: ignore[no-any-return]

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        self._give()

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        self._give()

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> bool:
        return self._give()  # type: ignore[no-any-return]

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
        return self._give()  # type: ignore[no-any-return]


class Server:
    """Our server's core in the state of a vector, without a network."""

    def __init__(self, vector: Vector, *, waiting: bool = False, strict_buckets: bool = False) -> None:
        self.store = Store(StoreOptions(strict_buckets=strict_buckets), seed=SEED)
        for function, (bucket, *rest) in preparation(vector.state):
            getattr(self.store.bucket(bucket), function)(*rest)
        service = Service(self.store)
        if vector.fixed:
            answer = next(answer for name, answer in FIXED.items() if vector.name.endswith(name))
            handlers = store_handlers(FixedStore(answer), service.parameter_limits)
        else:
            handlers = store_handlers(service, service.parameter_limits)
        tokens = count()
        replies = SubjectReplies(SERVER_INBOX, NOBODY, SimpleNamespace(max_payload=MAX_PAYLOAD))
        self.invocations = Invocations(replies, lambda: str(next(tokens)))
        self.callers: list[Caller] = []
        self.failures: list[Exception] = []
        prefix = vector.invocation.subject.partition(".wrpc.")[0]
        self._handlers = {
            invocation_subject(prefix, STORE, function): self._wrapped(handler, waiting)
            for function, handler in handlers.items()
        }

    async def serve(self, replay: Replay) -> None:
        """Pass on all messages between the replayed client and this server, until neither sends any."""
        published = deque([replay.start()])
        while published:
            step = self._receive(published.popleft())
            published += self._told(replay, step)
            if step.waiting is not None:
                while published:  # what the client sends without an answer comes while the handler is waited for
                    published += self._told(replay, self._receive(published.popleft()))
                pending = step.waiting.pending
                answer = asyncio.ensure_future(pending.answer)
                await asyncio.wait([answer])
                try:
                    result: bytes | Exception = pending.encode(answer.result)
                except Exception as error:
                    result = error
                published += self._told(replay, self.invocations.finish(step.waiting, result))

    def _receive(self, publish: Publish) -> Step[str, Send]:
        if publish.reply:
            headers = publish.headers or {}
            caller = Caller(headers.get("source-id"), headers.get("link-name"))
            return invoke(
                self.invocations, self._handlers[publish.subject], publish.reply, caller, publish.payload, 0.0
            )
        if publish.subject.startswith(NOBODY):
            return Step([])
        return self.invocations.receive_params(params_token(publish.subject), publish.payload, 0.0)

    def _told(self, replay: Replay, step: Step[str, Send]) -> list[Publish]:
        if step.failure is not None:
            self.failures.append(step.failure.error)
        return [publish for send in step.sends for publish in replay.receive(*send)]

    def _wrapped(self, handler: Handler, waiting: bool) -> Handler:
        def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
            answer = handler(caller, buffer, start, end)
            self.callers.append(caller)
            assert isinstance(answer, bytes)
            return Later(wait(answer)) if waiting else answer

        async def wait(answer: bytes) -> bytes:
            return answer

        return handle


def check(
    vector: Vector, replay: Replay, server: Server, *, strict_buckets: bool = False, stray_pieces: int = 0
) -> None:
    """The server sent what the captured one sent, but for results that are allowed to differ; and counted it."""
    core = server.invocations
    assert (core.half_open, core.half_open_bytes, core.waiting) == (0, 0, 0)
    if vector.result is None:
        failed = vector.name not in FAULTS
        assert core.counts == InvocationCounts(damaged=not failed, failed=failed)
        assert [str(failure) for failure in server.failures] == [FAULTS.get(vector.name, "the handler failed")]
        assert replay.answer == vector.answer
        return
    assert core.counts == InvocationCounts(answered=1, stray_pieces=stray_pieces)
    assert server.failures == []
    if vector.fixed or replay.result == vector.result:
        assert replay.answer == vector.answer
    else:
        assert replay.result in results_allowed(vector, strict_buckets=strict_buckets)
        assert replay.answer == [("handshake", b""), ("result", replay.result), ("result-end", b"")]


def check_state(vector: Vector, server: Server) -> None:
    """The invocation did what it says, to what it names alone."""
    expected = {bucket: dict(entries) for bucket, entries in vector.state.items()}
    if not vector.fixed and vector.name not in FAULTS and vector.arguments is not None:
        match vector.function, vector.arguments:
            case "set", (bytes(name), bytes(key), bytes(value)):
                expected.setdefault(name, {})[key] = value
            case "delete", (bytes(name), bytes(key)):
                expected.get(name, {}).pop(key, None)
    found = {}
    for bucket in map(server.store.bucket, server.store.bucket_names()):
        keys = list(bucket.keys())
        found[bucket.name] = dict(zip(keys, map(bucket.get, keys), strict=True))
    assert found == {name: entries for name, entries in expected.items() if entries}
    server.store.check()


def described(function: str, outcome: object) -> str:
    """An outcome in the words of the capture."""
    match function, outcome:
        case _, InvocationEndedError():
            return "ended"
        case _, NoSuchStoreError():
            return "err no-such-store"
        case _, AccessDeniedError():
            return "err access-denied"
        case _, OtherError(message=message):
            return f'err other("{message}")'
        case _, Exception():
            return repr(outcome)
        case "get", None | b"":
            return "ok none (or some of no bytes: the bindings give nil for both)"
        case "get", bytes(value):
            return f"ok some {value.hex()}" if len(value) < 100 else f"ok some, {len(value)} bytes"
        case "exists", truth:
            return f"ok {'true' if truth else 'false'}"
        case "list-keys", KeyResponse(keys, cursor):
            texts = " ".join(f'"{key.decode()}"' for key in keys)
            return f"ok keys [{texts}] cursor {'none' if cursor is None else f'some({cursor})'}"
    return "ok"


def captured_outcome(vector: Vector) -> str:
    """The captured outcome in the words of `described`."""
    if vector.outcome.startswith("failed: ") or vector.outcome == "ended with no result":
        return "ended"
    if vector.name == "trailing-bytes":  # sent by a client that shows bytes
        assert vector.outcome == "result 00010132"
        return "ok some 32"
    return vector.outcome


# The file


def test_all_vectors_are_here() -> None:
    assert len(VECTORS) == 59
    assert len({vector.name for vector in VECTORS}) == 59
    assert {vector.function for vector in VECTORS} == set(DECODE)
    assert sum(vector.fixed for vector in VECTORS) == 21
    assert {vector.name for vector in VECTORS if vector.arguments is None} == {
        "damaged-no-params",
        "damaged-not-utf8",
        "damaged-option-tag",
        "trailing-bytes",
    }
    assert [vector.name for vector in VECTORS if len(vector.params) > SMALL_BYTES_MAX] == [
        "chunked-set",
        "chunked-set-library-as-it-is",
    ]


@each(VECTORS)
def test_the_captured_messages_have_the_subjects_and_inboxes_of_the_protocol(vector: Vector) -> None:
    prefix = "default.fixed" if vector.fixed else "default.keyvalue-inmemory"
    subjects = {
        "invocation": (invocation_subject(prefix, STORE, vector.function), "{R_c}"),
        "handshake": ("{R_c}", "{R_s}"),
        "params": ("{R_s}.params", None),
        "params-end": ("{R_s}.params", None),
        "result": ("{R_c}.results", None),
        "result-end": ("{R_c}.results", None),
    }
    for message in vector.messages:
        assert (message.subject, message.reply) == subjects[message.what]
        assert bool(message.payload) == (message.what in ("params", "result")) or message.what == "invocation"
    headers = {"source-id": "holdout-component", "link-name": "default"}
    assert vector.invocation.headers == (None if vector.name == "get-without-headers" else headers)


# The codec


@each(READABLE)
def test_parameters_are_read_and_written_as_captured(vector: Vector) -> None:
    assert vector.arguments is not None
    params = vector.params
    assert DECODE[vector.function](params, 0, len(params), ParameterLimits()) == (vector.arguments, len(params))
    assert ENCODE[vector.function](*vector.arguments) == params


def test_bytes_behind_the_parameters_are_not_read() -> None:
    (vector,) = (vector for vector in VECTORS if vector.name == "trailing-bytes")
    params = vector.params
    assert params.endswith(b"tail")
    assert decode_get(params, 0, len(params), ParameterLimits()) == ((b"bucket", b"bb"), len(params) - 4)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("damaged-no-params", NeedMoreBytes, "1"),
        ("damaged-not-utf8", DecodeError, FAULTS["damaged-not-utf8"]),
        ("damaged-option-tag", DecodeError, FAULTS["damaged-option-tag"]),
        ("chunked-set-library-as-it-is", NeedMoreBytes, "2621455"),
    ],
)
def test_parameters_that_are_damaged_or_cut_are_not_read(name: str, error: type[Exception], message: str) -> None:
    (vector,) = (vector for vector in VECTORS if vector.name == name)
    params = vector.params
    with pytest.raises(error, match=f"^{message}$"):
        DECODE[vector.function](params, 0, len(params), ParameterLimits())


@each(ANSWERED)
def test_results_are_read_and_written_as_captured(vector: Vector) -> None:
    assert vector.result is not None
    try:
        result, offset = DECODE_RESULT[vector.function](vector.result, 0, len(vector.result))
    except InterfaceError as error:
        assert described(vector.function, error) == captured_outcome(vector)
        assert encode_error(error) == vector.result
    else:
        assert offset == len(vector.result)
        assert described(vector.function, result) == captured_outcome(vector)
        assert ENCODE_RESULT[vector.function](result) == vector.result


# The client


def called(vector: Vector, params: bytes) -> Call[object]:
    """What the invoker makes of a captured invocation; its own count of the headers is checked over NATS."""
    header_bytes = len(vector.invocation.header_block or b"")
    first_bytes_max = MAX_PAYLOAD - header_bytes - len(vector.invocation.subject) - len(CLIENT_INBOX)
    return Call(params, DECODE_RESULT[vector.function], first_bytes_max, MAX_PAYLOAD)


@each(READABLE)
def test_our_client_sends_what_the_captured_one_sent(vector: Vector) -> None:
    assert vector.arguments is not None
    call = called(vector, ENCODE[vector.function](*vector.arguments))
    assert [call.start(), *call.accepted()] == [*vector.pieces, b""]


@each(VECTORS)
def test_our_client_reads_what_the_captured_server_sent(vector: Vector) -> None:
    for order in vector.orders:
        call = called(vector, vector.params)
        call.start()
        results = iter([payload for what, payload in vector.answer if what != "handshake"])
        for what in order:
            if what == "handshake":
                call.accepted()
            elif what in ("result", "result-end"):
                call.result(next(results))
        assert call.done
        assert described(vector.function, call.error or call.value) == captured_outcome(vector)


@each([vector for vector in ANSWERED if vector.name != "chunked-get"])
def test_our_client_reads_it_wherever_it_is_cut(vector: Vector) -> None:
    assert vector.result is not None
    for cut in range(1, len(vector.result)):
        call = called(vector, vector.params)
        call.result(vector.result[:cut])
        assert not call.done
        call.result(vector.result[cut:])
        assert described(vector.function, call.error or call.value) == captured_outcome(vector)


# The server


@WAITING
@each(VECTORS)
async def test_our_server_answers_as_the_captured_one(vector: Vector, waiting: bool) -> None:
    for closing_last in vector.closings_last:
        server = Server(vector, waiting=waiting)
        replay = Replay(vector, CLIENT_INBOX, closing_last=closing_last)
        await server.serve(replay)
        check(vector, replay, server)
        check_state(vector, server)
        headers = vector.invocation.headers or {}
        caller = Caller(headers.get("source-id"), headers.get("link-name"))
        assert server.callers == [caller] * server.invocations.counts.answered


@each(STRICT)
async def test_our_strict_server_does_not_know_a_bucket_before_its_first_write(vector: Vector) -> None:
    server = Server(vector, strict_buckets=True)
    replay = Replay(vector, CLIENT_INBOX, closing_last=True)
    await server.serve(replay)
    check(vector, replay, server, strict_buckets=True)
    assert replay.result == b"\x01\x00"


def test_the_vectors_of_unknown_buckets_are_those_that_strictness_changes() -> None:
    assert [vector.name for vector in STRICT] == [
        "get-no-such-store",
        "exists-no-such-store",
        "delete-no-such-store",
        "get-after-list-keys",
    ]


@WAITING
@each([*SMALL, *(vector for vector in VECTORS if vector.fixed)])
async def test_our_server_answers_alike_wherever_the_parameters_are_cut(vector: Vector, waiting: bool) -> None:
    params = vector.params
    for cut in range(len(params)):
        for closing_last in vector.closings_last:
            server = Server(vector, waiting=waiting)
            replay = Replay(vector, CLIENT_INBOX, pieces=[params[:cut], params[cut:]], closing_last=closing_last)
            await server.serve(replay)
            check(vector, replay, server)


@each(SMALL)
async def test_our_server_answers_alike_byte_by_byte(vector: Vector) -> None:
    pieces = [b"", *(vector.params[at : at + 1] for at in range(len(vector.params)))]
    for closing_last in vector.closings_last:
        server = Server(vector)
        replay = Replay(vector, CLIENT_INBOX, pieces=pieces, closing_last=closing_last)
        await server.serve(replay)
        check(vector, replay, server, stray_pieces=4 if vector.name == "trailing-bytes" else 0)
        check_state(vector, server)


@each([vector for vector in ENGINE if vector.name.startswith("list-keys-cursor-")])
async def test_our_server_takes_a_cursor(vector: Vector) -> None:
    """The keys at or behind it, in the order of the store."""
    assert vector.arguments is not None
    bucket, cursor = vector.arguments
    assert isinstance(bucket, bytes)
    assert isinstance(cursor, int)
    server = Server(vector)
    replay = Replay(vector, CLIENT_INBOX)
    await server.serve(replay)
    positions = {xxh3_64_intdigest(key, SEED): key for key in vector.state[bucket]}
    keys = [positions[position] for position in sorted(positions) if position >= cursor]
    assert replay.result == encode_key_response(KeyResponse(keys, None))
