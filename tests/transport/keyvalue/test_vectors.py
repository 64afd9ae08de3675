"""Our codec, client and server against messages captured between the Go client and the Go provider."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from types import SimpleNamespace

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_error
from keyvalue_transport.keyvalue.store import STORE, KeyResponse, store_handlers
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.subjects import invocation_subject, params_token
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import InvocationEndedError
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, Invocations, Step
from tests.invoking import invoke
from tests.recorded_replies import Later
from tests.transport.keyvalue.functions import FUNCTIONS, Noted, answered, functions_of
from tests.vectors import MAX_PAYLOAD, Publish, Replay, Vector, load, preparation, results_allowed

#: As long as the captured names, since the size of a first piece depends on it.
CLIENT_INBOX = "_INBOX." + "c" * 22
SERVER_INBOX = "_INBOX.server"
NOBODY = "_INBOX.nobody"
SECRET = bytes(16)
SMALL_BYTES_MAX = 512

#: Fixed answers of the captured servers, by a part of the vector's name.
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
#: The errors that our server finds in parameters. Only its log shows them.
FAULTS = {
    "damaged-no-params": "the parameters end after 0 bytes; at least 1 are needed",
    "damaged-not-utf8": "a string is not UTF-8 at byte 1",
    "damaged-option-tag": "the tag of an option is 2; the limit is 1",
    "chunked-set-library-as-it-is": "the parameters end after 1048413 bytes; at least 2621455 are needed",
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


class Server:
    """The core of our server, in the state that a vector starts from. It uses no network."""

    def __init__(self, vector: Vector, *, waiting: bool = False, strict_buckets: bool = False) -> None:
        self.store = Store(StoreOptions(strict_buckets=strict_buckets), secret=SECRET)
        for function, (bucket, *rest) in preparation(vector.state):
            getattr(self.store.bucket(bucket), function)(*rest)
        service = Service(self.store)
        if vector.fixed:
            answer = next(answer for name, answer in FIXED.items() if vector.name.endswith(name))
            handlers = store_handlers(Noted(answer), service.parameter_limits)
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
        """Pass all messages between the replayed client and this server until neither sends any."""
        published = deque([replay.start()])
        while published:
            step = self._receive(published.popleft())
            published += self._told(replay, step)
            if step.waiting is not None:
                while (
                    published
                ):  # messages that the client sends without waiting arrive while the handler's answer is awaited
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
            result = answered(answer)
            return Later(wait(result)) if waiting else result

        async def wait(answer: bytes) -> bytes:
            return answer

        return handle


def check(vector: Vector, replay: Replay, server: Server, *, strict_buckets: bool = False) -> None:
    """Check that the server sent what the captured one sent, except where results may differ, and counted it."""
    core = server.invocations
    assert (core.half_open, core.half_open_bytes, core.waiting) == (0, 0, 0)
    if vector.result is None:
        failed = vector.name not in FAULTS
        assert core.counts == InvocationCounts(damaged=not failed, failed=failed)
        assert [str(failure) for failure in server.failures] == [FAULTS.get(vector.name, "the handler failed")]
        assert replay.answer == vector.answer
        return
    assert core.counts == InvocationCounts(answered=1)
    assert server.failures == []
    if vector.fixed or replay.result == vector.result:
        assert replay.answer == vector.answer
    else:
        assert replay.result in results_allowed(vector, strict_buckets=strict_buckets)
        assert replay.answer == [("handshake", b""), ("result", replay.result), ("result-end", b"")]


def check_state(vector: Vector, server: Server) -> None:
    """Check that the store holds what the vector says, and nothing else."""
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
    """Return an outcome in the words of the capture."""
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
    """Return the captured outcome in the words of `described`."""
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
    assert {vector.function for vector in VECTORS} == set(functions_of(STORE))
    assert sum(vector.fixed for vector in VECTORS) == 21
    assert {vector.name for vector in VECTORS if vector.arguments is None} == {
        "damaged-no-params",
        "damaged-not-utf8",
        "damaged-option-tag",
        "trailing-bytes",
    }
    assert len(STRICT) == 4
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
    assert FUNCTIONS[vector.function].decode(params, 0, len(params), ParameterLimits()) == (
        vector.arguments,
        len(params),
    )
    assert FUNCTIONS[vector.function].encode(*vector.arguments) == params


@each(ANSWERED)
def test_results_are_read_and_written_as_captured(vector: Vector) -> None:
    assert vector.result is not None
    try:
        result, offset = FUNCTIONS[vector.function].decode_result(vector.result, 0, len(vector.result))
    except InterfaceError as error:
        assert described(vector.function, error) == captured_outcome(vector)
        assert encode_error(error) == vector.result
    else:
        assert offset == len(vector.result)
        assert described(vector.function, result) == captured_outcome(vector)
        assert FUNCTIONS[vector.function].encode_result(result) == vector.result


# The client


def called(vector: Vector, params: bytes) -> Call[object]:
    """Return what the invoker sends for a captured invocation. Its own count of the headers is checked over NATS."""
    header_bytes = len(vector.invocation.header_block or b"")
    first_bytes_max = MAX_PAYLOAD - header_bytes - len(vector.invocation.subject) - len(CLIENT_INBOX)
    return Call(params, FUNCTIONS[vector.function].decode_result, first_bytes_max, MAX_PAYLOAD)


@each(READABLE)
def test_our_client_sends_what_the_captured_one_sent(vector: Vector) -> None:
    assert vector.arguments is not None
    call = called(vector, FUNCTIONS[vector.function].encode(*vector.arguments))
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


# The server


@WAITING
@each(VECTORS)
async def test_our_server_answers_like_the_captured_one(vector: Vector, waiting: bool) -> None:
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


@each([*SMALL, *(vector for vector in VECTORS if vector.fixed)])
async def test_our_server_gives_the_same_answer_wherever_the_parameters_are_cut(vector: Vector) -> None:
    params = vector.params
    for cut in range(len(params)):
        for closing_last in vector.closings_last:
            server = Server(vector)
            replay = Replay(vector, CLIENT_INBOX, pieces=[params[:cut], params[cut:]], closing_last=closing_last)
            await server.serve(replay)
            check(vector, replay, server)
