"""The watching component without a socket."""

from __future__ import annotations

import re

import pytest

from bench.load.outcome import LoadError
from bench.load.watching_component import WatchingComponent
from tests.bench.load.sockets import connected, invocation


@pytest.mark.parametrize("is_stuck", [False, True])
@pytest.mark.parametrize("step", [1, 11, 10_000])
async def test_a_watcher_counts_calls_and_answers_unless_it_is_stuck(is_stuck: bool, step: int) -> None:
    watcher = WatchingComponent("default.component", is_stuck)
    socket = connected(watcher)
    subject = b"default.component.wrpc.0.0.1.wrpc:keyvalue/watcher@0.2.0-draft.*"
    assert b"SUB %b default.component 1\r\n" % subject in socket.written
    assert watcher.listening.done()
    socket.written = b""
    plain = b"MSG %bon-delete 1 _INBOX.c.1 8\r\n\r\nparams\r\n" % subject[:-1]
    stream = invocation(1, 0, b"\r\nparams\r\n") + b"PING\r\n" + plain
    for at in range(0, len(stream), step):
        watcher.data_received(stream[at : at + step])
    assert watcher.told == 2
    assert socket.written.count(b"PONG\r\n") == 1
    replies = re.findall(rb"PUB (\S+) _INBOX\.\w+ 0\r\n\r\nPUB (\S+)\.results 0\r\n\r\n", socket.written)
    assert replies == ([] if is_stuck else [(b"_INBOX.c.0",) * 2, (b"_INBOX.c.1",) * 2])
    watcher.ended.cancel()


async def test_what_is_no_call_ends_a_watcher() -> None:
    watcher = WatchingComponent("default.component", is_stuck=False)
    socket = connected(watcher)
    watcher.data_received(b"-ERR 'Slow Consumer'\r\n")
    with pytest.raises(LoadError, match=r"expected a call, found .*Slow Consumer"):
        await watcher.ended
    assert socket.aborted
