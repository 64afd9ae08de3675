"""The process that sends the calls, as fast as one connection can. It has its own process so that it delays no one else.

For each line on its standard input, it prints the number of answered calls so far. A line "NUMBER KIND PROFILE" starts
that phase first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from secrets import token_hex

import uvloop

from bench.load.outcome import LoadError
from bench.load.wire import NatsProtocol, WireSubscription, split_address
from bench.load.workload import FUNCTIONS
from keyvalue_transport.nats.subjects import invocation_subject
from tests.torture.calls import Call, Calls, Phase

__all__ = ["Flood", "main"]

IN_FLIGHT_MAX = 256
#: Limit for the cost of the calls in flight. A NATS server would cut the flood off at 64 MiB of unread answers.
IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024
#: An empty message to `{inbox}.{number}.results` ends a call. No key, value or bucket name contains these bytes.
END = b".results 1 0\r\n\r\n"
PING = b"PING\r\n"


class Flood(NatsProtocol):
    """A connection that keeps many calls in flight. It counts answers, and does not read them.

    :ivar answered: number of ended calls
    """

    def __init__(self, prefix: str, calls: Calls) -> None:
        self._inbox = b"_INBOX.%b" % token_hex(11).encode()
        super().__init__("flood", [WireSubscription(self._inbox + b".*.results")])
        self.answered = 0
        self._prefix = prefix
        self._calls = calls
        self._phase: Iterator[Call] = iter(())
        self._costs: deque[int] = deque()
        self._cost = self._sent = 0
        self._tail = b""
        self._heads: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self._blocked = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def serve(self) -> None:
        self.ready.set_result(None)

    def begin(self, number: int, phase: Phase) -> None:
        """Continue with the calls of another phase."""
        self._phase = self._calls.phase(number, phase)
        self._fire()

    def receive(self, read: bytes) -> None:
        read = self._tail + read
        ended = read.count(END)
        self._tail = read[1 - len(END) :] if not read.endswith(END) else b""
        if PING in read:
            self.transport.write(b"PONG\r\n")
        if read.startswith(b"-ERR"):
            self.fail(LoadError(f"the NATS server reports {read[:200]!r}"))
        self.answered += ended
        for _ in range(min(ended, len(self._costs))):
            self._cost -= self._costs.popleft()
        self._fire()

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._fire()

    def _fire(self) -> None:
        out = []
        while len(self._costs) < IN_FLIGHT_MAX and self._cost < IN_FLIGHT_BYTES_MAX and not self._blocked:
            call = next(self._phase, None)
            if call is None:
                break
            self._costs.append(call.cost_bytes)
            self._cost += call.cost_bytes
            self._sent += 1
            out.append(self._frame(call))
        if out:
            self.transport.write(b"".join(out))

    def _frame(self, call: Call) -> bytes:
        key = call.function, call.source_id
        if key not in self._heads:
            subject = invocation_subject(self._prefix, FUNCTIONS[call.function].instance, call.function)
            block = f"NATS/1.0\r\nlink-name: default\r\nsource-id: {call.source_id}\r\n\r\n".encode()
            self._heads[key] = b"HPUB %b %b." % (subject.encode(), self._inbox), block
        head, block = self._heads[key]
        total = len(block) + len(call.params)
        return b"%b%d %d %d\r\n%b%b\r\n" % (head, self._sent, len(block), total, block, call.params)


async def serve(url: str, prefix: str, calls: Calls) -> None:
    """Send calls until standard input ends."""
    host, port = split_address(url)
    loop = asyncio.get_running_loop()
    _, flood = await loop.create_connection(lambda: Flood(prefix, calls), host, port)
    await asyncio.wait((flood.ready, flood.ended), return_when=asyncio.FIRST_COMPLETED)
    rest = b""

    def obey() -> None:
        nonlocal rest
        read = os.read(sys.stdin.fileno(), 4096)
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            if line:
                number, kind, profile = line.decode().split()
                flood.begin(int(number), Phase(kind, profile))
            print(flood.answered, flush=True)
        if not read and not flood.ended.done():
            flood.ended.set_result(None)

    loop.add_reader(sys.stdin.fileno(), obey)
    await flood.ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.flood", description="Send calls without pause.")
    parser.add_argument("url", help="NATS server")
    parser.add_argument("prefix", help="{lattice}.{provider}")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--buckets", type=int, required=True)
    parser.add_argument("--survivors", type=float, required=True)
    options = parser.parse_args(arguments)
    calls = Calls(options.seed, options.buckets, options.survivors)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.url, options.prefix, calls))
    return 0


if __name__ == "__main__":
    sys.exit(main())
