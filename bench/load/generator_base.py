"""The base class of the two load generators in `answers`. It decides when to send calls and which calls to measure.

    WARM ── `warm_calls` answered ──> MEASURE ── `seconds` passed ──> DRAIN ── all answered ──> `ended`
                                         └─────── `calls` answered ────────────────────────────────^

If a closed loop has a time limit, the measurement ends at the limit. Calls that are still in flight at the limit are
awaited and checked, but not counted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from secrets import token_hex
from threading import Thread

from bench.load.case import Load
from bench.load.outcome import LoadError, Outcome
from bench.load.usage import cpu_ns
from bench.load.wire import NatsProtocol, WireSubscription
from bench.load.workload import Script

__all__ = ["MEASURE", "Generator"]

TICK_NS = 1_000_000

WARM, MEASURE, DRAIN = range(3)


class Generator(NatsProtocol):
    """The base class of both generators. The future `ended` is done when all calls are answered."""

    script: Script

    def __init__(self, load: Load, before: Script | None = None) -> None:
        self.load = load
        self._before = before
        self.inbox = b"_INBOX.%b" % token_hex(11).encode()
        super().__init__("bench load", [WireSubscription(self.inbox + b".>")])
        self.sent = 0
        self.answered = 0
        self.verified = 0
        self.keys = 0
        self.excess_ns = self.page_cpu_ns = 0
        self.phase = WARM
        self._latencies: list[int] = []
        self._begin_ns = self._end_ns = self._deadline_ns = 0
        self._cpu: list[tuple[int, ...]] = []
        self._ticks_done = 0

    def fire(self, count: int, start_ns: int) -> None:
        """Send `count` calls."""
        raise NotImplementedError

    def serve(self) -> None:
        """Start the load."""
        load = self.load
        self.script = Script(load, self.inbox, self.max_payload, self._before)
        now = time.perf_counter_ns()
        if not load.warm_calls:
            self._measure(now)
        if load.rate:
            self._start_ticks(now)
        else:
            self.fire(min(load.in_flight, load.calls_max or load.in_flight), now)

    @property
    def progress(self) -> str:
        """The number of answers and calls so far, as text."""
        return f"{self.answered} answers to {self.sent} calls"

    def outcome(self) -> Outcome:
        """Return the figures of the load. Call this method after `ended` is done."""
        latencies = sorted(self._latencies)
        calls = len(latencies)
        p50, p99, p999, longest = (latencies[int((calls - 1) * part)] / 1e3 for part in (0.5, 0.99, 0.999, 1))
        own, *watched = ((end - begin) / 1e3 / calls for begin, end in zip(*self._cpu, strict=True))
        return Outcome(
            calls=calls,
            seconds=(self._end_ns - self._begin_ns) / 1e9,
            p50_us=p50,
            p99_us=p99,
            p999_us=p999,
            max_us=longest,
            cpu_us=dict(zip(self.load.watched, watched, strict=True)),
            generator_cpu_us=own,
            keys=self.keys + calls * self.load.keys_a_call,
            verified=self.verified,
            excess_us=self.excess_ns / 1e3,
            page_cpu_us=self.page_cpu_ns / 1e3,
        )

    def count(self, latencies: list[int], now: int, others: int = 0) -> int:
        """Count calls that have ended. Return the number of calls to send next.

        :param others: number of ended calls that are not measured
        """
        load = self.load
        self.answered += len(latencies) + others
        if self.phase == MEASURE:
            self._latencies += latencies
            if self._deadline_ns and now >= self._deadline_ns:
                self._drain(now)
        elif self.phase == WARM and self.answered >= load.warm_calls:
            self._measure(now)
        if load.rate:
            self.fire_due(now)
        more = 0 if load.rate or self.phase == DRAIN else len(latencies)
        if load.calls_max:
            more = min(more, load.calls_max - self.sent)
        if self.answered == self.sent and not more and (self.phase == DRAIN or self.sent == load.calls_max):
            self._finish(now)
        return more

    def fire_due(self, now: int) -> None:
        """Send the calls of all bursts that are due."""
        load = self.load
        while self.sent < load.calls_max and (due_ns := self._begin_ns + (self._ticks_done + 1) * TICK_NS) <= now:
            self._ticks_done += 1
            until = min(int(load.rate * self._ticks_done * TICK_NS / 1e9), load.calls_max)
            if until > self.sent:
                self.fire(until - self.sent, due_ns)

    def check(self) -> None:
        """Run the checks that need all answers. Raise LoadError if one is wrong."""

    def verify(self, number: int, found: bytes) -> None:
        """Raise LoadError if a call's result is wrong. Unless the load is `exact`, compare only the sizes."""
        right = self.script.result(number)
        if len(found) != len(right) or (self.load.exact and found != right):
            raise LoadError(f"call {number}: found the result {found[:100]!r}, expected {right[:100]!r}")
        self.verified += 1

    def refusal(self, message: bytes) -> LoadError | None:
        """Return the error for a message with headers, which no answer has, or None if its headers are incomplete.

        If a call's subject has no subscribers, NATS sends the status 503 to the call's reply subject.
        """
        line, _, block = message.partition(b"\r\n")
        if b"\r\n\r\n" not in block:
            return None
        if not block.startswith(b"NATS/1.0 503"):
            return LoadError(f"expected an answer, found {message[:200]!r}")
        number = int(line.split(b" ")[1].rpartition(b".")[2])
        prefix, _, rest = self.script.frame(number).head.split()[1].decode().partition(".wrpc.")
        return LoadError(f"nobody serves {rest.rpartition('.')[2]} at {prefix}")

    def _measure(self, now: int) -> None:
        self.phase = MEASURE
        self._cpu.append(self._cpu_now())
        self._begin_ns = now
        if not (self.load.calls or self.load.rate):
            self._deadline_ns = now + int(self.load.seconds * 1e9)

    def _drain(self, now: int) -> None:
        self.phase = DRAIN
        self._end_ns = now
        self._cpu.append(self._cpu_now())

    def _finish(self, now: int) -> None:
        if self.phase == MEASURE:
            self._drain(now)
        try:
            self.check()
        except LoadError as error:
            self.fail(error)
        else:
            self.ended.set_result(None)

    def _cpu_now(self) -> tuple[int, ...]:
        return (time.process_time_ns(), *map(cpu_ns, self.load.watched.values()))

    def _start_ticks(self, begin_ns: int) -> None:
        """Start a thread that wakes the loop every millisecond. The loop's own timers can be a millisecond late."""
        wake, waker = os.pipe2(os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(0.0002)

        def tick() -> None:
            number = 0
            while not self.ended.done():
                number += 1
                wait_ns = begin_ns + number * TICK_NS - time.perf_counter_ns()
                if wait_ns > 0:
                    time.sleep(wait_ns / 1e9)
                    with suppress(BlockingIOError):
                        os.write(waker, b"\0")
            os.close(waker)

        def wake_up() -> None:
            if not os.read(wake, 4096):
                loop.remove_reader(wake)
                os.close(wake)
            elif not self.ended.done():
                self.fire_due(time.perf_counter_ns())

        loop.add_reader(wake, wake_up)
        Thread(target=tick, daemon=True).start()
