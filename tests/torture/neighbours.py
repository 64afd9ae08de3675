"""The other callers of a hostile run. They run in the command's own process, beside the flood's.

    careful caller     sets and gets a small value every 100 ms, checks the value, and measures how long it waits
    health probe       requests the health every second
    half-open caller   begins calls with headers of almost 1 MB, and never completes them
    unread caller      requests large values, and does not read the answers for a while

Each runs until its task is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from secrets import token_hex
from time import monotonic

import nats

from bench.load.wire import NatsProtocol, WireSubscription, split_address
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import TransportError
from tests.torture.figures import Waits

__all__ = ["ask_health", "call_carefully", "leave_half_open", "leave_unread"]

ANSWER_TIMEOUT_S = 30.0
CAREFUL_INTERVAL_S = 0.1
HEALTH_INTERVAL_S = 1.0
HALF_OPEN_INTERVAL_S = 5.0
HALF_OPEN_CALLS = 12
HEADER_BYTES = 1_000_000
UNREAD_INTERVAL_S = 7.0
UNREAD_S = 3.0
UNREAD_CALLS = 40
UNREAD_VALUE_BYTES = 1_000_000


async def call_carefully(url: str, prefix: str, waits: Waits) -> None:
    """Set and get a small value every 100 ms. A refused call is answered. A wrong value is a fault."""
    number = 0
    stored: set[bytes | None] = {None}  # the values that the key may have
    async with KeyValueClient(url, prefix, source_id="careful", timeout_s=ANSWER_TIMEOUT_S) as client:
        while True:
            number += 1
            value = b"%d" % number
            began_s = monotonic()
            try:
                await client.set("careful", "key", value)
                stored = {value}
            except InterfaceError:
                waits.refused += 1
            except TransportError as error:
                waits.faults.append(f"set after {monotonic() - began_s:.1f} s: {error}")
                stored |= {value}
            waits.add(monotonic() - began_s)
            began_s = monotonic()
            try:
                found = await client.get("careful", "key")
                if found not in stored:
                    waits.faults.append(f"get: found {found!r}, expected {stored}")
            except (InterfaceError, TransportError) as error:
                waits.faults.append(f"get after {monotonic() - began_s:.1f} s: {error}")
            waits.add(monotonic() - began_s)
            await asyncio.sleep(CAREFUL_INTERVAL_S)


async def ask_health(url: str, subject: str, waits: Waits) -> None:
    """Request the health every second. An unhealthy provider is a fault."""
    client = await nats.connect(url)
    try:
        while True:
            began_s = monotonic()
            try:
                answer = json.loads((await client.request(subject, timeout=ANSWER_TIMEOUT_S)).data)
                if not answer["healthy"]:
                    waits.faults.append(f"unhealthy: {answer['message'][:200]}")
            except (nats.errors.Error, TimeoutError) as error:
                waits.faults.append(f"after {monotonic() - began_s:.1f} s: {error or type(error).__name__}")
            waits.add(monotonic() - began_s)
            await asyncio.sleep(HEALTH_INTERVAL_S)
    finally:
        with suppress(nats.errors.Error):
            await client.close()


class Raw(NatsProtocol):
    """A connection that ignores everything that it receives, and answers the server's PING."""

    def __init__(self, subject: bytes) -> None:
        super().__init__("hostile", [WireSubscription(subject)])
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda ended: ended.exception())  # the server may cut a hostile connection

    def serve(self) -> None:
        self.ready.set_result(None)

    def receive(self, read: bytes) -> None:
        if b"PING\r\n" in read:
            self.transport.write(b"PONG\r\n")


async def connected(url: str, subject: bytes) -> Raw:
    """Return an open connection that has subscribed.

    :raises OSError: the server is not reachable
    """
    host, port = split_address(url)
    _, raw = await asyncio.get_running_loop().create_connection(lambda: Raw(subject), host, port)
    await asyncio.wait((raw.ready, raw.ended), return_when=asyncio.FIRST_COMPLETED)
    return raw


async def _repeat(url: str, act: Callable[[Raw, bytes], None], interval_s: float, unread_s: float) -> None:
    inbox = b"_INBOX.%b" % token_hex(11).encode()
    raw = await connected(url, inbox + b".>")
    try:
        while True:
            if raw.ended.done():
                raw = await connected(url, inbox + b".>")
            if unread_s:
                raw.transport.pause_reading()
            act(raw, inbox)
            await asyncio.sleep(unread_s)
            if unread_s and not raw.ended.done():
                raw.transport.resume_reading()
            await asyncio.sleep(interval_s)
    finally:
        raw.transport.abort()


async def leave_half_open(url: str, prefix: str, rng: Random) -> None:
    """Begin calls whose headers take almost a whole message, and whose parameters are incomplete."""
    subject = invocation_subject(prefix, STORE, "set").encode()
    names = (b"source-id", b"link-name", b"traceparent", b"x-unknown")

    def act(raw: Raw, inbox: bytes) -> None:
        for number in range(HALF_OPEN_CALLS):
            block = b"NATS/1.0\r\n%b: %b\r\n\r\n" % (rng.choice(names), b"h" * HEADER_BYTES)
            params = b"\x06bucket\x03key\x80\x80\x40" + b"v" * 100
            total = len(block) + len(params)
            raw.transport.write(
                b"HPUB %b %b.%d %d %d\r\n%b%b\r\n" % (subject, inbox, number, len(block), total, block, params)
            )

    await _repeat(url, act, HALF_OPEN_INTERVAL_S, 0.0)


async def leave_unread(url: str, prefix: str) -> None:
    """Request large values, and read the answers only after a while."""
    async with KeyValueClient(url, prefix, timeout_s=ANSWER_TIMEOUT_S) as client:
        with suppress(InterfaceError, TransportError):  # in a full store, the gets find no value
            await client.set("unread", "large", b"v" * UNREAD_VALUE_BYTES)
    params = encode_bucket_key(b"unread", b"large")
    subject = invocation_subject(prefix, STORE, "get").encode()

    def act(raw: Raw, inbox: bytes) -> None:
        for number in range(UNREAD_CALLS):
            raw.transport.write(b"PUB %b %b.%d %d\r\n%b\r\n" % (subject, inbox, number, len(params), params))

    await _repeat(url, act, UNREAD_INTERVAL_S, UNREAD_S)
