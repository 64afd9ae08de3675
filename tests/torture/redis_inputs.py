"""The command `scripts/torture redis`: any bytes, cut anywhere, to the Redis listener of a real provider.

One connection after another sends inputs from a seed, until the provider refuses one and closes it. The requests'
scanner, here in this process, says which input must be refused. Every THOUSAND inputs, another connection calls, and the
memory is measured. tests/torture/test_redis_inputs.py runs it for a moment.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

from bench.load.usage import resident_bytes
from keyvalue_transport.redis.requests import ProtocolError, Scanner
from tests.conftest import DEADLINE_S, NatsServer
from tests.integration.redis_provider import RedisProvider, redis_provider
from tests.integration.redis_server import Wire
from tests.torture.metrics import read_metrics

__all__ = ["Outcome", "main", "send_inputs"]

THOUSAND = 1_000
REQUEST_BYTES_MAX = 1_000
#: The memory may grow by this much after the first THOUSAND inputs. All keys together are far smaller.
GROWTH_BYTES_MAX = 16 * 1024 * 1024
REFUSAL = b"-ERR Protocol error: "
PIECES = (
    *(b"*", b"$", b"\r\n", b"1", b"3", b"GET", b"SET", b"k", b"\n", b'"', b"'", b"-1", b":", b"+", b"x" * 50),
    *(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", b"*1\r\n$4\r\nPING\r\n"),
    *(b">9999999", b"*1000000\r\n", b"$536870912\r\n", b"$1001\r\n", b"~1\r\n", b"*-1\r\n", b"*0\r\n", b"MGET k k\r\n"),
)


class Outcome(NamedTuple):
    """The figures of a run."""

    inputs: int
    refused: int
    calls: int
    growth_bytes: int
    seconds: float


def new_input(chance: Random) -> bytes:
    """Return random bytes, or random pieces of requests."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(1, 60))
    return b"".join(chance.choices(PIECES, k=chance.randrange(1, 9)))


def must_refuse(scanner: Scanner, read: bytes) -> bool:
    """Return True if Redis closes the connection because of these bytes."""
    try:
        scanner.feed(read)
    except ProtocolError:
        return True
    return False


class Peer:
    """A connection that sends inputs, cut anywhere."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._scanner = Scanner(REQUEST_BYTES_MAX)

    def send(self, read: bytes, chance: Random) -> bool:
        """Send an input in two pieces. Return True if it was refused and the connection is closed, as it must be."""
        cut = chance.randrange(len(read) + 1)
        is_refused = must_refuse(self._scanner, read)
        for piece in (read[:cut], read[cut:]):
            try:
                self._socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                assert is_refused, f"{read!r} was refused"
        tail = self._drain(is_refused)
        if is_refused:
            assert REFUSAL in tail, f"{read!r} was not refused: {tail!r}"
        return is_refused

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _drain(self, until_end: bool) -> bytes:
        """Read the answers, and return the last ones. They must end with the connection, or must not."""
        self._socket.settimeout(DEADLINE_S if until_end else 0)
        tail = b""
        try:
            while piece := self._socket.recv(65_536):
                tail = (tail + piece)[-200:]
        except BlockingIOError:
            return tail
        except ConnectionResetError:  # it was closed before all bytes were read, so the answer may be lost
            return REFUSAL if until_end else tail
        assert until_end, f"the connection was closed: {tail!r}"
        return tail


def send_inputs(provider: RedisProvider, inputs: int, seed: int) -> Outcome:
    """Send inputs, and judge the provider.

    :raises AssertionError: it ended, refused a request, did not refuse bytes, miscounted, or took too much memory
    """
    chance = Random(seed)
    began_s, pid = monotonic(), provider.process.process.pid
    refused = calls = before_bytes = growth_bytes = 0
    peer = Peer(provider.socket)
    with Wire(provider.socket) as good, ExitStack() as stack:
        stack.callback(lambda: peer.close())
        for number in range(1, inputs + 1):
            if peer.send(new_input(chance), chance):
                refused += 1
                peer.close()
                peer = Peer(provider.socket)
            if number % THOUSAND == 0:
                value = b"%d" % number
                assert good.calls([[b"SET", b"good", value], [b"GET", b"good"]]) == [b"OK", value]
                calls += 2
                now_bytes = resident_bytes(pid)
                before_bytes = before_bytes or now_bytes
                growth_bytes = now_bytes - before_bytes
                assert growth_bytes <= GROWTH_BYTES_MAX, f"{growth_bytes} bytes more after {number} inputs"
    counted = read_metrics(provider.process.output)["wrpc_keyvalue_redis_malformed_connections_total"]
    assert counted == refused, f"{counted} refused inputs are counted, not {refused}"
    assert provider.process.running
    return Outcome(inputs, refused, calls, growth_bytes, monotonic() - began_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0 if the provider kept all bars, and 1 if it missed one."""
    parser = argparse.ArgumentParser(
        "scripts/torture redis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="number of inputs (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="the inputs depend only on the seed (default 1)")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        server = NatsServer(Path(name))
        limits = {"redis_request_bytes_max": str(REQUEST_BYTES_MAX), "metrics_address": "127.0.0.1:0"}
        try:
            with redis_provider(Path(name), server, **limits) as provider:
                outcome = send_inputs(provider, options.inputs, options.seed)
        except AssertionError as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            server.stop()
    print(
        f"{outcome.inputs:,} inputs in {outcome.seconds:.0f} s: {outcome.refused:,} refused and counted, "
        f"{outcome.calls:,} other calls answered, RSS grew by {outcome.growth_bytes / 2**20:.1f} MiB"
    )
    return 0
