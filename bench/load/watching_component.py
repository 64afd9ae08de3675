"""A process that watches for changes as a component does. It receives calls, and answers either all calls or none.

For each line on its standard input, it prints the number of calls so far. It reads the first line only after it has
subscribed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from secrets import token_hex

import uvloop

from bench.load.outcome import LoadError
from bench.load.wire import NatsProtocol, WireSubscription, split_address
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.subjects import invocation_subject

__all__ = ["WatchingComponent", "main"]


class WatchingComponent(NatsProtocol):
    """A connection that counts calls, and answers each call unless it is stuck. An event must fit in one message.

    :ivar told: number of calls so far
    """

    def __init__(self, prefix: str, is_stuck: bool) -> None:
        subject = invocation_subject(prefix, WATCHER, "*")
        super().__init__("bench watcher", [WireSubscription(subject.encode(), prefix.encode())])
        self.told = 0
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_stuck = is_stuck
        self._inbox = b"_INBOX.%b" % token_hex(11).encode()
        self._rest = b""

    def serve(self) -> None:
        self.listening.set_result(None)

    def receive(self, read: bytes) -> None:
        if self._rest:
            read = self._rest + read
        at = 0
        out: list[bytes] = []
        while (line_end := read.find(b"\r\n", at)) >= 0:
            words = read[at:line_end].split(b" ")
            stop = line_end + 2
            if words[0] in (b"HMSG", b"MSG"):
                stop += int(words[-1]) + 2
                if stop > len(read):
                    break
                self.told += 1
                if not self._is_stuck:
                    out.append(b"PUB %b %b 0\r\n\r\nPUB %b.results 0\r\n\r\n" % (words[3], self._inbox, words[3]))
            elif words[0] == b"PING":
                out.append(b"PONG\r\n")
            else:
                return self.fail(LoadError(f"expected a call, found {b' '.join(words)[:200]!r}"))
            at = stop
        self._rest = read[at:]
        if out:
            self.transport.write(b"".join(out))
        return None


async def serve(url: str, prefix: str, is_stuck: bool) -> None:
    """Count calls until standard input ends."""
    host, port = split_address(url)
    loop = asyncio.get_running_loop()
    _, watcher = await loop.create_connection(lambda: WatchingComponent(prefix, is_stuck), host, port)
    await asyncio.wait((watcher.listening, watcher.ended), return_when=asyncio.FIRST_COMPLETED)

    def answer() -> None:
        asked = os.read(sys.stdin.fileno(), 4096)
        for _ in range(asked.count(b"\n")):
            print(watcher.told, flush=True)
        if not asked and not watcher.ended.done():
            watcher.ended.set_result(None)

    loop.add_reader(sys.stdin.fileno(), answer)
    await watcher.ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load.watching_component", description="Watch for changes as a component does."
    )
    parser.add_argument("url", help="NATS server")
    parser.add_argument("prefix", help="{lattice}.{component}")
    parser.add_argument("--stuck", action="store_true", help="never answer a call")
    options = parser.parse_args(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.url, options.prefix, options.stuck))
    return 0


if __name__ == "__main__":
    sys.exit(main())
