"""The two load generators. They differ in how they read answers.

`SmallGenerator` is for small answers. It runs regular expressions over all bytes of a read, so it spends about two
microseconds on a call. `FrameGenerator` is for large answers and pages. It parses frame by frame, and skips payloads
without copying them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from bench.load.case import KEY_BYTES, Load
from bench.load.generator_base import MEASURE, Generator
from bench.load.outcome import LoadError
from bench.load.usage import cpu_ns
from bench.load.workload import Script, result_sizes
from keyvalue_transport.keyvalue.store import decode_key_response
from keyvalue_transport.wrpc.errors import NeedMoreBytes, TransportError
from keyvalue_transport.wrpc.values import read_unsigned

__all__ = ["SMALL_RESULT_BYTES", "FrameGenerator", "SmallGenerator", "read_page"]

END = b".results 1 0\r\n\r\n"
HANDSHAKES = re.compile(rb" 1 (\S+) 0\r\n")
ENDS = re.compile(rb"\.(\d+)\.results 1 0\r\n")
#: Regular expressions are used for results up to this size. For larger results, parsing frame by frame is cheaper.
SMALL_RESULT_BYTES = 2048
#: The answer to one call in this many is compared byte for byte.
SAMPLE_ONE_IN = 61


class SmallGenerator(Generator):
    """A generator for calls whose result is one small message."""

    def __init__(self, load: Load, before: Script | None = None) -> None:
        super().__init__(load, before)
        self._rest = b""
        self._starts: dict[bytes, int] = {}
        self._sizes = [b".results 1 %d\r\n" % size for size in set(result_sizes(load).values())]
        self._right = 0  # number of results of the right size
        self._sample: tuple[bytes, int] | None = None  # token and number of the sampled call
        self._next_sample = 0
        self._latencies_here: dict[int, int] = {}  # the latency of each call, by the time when the call was due
        self._latencies_beside: dict[int, int] = {}

    def fire(self, count: int, start_ns: int) -> None:
        self.transport.write(b"".join(self._messages(count, start_ns)))

    def receive(self, read: bytes) -> None:
        now = time.perf_counter_ns()
        if self._rest:
            read = self._rest + read
        if b"PING\r\n" in read:
            self.transport.write(b"PONG\r\n")
            read = read.replace(b"PING\r\n", b"")
        if b"-ERR " in read:
            return self.fail(LoadError(f"expected an answer, found {read[-200:]!r}"))
        if b"HMSG " in read:
            self._rest = read
            if error := self.refusal(read[read.index(b"HMSG ") :]):
                self.fail(error)
            return None
        stop = read.rfind(END) + len(END)
        if stop < len(END):
            self._rest = read
            return None
        self._rest = read[stop:]
        starts = self._starts
        others = 0
        try:
            tokens = ENDS.findall(read, 0, stop)
            if self.load.beside:
                latencies, others = self._take_pairs(tokens, now)
            else:
                latencies = [now - starts.pop(token) for token in tokens]
            if self._sample is not None:
                self._look(read, stop)
        except KeyError as error:
            return self.fail(LoadError(f"call {error.args[0].decode()}: a second end arrived"))
        except LoadError as error:
            return self.fail(error)
        for size in self._sizes:
            self._right += read.count(size, 0, stop)
        out: list[bytes] = []
        if handshakes := HANDSHAKES.findall(read, 0, stop):
            out.append(b"PUB %b.params 0\r\n\r\n" % b".params 0\r\n\r\nPUB ".join(handshakes))
        more = self.count(latencies, now, others)
        if more:
            out += self._messages(more, time.perf_counter_ns())
        if out:
            self.transport.write(b"".join(out))

    def check(self) -> None:
        if self._right != self.answered:
            raise LoadError(f"{self._right} of {self.answered} answers have the right size")
        if self._sample is not None:
            raise LoadError(f"call {self._sample[1]}: the result is missing")
        here, beside = self._latencies_here, self._latencies_beside
        self.excess_ns = max((here[due_ns] - beside[due_ns] for due_ns in here.keys() & beside.keys()), default=0)

    def _messages(self, count: int, start_ns: int) -> list[bytes]:
        starts = self._starts
        script = self.script
        frame_of = script.frame
        span = script.span if self.load.headers == "traced" else None
        first = self.sent
        self.sent += count
        out: list[bytes] = []
        for number in range(first, self.sent):
            token = b"%d" % number
            starts[token] = start_ns
            head, middle, tail = frame_of(number)
            out += (head, token, middle, tail) if span is None else (head, token, middle, span(number), tail)
        if self._sample is None and self.sent > self._next_sample:
            self._sample = (b"%d" % first, first)
            self._next_sample = self.sent + SAMPLE_ONE_IN
        return out

    def _take_pairs(self, tokens: list[bytes], now: int) -> tuple[list[int], int]:
        """Return the latencies of the measured calls, and the number of calls to the other provider."""
        latencies = []
        for token in tokens:
            start_ns = self._starts.pop(token)
            if int(token) % 2:
                self._latencies_beside[start_ns] = now - start_ns
            else:
                self._latencies_here[start_ns] = now - start_ns
                latencies.append(now - start_ns)
        return latencies, len(tokens) - len(latencies)

    def _look(self, read: bytes, stop: int) -> None:
        """Check the result of the sampled call, if `read` contains it. A result before `stop` is complete."""
        assert self._sample is not None
        token, number = self._sample
        at = read.find(b".%b.results 1 " % token, 0, stop)
        if at < 0:
            return
        size, _, payload = read[at : stop + 2].partition(b".results 1 ")[2].partition(b"\r\n")
        self.verify(number, payload[: int(size)])
        self._sample = None


@dataclass(slots=True)
class Walk:
    """The state of repeated walks over all keys."""

    cursor: int | None = None
    keys: int = 0


@dataclass(slots=True)
class PendingCall:
    """A call in flight. It keeps the `pieces` of its result only if the result will be checked."""

    number: int
    start_ns: int
    walk: Walk | None
    pieces: list[bytes] | None
    bytes: int = 0


class FrameGenerator(Generator):
    """A generator for results of any size, and for walks."""

    def __init__(self, load: Load, before: Script | None = None) -> None:
        super().__init__(load, before)
        self._calls: dict[bytes, PendingCall] = {}
        self._walks = [Walk() for _ in range(load.in_flight)] if load.function == "list-keys" else []
        self._line = b""  # an incomplete control line
        self._left = 0  # bytes of a payload and its line end that are still missing
        self._call: PendingCall | None = None  # the call that the payload belongs to
        self._out: list[bytes] = []
        self._latencies_now: list[int] = []
        self._page_ended_ns = 0  # on the provider's CPU clock

    def fire(self, count: int, start_ns: int) -> None:
        self._begin(count, start_ns)
        self._flush()

    def receive(self, read: bytes) -> None:
        now = time.perf_counter_ns()
        at = 0
        if self._left:
            at = self._take(read, 0)
        elif self._line:
            read = self._line + read
            self._line = b""
        try:
            while at < len(read):
                line_end = read.find(b"\r\n", at)
                if line_end < 0:
                    self._line = read[at:]
                    break
                if read.startswith(b"HMSG ", at):
                    self._line = read[at:]
                    if error := self.refusal(self._line):
                        raise error
                    break
                self._open(read[at:line_end].split(b" "), now)
                at = line_end + 2
                if self._left:
                    at = self._take(read, at)
        except LoadError as error:
            return self.fail(error)
        if self._latencies_now:
            latencies, self._latencies_now = self._latencies_now, []
            more = self.count(latencies, now)
            if more:
                self._begin(more, time.perf_counter_ns())
        self._flush()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self.transport.writelines(out)

    def _begin(self, count: int, start_ns: int) -> None:
        script = self.script
        traced = self.load.headers == "traced"
        for _ in range(count):
            number = self.sent
            self.sent += 1
            token = b"%d" % number
            walk = self._walks.pop() if self._walks else None
            is_checked = walk is not None or number % SAMPLE_ONE_IN == 0
            self._calls[token] = PendingCall(number, start_ns, walk, [] if is_checked else None)
            head, middle, tail = script.frame(number) if walk is None else script.walk_frame(walk.cursor)
            span = script.span(number) if traced else b""
            if len(tail) > SMALL_RESULT_BYTES:
                self._out += (b"".join((head, token, middle, span)), tail)
            else:
                self._out.append(b"".join((head, token, middle, span, tail)))

    def _open(self, words: list[bytes], now: int) -> None:
        """Handle a control line, and record the size of the payload that follows."""
        if words[0] != b"MSG":
            if words[0] == b"PING":
                self._out.append(b"PONG\r\n")
                return
            raise LoadError(f"expected an answer, found {b' '.join(words)[:200]!r}")
        token, is_result, _ = words[1][len(self.inbox) + 1 :].partition(b".results")
        size = int(words[-1])
        self._left = size + 2
        call = self._call = self._calls.get(token)
        if is_result:
            if call is None:
                raise LoadError(f"call {token.decode()}: a message arrived after the end")
            call.bytes += size
            if not size:
                del self._calls[token]
                self._end(call, now)
        elif len(words) == 5:
            self._go_on(words[3], self.script.is_cut(int(token)))
        else:
            raise LoadError(f"call {token.decode()}: the handshake has no inbox")

    def _go_on(self, server_inbox: bytes, is_cut: bool) -> None:
        """Send the remaining pieces of the parameters, and the closing message."""
        if is_cut:
            for piece in self.script.later:
                self._out += (b"PUB %b.params %d\r\n" % (server_inbox, len(piece)), piece, b"\r\n")
        self._out.append(b"PUB %b.params 0\r\n\r\n" % server_inbox)

    def _take(self, read: bytes, at: int) -> int:
        """Consume a payload and its line end. Return the offset after the line end."""
        stop = min(at + self._left, len(read))
        if self._call is not None and self._call.pieces is not None and self._left > 2:
            self._call.pieces.append(read[at : min(stop, at + self._left - 2)])
        self._left -= stop - at
        return stop

    def _end(self, call: PendingCall, now: int) -> None:
        self._latencies_now.append(now - call.start_ns)
        if call.walk is not None:
            self._end_page(call, call.walk)
            self._walks.append(call.walk)
            return
        expected = self.script.result_size(call.number)
        if call.bytes != expected:
            raise LoadError(f"call {call.number}: the result is {call.bytes} bytes, expected {expected}")
        if call.pieces is not None:
            self.verify(call.number, b"".join(call.pieces))

    def _end_page(self, call: PendingCall, walk: Walk) -> None:
        assert call.pieces is not None
        found = b"".join(call.pieces)
        sampled = call.number % SAMPLE_ONE_IN == 0
        count, cursor = read_page(found, sampled)
        self.verified += sampled
        load = self.load
        is_last = load.exact and cursor is None and count < load.page_keys
        if count != load.page_keys and not is_last:
            raise LoadError(f"call {call.number}: the page has {count} keys, expected {load.page_keys}")
        walk.keys += count
        walk.cursor = cursor
        if load.in_flight == 1 and "provider" in load.watched:
            ended_ns = cpu_ns(load.watched["provider"])
            if self._page_ended_ns and self.phase == MEASURE:
                self.page_cpu_ns = max(self.page_cpu_ns, ended_ns - self._page_ended_ns)
            self._page_ended_ns = ended_ns
        if self.phase == MEASURE:
            self.keys += count
        if cursor is None:
            if load.exact and walk.keys != load.keys:
                raise LoadError(f"call {call.number}: the walk ended after {walk.keys} keys, expected {load.keys}")
            walk.keys = 0


def read_page(result: bytes, is_looked_at: bool) -> tuple[int, int | None]:
    """Return the number of keys in a page, and the page's cursor. All keys of a load have the same size.

    :param is_looked_at: True to check each key
    :raises LoadError: the result is not a page of the load's keys
    """
    try:
        count, at = read_unsigned(result, 1, len(result), 32)
        keys_end = at + count * (KEY_BYTES + 1)
        if not result.startswith(b"\x00") or (is_looked_at and not are_keys(result)):
            raise LoadError(f"expected a page of the load's keys, found {result[:100]!r}")
        rest = b"\x00\x00" + result[keys_end:]  # an empty page with the same cursor
        return count, decode_key_response(rest, 0, len(rest))[0].cursor
    except (TransportError, NeedMoreBytes) as error:
        raise LoadError(f"expected a page of the load's keys, found {result[:100]!r}: {error}") from None


def are_keys(result: bytes) -> bool:
    """Return True if a page contains only keys of a load, without duplicates."""
    response, end = decode_key_response(result, 0, len(result))
    keys = response.keys
    return (
        end == len(result)
        and len(set(keys)) == len(keys)
        and all(len(key) == KEY_BYTES and key.isdigit() for key in keys)
    )
