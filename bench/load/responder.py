"""The bare responder: a baseline that does only the work that every provider in Python must do.

It is launched like a provider. It finds the frames of a read with `bytes.find`, answers each frame with a constant
result of the right shape, and writes all answers at once. It uses no NATS library, decodes nothing, and stores no
keys or values. It waits for large parameters and sends large results in pieces, with the same handshakes as a
provider. It skips payloads without copying them.

It has three options: `page_keys`, `batch_keys` (the number of keys in a get-many) and `value_bytes` (the size of a
value in get, get-many and set). It also serves as a component that watches. With `is_stuck`, it never answers events.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from secrets import token_hex

import uvloop

from bench.load.case import Load
from bench.load.wire import NatsProtocol, WireSubscription, split_address
from bench.load.workload import COUNT_FROM, FUNCTIONS, key_of
from keyvalue_provider.host.host_data import HostData, read_host_data
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.subjects import invocation_subject

__all__ = ["NUMBERS", "Responder", "main"]

#: Ids of the subscriptions: functions, all functions of a component that watches, the remaining pieces of parameters.
NUMBERS = {name: number for number, name in enumerate((*FUNCTIONS, "events", "params"), 1)}
SET = b"%d" % NUMBERS["set"]
EVENTS = b"%d" % NUMBERS["events"]
PARAMS = b"%d" % NUMBERS["params"]
SIZES = {b"%d" % size: size for size in range(4096)}
LAST = b".results 0\r\n\r\n"


class Responder(NatsProtocol):
    """A connection to NATS that answers every call."""

    def __init__(self, host_data: HostData) -> None:
        prefix = f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}"
        instances = {**{name: function.instance for name, function in FUNCTIONS.items()}, "*": WATCHER}
        subjects = [invocation_subject(prefix, instance, name).encode() for name, instance in instances.items()]
        self._inbox = b"_INBOX.%b" % token_hex(11).encode()
        functions = [WireSubscription(subject, prefix.encode()) for subject in subjects]
        super().__init__("bench responder", [*functions, WireSubscription(self._inbox + b".*.params")])
        defaults = {"value_bytes": "64", "page_keys": "1000", "batch_keys": "1"}
        sizes = {name: int(host_data.config.get(name, default)) for name, default in defaults.items()}
        load = Load(url="", prefix=prefix, counted=COUNT_FROM, **sizes)  # type: ignore[arg-type]
        keys = [key_of(index) for index in range(max(load.page_keys, load.batch_keys))]
        counts = {"list-keys": load.page_keys, "get-many": load.batch_keys}
        results = [function.result(load, keys[: counts.get(name, 1)], 1) for name, function in FUNCTIONS.items()]
        self._results = {b"%d" % number: result for number, result in enumerate((*results, b""), 1)}
        self._set_bytes = len(FUNCTIONS["set"].params(load, keys))
        self._is_stuck = host_data.config.get("is_stuck") == "true"
        self._handshake = b" _INBOX.%b 0\r\n\r\nPUB " % token_hex(11).encode()
        self._middles: dict[bytes, bytes] = {}  # for one-message answers: the bytes between the reply subjects
        self._pieces: dict[bytes, list[bytes]] = {}
        self._tokens = 0
        self._half_open: dict[bytes, tuple[bytes, int]] = {}  # by token: reply subject and number of missing bytes
        self._line = b""
        self._left = 0  # number of missing bytes of the frame whose control line is `_words`
        self._words: list[bytes] = []

    def serve(self) -> None:
        """Prepare the answers, which depend on max_payload.

        If a function's parameters and result each fit in one message, `receive` answers the function's calls itself.
        """
        size = self.max_payload
        for number, result in self._results.items():
            if result and max(len(result), self._set_bytes if number == SET else 0) <= size // 2:
                self._middles[number] = b".results %d\r\n%b\r\nPUB " % (len(result), result)
            self._pieces[number] = [result[at : at + size] for at in range(0, len(result), size)]

    def receive(self, read: bytes) -> None:
        at = 0
        out: list[bytes] = []
        if self._left:
            if self._left > len(read):
                self._left -= len(read)
                return
            at, self._left = self._left, 0
            self._answer(self._words, out)
        elif self._line:
            read = self._line + read
            self._line = b""
        find = read.find
        end = len(read)
        middle_of = self._middles.get
        handshake = self._handshake
        while at < end:
            line_end = find(b"\r\n", at)
            if line_end < 0:
                self._line = read[at:]
                break
            words = read[at:line_end].split(b" ")
            if len(words) < 4:
                if words[0] == b"PING":
                    out.append(b"PONG\r\n")
                at = line_end + 2
                continue
            at = line_end + 4 + (SIZES.get(words[-1]) or int(words[-1]))
            if at > end:
                self._left = at - end
                self._words = words
                break
            middle = middle_of(words[2])
            if middle is None:
                self._answer(words, out)
            else:
                reply = words[3]
                out += (b"PUB ", reply, handshake, reply, middle, reply, LAST)
        if out:
            self.transport.write(b"".join(out))

    def _answer(self, words: list[bytes], out: list[bytes]) -> None:
        """Answer a complete frame of any kind."""
        number = words[2]
        size = int(words[-1])
        if number == PARAMS:
            token = words[1].split(b".")[-2]
            if token not in self._half_open:
                return
            reply, left = self._half_open.pop(token)
            if size < left:
                if size:
                    self._half_open[token] = reply, left - size
                return
            number = SET
        elif number == EVENTS and self._is_stuck:
            return
        else:
            reply = words[3]
            left = self._set_bytes - size + (int(words[-2]) if words[0] == b"HMSG" else 0)
            if number == SET and left > 0:
                self._tokens += 1
                token = b"%d" % self._tokens
                self._half_open[token] = reply, left
                out.append(b"PUB %b %b.%b 0\r\n\r\n" % (reply, self._inbox, token))
                return
            out += (b"PUB ", reply, self._handshake[:-4])
        for piece in self._pieces[number]:
            out += (b"PUB %b.results %d\r\n" % (reply, len(piece)), piece, b"\r\n")
        out += (b"PUB ", reply, LAST)


async def serve(host_data: HostData) -> None:
    """Answer calls until the connection ends."""
    host, port = split_address(host_data.lattice_rpc_url)
    _, responder = await asyncio.get_running_loop().create_connection(lambda: Responder(host_data), host, port)
    gc.disable()  # the responder creates no reference cycles
    await responder.ended


def main() -> int:
    """Read host data from standard input and serve."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(read_host_data(sys.stdin.fileno())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
