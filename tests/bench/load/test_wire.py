"""The connection, without a socket: the greeting, and the bare responder, which also is a component that watches."""

from __future__ import annotations

import re

import pytest

from bench.load.answers import FrameGenerator, SmallGenerator
from bench.load.case import Function
from bench.load.outcome import LoadError
from bench.load.responder import NUMBERS, Responder
from keyvalue_provider.host.host_data import HostData
from tests.bench.load.sockets import INFO, MAX_PAYLOAD, Socket, connected, invocation, load_of

# The greeting


async def test_a_lost_connection_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    connected(generator)
    generator.connection_lost(None)
    with pytest.raises(LoadError, match="the NATS connection was lost: closed by the server"):
        await generator.ended


async def test_a_refusal_in_the_greeting_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    generator.connection_made(Socket())
    generator.data_received(INFO + b"-ERR 'Authorization Violation'\r\n")
    with pytest.raises(LoadError, match="the NATS server reports -ERR 'Authorization Violation'"):
        await generator.ended


# The bare responder


@pytest.fixture
async def responder() -> Responder:
    return Responder(HostData(config={"value_bytes": "5000", "page_keys": "3", "batch_keys": "7"}))


@pytest.mark.parametrize(("function", "result_bytes"), [("get", 5_004), ("delete", 1), ("list-keys", 2 + 3 * 13 + 11)])
@pytest.mark.parametrize("step", [1, 11, 10_000])
async def test_the_bare_responder_answers_wherever_a_frame_is_cut(
    responder: Responder, function: Function, result_bytes: int, step: int
) -> None:
    number = NUMBERS[function]
    socket = connected(responder)
    stream = invocation(number, 0, b"params") + b"PING\r\n" + invocation(number, 1, b"\r\nparams\r\n")
    for at in range(0, len(stream), step):
        responder.data_received(stream[at : at + step])
    assert socket.written.count(b"PONG\r\n") == 1
    for call in (0, 1):
        assert re.search(rb"PUB _INBOX\.c\.%d _INBOX\.\w+ 0\r\n\r\n" % call, socket.written)
        sizes = [int(size) for size in re.findall(rb"PUB _INBOX\.c\.%d\.results (\d+)\r\n" % call, socket.written)]
        assert (sizes[-1], sum(sizes)) == (0, result_bytes)
        assert max(sizes) <= MAX_PAYLOAD


async def test_the_bare_responder_waits_for_all_of_a_large_set(responder: Responder) -> None:
    socket = connected(responder)
    generator = FrameGenerator(load_of(function="set", calls=1, in_flight=1, value_bytes=5_000, headers="none"))
    connected(generator)
    responder.data_received(invocation(NUMBERS["set"], 0, generator.script.frame(0).tail[:-2]))
    assert b".results" not in socket.written
    (inbox,) = re.findall(rb"PUB _INBOX\.c\.0 (\S+) 0\r\n", socket.written)
    params = b"%b.params %d" % (inbox, NUMBERS["params"])
    pieces = [b"MSG %b %d\r\n%b\r\n" % (params, len(piece), piece) for piece in generator.script.later]
    responder.data_received(b"".join(pieces[:-1]))
    assert b".results" not in socket.written
    responder.data_received(pieces[-1] + b"MSG %b 0\r\n\r\n" % params)
    assert socket.written.endswith(b"PUB _INBOX.c.0.results 1\r\n\0\r\nPUB _INBOX.c.0.results 0\r\n\r\n")


@pytest.mark.parametrize("is_stuck", ["true", "false"])
@pytest.mark.parametrize("step", [1, 11, 10_000])
async def test_the_bare_responder_watches_and_answers_events_unless_it_is_stuck(is_stuck: str, step: int) -> None:
    watcher = Responder(HostData(provider_key="component", config={"is_stuck": is_stuck}))
    socket = connected(watcher)
    number = NUMBERS["events"]
    subject = b"default.component.wrpc.0.0.1.wrpc:keyvalue/watcher@0.2.0-draft.*"
    assert b"SUB %b default.component %d\r\n" % (subject, number) in socket.written
    socket.written = b""
    plain = b"MSG %bon-delete %d _INBOX.c.1 8\r\n\r\nparams\r\n" % (subject[:-1], number)
    stream = invocation(number, 0, b"\r\nparams\r\n") + b"PING\r\n" + plain
    for at in range(0, len(stream), step):
        watcher.data_received(stream[at : at + step])
    assert socket.written.count(b"PONG\r\n") == 1
    replies = re.findall(rb"PUB (\S+) _INBOX\.\w+ 0\r\n\r\nPUB (\S+)\.results 0\r\n\r\n", socket.written)
    assert replies == ([] if is_stuck == "true" else [(b"_INBOX.c.0",) * 2, (b"_INBOX.c.1",) * 2])
    watcher.ended.cancel()
