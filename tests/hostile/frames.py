"""A hostile NATS client: raw frames with odd headers, subjects, lengths and order, from a seed.

    Peer       one connection, which writes frames byte by byte
    Frames     the frames, from a random number generator
    Siege      sends frames to a provider, and judges it: it is not deaf, it ends each call, and it logs little

`scripts/torture peer --seconds 60 --seed 1` starts a NATS server and a provider on each path, and besieges them.
tests/hostile/test_frames.py runs it for a moment.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic

from keyvalue_provider.observe.log import PLACE_INTERVAL_S, PLACE_LINES_MAX
from keyvalue_transport.keyvalue.atomics import ATOMICS, encode_increment
from keyvalue_transport.keyvalue.batch import BATCH, encode_bucket_keys
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, encode_list_keys, encode_set
from keyvalue_transport.nats.subjects import invocation_subject
from tests.conftest import DEADLINE_S, HOST_ID, PATHS, NatsServer, Provider, launching

__all__ = ["CONFIG", "Frames", "Peer", "Siege", "besiege", "main"]

#: Half-open calls end soon, so that a siege can wait for them.
CONFIG = {"half_open_timeout_ms": "300", "stop_timeout_ms": "500"}
BATCH_FRAMES = 200
#: A subject and a reply subject together. With sizes and spaces, it is the NATS server's limit of 4,096 bytes.
LINE_BYTES_MAX = 4_080
#: The provider may log this many lines in an interval: the limit of one place in the code, times the places that
#: hostile frames reach.
LINES_MAX, LINES_INTERVAL_S = 15 * PLACE_LINES_MAX, PLACE_INTERVAL_S
MESSAGE = re.compile(rb"H?MSG (\S+) 1 (.*?) ?(?:\d+ )?(\d+)\r\n")
PLAIN_BLOCK = b"NATS/1.0\r\nsource-id: hostile\r\nlink-name: default\r\n\r\n"
BLOCKS = (
    *(b"XXXX\r\n\r\n", b"\r\n\r\n", b"x", b"\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 503\r\n\r\n"),
    *(b"NATS/1.0", b"NATS/1.0\r\n", b"NATS/1.0 100 Idle\xff\r\n\r\n", b"NATS/1.0\r\n\xff: \xff\r\n\r\n"),
    *(b"NATS/1.0\r\n:\r\n\r\n", b"NATS/1.0\r\ntraceparent:\r\ntraceparent:", b"NATS/2.0 7\r\na:b", b" " * 12),
    *(
        b"NATS/1.0\r\n" + b"a: b\r\n" * 2_000,
        b"NATS/1.0\r\nsource-id: " + b"\xf0\x9f" * 4_000 + b"\r\n\r\n",
        PLAIN_BLOCK,
    ),
)
#: Reply subjects that no answer reaches.
REPLIES = (
    *(b"a\x0bb", b"a\x0cb", b"a\rb", b"a\x00b", b"a\x7f", b"\xff", b"a.\xff.b", b"a..b", b"a.", b".a", b"a.*", b">"),
    *(b"x" * 3_000, b"x" * 4_096, b"$SYS.REQ.SERVER.PING", b"$JS.API.INFO", b"wasmbus.ctl.v1.x.link.get", b"wasmbus"),
)
TOKENS = (b"\xff", b"\x0b", b"a\rb", b"x" * 2_000, b"0", b"*")


class Peer:
    """A connection to NATS. It subscribes to `peer.>`, and reads what it is sent when it is asked to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self._buffer = b""
        self.send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB peer.> 1\r\n')
        self.messages()

    def send(self, frames: bytes) -> None:
        """Write bytes."""
        self._socket.sendall(frames)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def messages(self) -> list[tuple[bytes, bytes, bytes]]:
        """Return the subject, reply subject, and headers with payload of each message, after a round trip.

        :raises ConnectionError: the server has closed the connection
        """
        self.send(b"PING\r\n")
        found = []
        while True:
            while b"\r\n" not in self._buffer:
                self._read()
            if (frame := MESSAGE.match(self._buffer)) is not None:
                end = frame.end() + int(frame[3])
                while len(self._buffer) < end + 2:
                    self._read()
                found.append((frame[1], frame[2], self._buffer[frame.end() : end]))
                self._buffer = self._buffer[end + 2 :]
                continue
            line, self._buffer = self._buffer.split(b"\r\n", 1)
            if line == b"PONG":
                return found

    def _read(self) -> None:
        piece = self._socket.recv(65_536)
        if not piece:
            raise ConnectionError("the NATS server closed the hostile connection")
        self._buffer += piece

    def request(self, subject: str, payload: bytes) -> bytes:
        """Send a request, and return the answer."""
        self.send(publication(subject.encode(), b"peer.request", payload))
        end_s = monotonic() + DEADLINE_S
        while monotonic() < end_s:
            for to, _, answer in self.messages():
                if to == b"peer.request":
                    assert not answer.startswith(b"NATS/1.0 503"), f"{subject}: nobody listens"
                    return answer
        raise AssertionError(f"{subject}: no answer within {DEADLINE_S:g} s: the provider is deaf")


def publication(subject: bytes, reply: bytes, payload: bytes, block: bytes = b"") -> bytes:
    """Return a PUB frame, or an HPUB frame if there is a header block. Its control line is within the server's limit."""
    reply = reply[: LINE_BYTES_MAX - len(subject)]
    if block:
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(block), len(block + payload), block, payload)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


class Frames:
    """Hostile frames to a provider.

    :ivar awaited: the reply subjects of calls that must end
    """

    def __init__(self, provider: Provider, random: Random) -> None:
        self._random = random
        self._prefix = provider.prefix.encode()
        self._host = provider.host_subject("").encode()
        self._number = 0
        self.awaited: set[bytes] = set()
        self.inboxes = [b"_INBOX.nobody"]  # the provider's, from handshakes
        self._calls = [
            (invocation_subject(provider.prefix, instance, function).encode(), params)
            for instance, function, params in (
                (STORE, "get", encode_bucket_key(b"b", b"k")),
                (STORE, "set", encode_set(b"b", b"k", b"v" * 40)),
                (STORE, "list-keys", encode_list_keys(b"b", None)),
                (ATOMICS, "increment", encode_increment(b"n", b"k", 1)),
                (BATCH, "get-many", encode_bucket_keys(b"b", [b"k"] * 9)),
            )
        ]

    def listed(self) -> Iterator[bytes]:
        """Yield each odd block and each odd reply subject, to a function, to the host's subjects and as a piece."""
        health = self._host + b"health"
        for subject, params in (*self._calls[:1], (health, b"")):
            for block in BLOCKS:
                yield publication(subject, b"a.b", params, block)
            for reply in (*REPLIES, self._host + b"linkdefs.put", self._calls[0][0]):
                yield publication(subject, reply, params)
        for token in TOKENS:
            yield publication(b"%b.%b.params" % (self.inboxes[0], token), b"", b"x")

    def batch(self) -> Iterator[bytes]:
        """Yield `BATCH_FRAMES` frames."""
        for _ in range(BATCH_FRAMES):
            kind = self._random.choice((self._call, self._call, self._to_host, self._piece))
            yield from [kind()] * self._random.choice((1, 1, 1, 5))

    def _block(self) -> bytes:
        return self._random.choice(
            (b"", PLAIN_BLOCK, self._random.choice(BLOCKS), self._odd(b"NATS/1.0\r\na: b\r\n\r\n"))
        )

    def _odd(self, text: bytes) -> bytes:
        """Return a text with one byte changed, or cut."""
        at = self._random.randrange(len(text))
        return self._random.choice((text[:at], text[:at] + self._random.randbytes(1) + text[at + 1 :], text + text))

    def _reply(self) -> bytes:
        into_host = self._random.choice((b"config.update", b"linkdefs.put", b"linkdefs.del", b"health"))
        into_calls = self._random.choice(self._calls)[0]
        return self._random.choice((*REPLIES, self._host + into_host, into_calls, b"_INBOX.x", b""))

    def _call(self) -> bytes:
        subject, params = self._random.choice(self._calls)
        if self._random.random() < 0.3:
            params = self._odd(params)
        if self._random.random() < 0.5:
            return publication(subject, self._reply(), params, self._block())
        self._number += 1
        reply = b"peer.%d" % self._number
        self.awaited.add(reply)
        return publication(subject, reply, params, self._block())

    def _to_host(self) -> bytes:
        random = self._random
        rest = random.choice((b"health", b"linkdefs.put", b"linkdefs.del", b"config.update", b"default.shutdown"))
        link = {
            "source_id": f"c{random.randrange(9)}",
            "target": self._prefix.decode().split(".")[1],
            "name": "default",
        }
        payloads = {
            b"linkdefs.put": json.dumps(link | {"interfaces": ["store"], "source_config": random.choice(({}, 7))}),
            b"linkdefs.del": json.dumps(link),
            b"config.update": json.dumps(
                CONFIG | random.choice(({}, {"x" * random.randrange(9): "1"}, {"half_open_timeout_ms": "z"}))
            ),
            b"default.shutdown": json.dumps({"host_id": "another"}),
        }
        payload = payloads.get(rest, "").encode()
        if payload and random.random() < 0.5:
            payload = self._odd(payload)
        return publication(self._host + rest, self._reply(), payload, self._block())

    def _piece(self) -> bytes:
        """Return a piece of parameters for nobody, or into the inbox of a call."""
        inbox = self._random.choice(self.inboxes)
        token = self._random.choice((*TOKENS, inbox.rpartition(b".")[2]))
        return publication(
            b"%b.%b.params" % (inbox.rpartition(b".")[0], token),
            self._reply(),
            self._random.randbytes(9),
            self._block(),
        )


class Siege:
    """A provider under hostile frames.

    :param port: the port of the NATS server
    :param seed: the same seed gives the same frames
    """

    def __init__(self, provider: Provider, port: int, seed: int) -> None:
        self.frames = 0
        self._provider = provider
        self._port = port
        self._peer = Peer(port)  # sends the frames
        self._good = Peer(port)  # checks the provider
        self._random = Random(seed)
        self._hostile = Frames(provider, self._random)
        self._began_s = monotonic()
        self._lines_before = provider.output.count("\n")
        self._send(self._hostile.listed())
        self._peer.messages()
        self._check()

    def attack(self) -> None:
        """Send a batch of frames, and check the provider."""
        try:
            self._send(self._hostile.batch())
            self._await_ends()
        except ConnectionError:  # the NATS server closes a connection for some frames, such as one with a long line
            self._peer.close()
            self._peer = Peer(self._port)
            self._hostile.awaited.clear()  # the answers went to the closed connection
        self._check()

    def close(self) -> None:
        """Close the connections."""
        self._peer.close()
        self._good.close()

    def _send(self, frames: Iterator[bytes]) -> None:
        for frame in frames:
            self._peer.send(frame)
            self.frames += 1

    def _await_ends(self) -> None:
        """Wait until each awaited call has ended. End those that expect more parameters."""
        end_s = monotonic() + DEADLINE_S
        awaited = self._hostile.awaited
        while awaited:
            assert monotonic() < end_s, f"{len(awaited)} calls did not end, for example {min(awaited)!r}"
            for to, inbox, payload in self._peer.messages():
                if to.endswith(b".results"):
                    if not payload:
                        awaited.discard(to.removesuffix(b".results"))
                elif inbox.startswith(b"_INBOX."):
                    self._hostile.inboxes = [*self._hostile.inboxes[-9:], inbox]

    def _check(self) -> None:
        provider = self._provider
        health = json.loads(self._good.request(provider.host_subject("health"), b""))
        assert "NATS is not connected" not in health["message"]
        output = provider.output
        for fault in ("the connection is lost", "the reading has ended", "Traceback"):
            assert fault not in output, output[-4_000:]
        lines = output.count("\n") - self._lines_before
        lines_max = LINES_MAX * (1 + (monotonic() - self._began_s) / LINES_INTERVAL_S)
        assert lines <= lines_max, f"{lines} lines for {self.frames} frames: {output[-4_000:]}"

    def end(self) -> None:
        """Shut the provider down as its host does."""
        answer = self._good.request(
            self._provider.host_subject("default.shutdown"), json.dumps({"host_id": HOST_ID}).encode()
        )
        assert b"success" in answer
        assert self._provider.wait() == 0


def besiege(provider: Provider, port: int, seed: int, seconds: float, batches_min: int = 1) -> int:
    """Send hostile frames for some seconds, then stop the provider. Return the number of frames.

    :raises AssertionError: the provider was deaf, left a call unanswered, or logged too much
    """
    with closing(Siege(provider, port, seed)) as siege:
        end_s, batches = monotonic() + seconds, 0
        while batches < batches_min or monotonic() < end_s:
            siege.attack()
            batches += 1
        siege.end()
        return siege.frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0 if the provider kept all bars, and 1 if it missed one."""
    parser = argparse.ArgumentParser(
        "scripts/torture peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="duration, for both paths together (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="the frames depend only on the seed (default 1)")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as directory:
        server = NatsServer(Path(directory))
        try:
            for path in PATHS:
                config: Mapping[str, str] = CONFIG | {"transport": path}
                with launching(server.url, Path(directory)) as launch:
                    frames = besiege(launch(config), server.port, options.seed, options.seconds / len(PATHS))
                print(f"{path}: {frames} frames, seed {options.seed}: no fault", flush=True)  # noqa: T201
        except AssertionError as error:
            print(f"{path}: seed {options.seed}: {error}", file=sys.stderr)  # noqa: T201
            return 1
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
