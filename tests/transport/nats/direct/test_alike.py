"""Frames of the same shape as the one before are not parsed, and this must not show.

`fuzz.py` compares random streams; these are the hard cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import pytest

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.direct import protocol
from keyvalue_transport.nats.direct.alike import RUN_FRAMES_MAX, RUN_PARAMS_BYTES_MAX, SHAPES_MAX
from keyvalue_transport.nats.direct.frames import read_frame
from keyvalue_transport.nats.direct.read_flow import SLICE_BYTES, ReadFlow
from keyvalue_transport.nats.headers import BLOCK_BYTES_MAX
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, ForRuns, Handler, Pending, RunResults
from tests.transport.nats.direct.scene import CALLER, GET, HEADERS, MIB, UNIT, Direct, NewDirect, answer, hmsg, msg

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACED = HEADERS[:-2] + b"traceparent: " + TRACE + b"\r\n\r\n"
BLOCKS = (
    HEADERS,
    b"NATS/1.0\r\nlink-name: default\r\nsource-id: componenT\r\n\r\n",  # as long, another caller
    b"NATS/1.0\r\nsource-id: component\r\nlink-name: default\r\n\r\n",
    TRACED,
    HEADERS[:-2] + b"traceparent: " + TRACE[::-1] + b"\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE + b"\r\ntracestate: \r\n\r\n",
    HEADERS[:-2]
    + b"traceparent: "
    + TRACE[:-21]
    + b"\r\nsource-id: somebody\r\n\r\n",  # another header in place of the trace
    HEADERS[:-2] + b"traceparent: " + TRACE[:-2] + b" \t\r\n\r\n",
    HEADERS[:-2] + b"traceparent:" + TRACE + b" \r\n\r\n",
    HEADERS[:-2] + b"traceparent: \r\n\r\n",
    HEADERS[:-2] + b"traceparent: 1\r\ntraceparent: 2\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE[:-1] + b"\xff\r\n\r\n",
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:],
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:].swapcase(),
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:].replace(b"component", b"componenT"),
    b"NATS/1.0\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE,  # without an end
    HEADERS[:-2] + b"traceparent: " + TRACE[:9] + b"\r" + TRACE[10:] + b"\r\n\r\n",
)
#: Parameters, some of which look like the rest of a control line.
PAYLOADS = (b"", b"ab", b"ae", b"a 60 85\r\nNATS/1.0\r\n\r\n", b" 2\r\nab", b"x 2\r\nab", b"x 3\r\na\r\n", b"a\r\n")
REPLIES = (b"", b"r", b"rrrr", b"ssss")
#: The subscription whose handler makes the calls of a run together.
RUNS = 24


class Noted:
    """A direct path that records the calls of its handlers.

    That of subscription 21 fails, so that its traces are logged.
    """

    def __init__(self, direct: Direct) -> None:
        self.direct = direct
        self.calls: list[tuple[int, Caller, bytes]] = []
        self.runs = 0
        for number in range(20, 24):
            self.direct.routes.add(number, self.handler(number))
        self.direct.routes.add(RUNS, ForRuns(self.handler(RUNS), self.split, self.call_run))

    def handler(self, number: int) -> Handler:
        def note(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
            self.calls.append((number, caller, buffer[start:end]))
            if number == 21:
                raise RuntimeError
            return buffer[start:end] + UNIT if number == RUNS else UNIT

        return note

    def split(self, params: Sequence[bytes]) -> Sequence[bytes] | None:
        return None if b"25" in params else params

    def call_run(self, caller: Caller, params: Sequence[bytes]) -> RunResults | None:
        if b"20" in params:
            return None
        params = params[: params.index(b"15")] if b"15" in params else params  # the others are made one by one
        self.calls += [(RUNS, caller, each) for each in params]
        self.runs += 1
        return b"", [each + UNIT for each in params]

    @property
    def traces(self) -> list[str | None]:
        return [step.failure.traceparent for step in self.direct.steps if step.failure is not None]


def frame(number: int, block: bytes | None, payload: bytes = b"ab", reply: bytes = b"rrrr") -> bytes:
    return msg(number, payload, reply) if block is None else hmsg(number, payload, reply, headers=block)


@pytest.mark.parametrize("number", [20, 21, RUNS])
@pytest.mark.parametrize("usual", [None, HEADERS, TRACED, BLOCKS[-1]])
def test_an_odd_frame_in_a_run(new_direct: NewDirect, number: int, usual: bytes | None) -> None:
    odd = [frame(number, block, payload, reply) for block in (None, usual) for payload in PAYLOADS for reply in REPLIES]
    odd += [frame(number, block) for block in BLOCKS]
    run = [frame(number, usual)] * 5
    wires = [wire for each in odd for wire in (*run, each, each)]
    together, apart = Noted(new_direct()), Noted(new_direct(alike=False))
    sent = together.direct.read(b"".join(wires))
    assert sent == apart.direct.read(*wires)
    assert together.calls == apart.calls
    assert len({params for _, _, params in together.calls}) == len(PAYLOADS)
    assert together.traces == apart.traces
    assert together.direct.passed == apart.direct.passed == b""
    assert together.direct.invocations.counts == apart.direct.invocations.counts


@pytest.mark.parametrize("function", [20, RUNS])
@pytest.mark.parametrize("block", [None, HEADERS, TRACED])
def test_runs_of_all_lengths(new_direct: NewDirect, block: bytes | None, function: int) -> None:
    """Runs are split in parts. After a run there is another one, an odd frame, or a cut frame."""
    odd = (
        *(frame(function, block, reply=b"s" * 5), frame(22, block), frame(function, BLOCKS[1])),
        frame(function, block, reply=b"rr\rr"),
    )
    for number in range(1, 3 * RUN_FRAMES_MAX):
        run = [frame(function, block, b"%02d" % index, b"r%03d" % index) for index in range(number)]
        for then in ([], *([each] for each in odd), [frame(function, block, b"abc")] * number):
            together, apart = Noted(new_direct()), Noted(new_direct(alike=False))
            wires = [*run[:2], *run, *then, *run]
            stream = b"".join(wires)
            cut = len(stream) - number * 7 % len(run[0])
            assert together.direct.read(stream[:cut], stream[cut:]) == apart.direct.read(*wires)
            assert together.calls == apart.calls
            assert together.direct.invocations.counts == apart.direct.invocations.counts
            assert not 8 <= number <= 20 or bool(together.runs) == (function == RUNS)
            assert not apart.runs


@pytest.mark.parametrize("excess", [0, 1])
def test_large_parameters_are_not_copied_for_a_run(new_direct: NewDirect, excess: int) -> None:
    noted = Noted(new_direct())
    payload = b"v" * (RUN_PARAMS_BYTES_MAX + excess)
    sent = noted.direct.read(frame(RUNS, HEADERS, payload) * 20)
    assert [send.payload for send in sent].count(payload + UNIT) == len(noted.calls) == 20
    assert bool(noted.runs) == (not excess)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("calls", [10, SLICE_BYTES // 20])
def test_frames_of_one_shape_are_not_parsed(
    new_direct: NewDirect, monkeypatch: pytest.MonkeyPatch, calls: int, is_on: bool
) -> None:
    """Parse the first two. The others are split in one pass, which is the purpose of the switch, or in one a slice."""
    numbers = itertools.count()

    def counted(buffer: bytes, at: int, end: int, frame_bytes_max: int) -> object:
        next(numbers)
        return read_frame(buffer, at, end, frame_bytes_max)

    monkeypatch.setattr(protocol, "ReadFlow", partial(ReadFlow, turn_s=math.inf))
    noted = Noted(new_direct(alike=is_on))
    monkeypatch.setattr(protocol, "read_frame", counted)
    for caller, write in ((ANONYMOUS, msg), (CALLER, hmsg)):
        noted.calls.clear()
        noted.direct.read(b"".join(write(20, b"a%04d" % number, b"r%04d" % number) for number in range(calls)))
        assert noted.calls == [(20, caller, b"a%04d" % number) for number in range(calls)]
    assert next(numbers) == (4 if is_on else 2 * calls)


def test_shapes_are_found_again(new_direct: NewDirect) -> None:
    """Send another kind in between. The calls after it are parsed, but make no new shape."""
    noted = Noted(new_direct())
    kinds = [hmsg(number, b"ab", b"r", headers=block) for number in (20, 22, 23) for block in BLOCKS[:2]]
    shapes = []
    for _ in range(4):
        noted.direct.read(b"".join(kind * 6 for kind in kinds))
        shapes.append(list(map(id, noted.direct.routes.alike._shapes.values())))
    assert shapes == shapes[:1] * 4
    assert len(shapes[0]) == len(kinds)


def test_shapes_are_bounded(direct: Direct) -> None:
    shapes = direct.routes.alike._shapes
    for size in range(1, 2 * SHAPES_MAX):
        get = hmsg(GET, encode_bucket_key(b"b", b"k" * size), b"r")
        assert direct.read(get * 3) == answer("r", encode_get_result(None)) * 3
        assert 0 < len(shapes) <= SHAPES_MAX


def test_the_bytes_of_shapes_are_bounded(direct: Direct) -> None:
    """A caller writes the block. A shape holds no block that is longer than those kept of callers."""
    direct.limits.bucket_bytes_max = MIB
    longest = BLOCK_BYTES_MAX - len(b"NATS/1.0\r\n\r\n")
    for bucket_bytes, block_bytes, is_kept in ((100_000, 9, True), (1, longest, True), (1, longest + 1, False)):
        block = b"NATS/1.0\r\n%b\r\n" % (b"x" * block_bytes)  # no headers, so all of them have one caller
        get = hmsg(GET, encode_bucket_key(b"b" * bucket_bytes, b"k"), b"r", headers=block)
        direct.routes.alike.forget()
        assert direct.read(get * 6) == answer("r", encode_get_result(None)) * 6
        assert (direct.routes.alike.shape is not None) == is_kept
        for shape in direct.routes.alike._shapes.values():
            assert len(shape.prefix + shape.suffix + shape.rest) < BLOCK_BYTES_MAX + 100
