"""Reads deliveries with the headers that instances write: parts of atomic batches, changes with a condition or a time
to live, and deletes. It completes `quick.py`, and works in the same way.

    HMSG $KV.b.<bucket>.<key> <sid> $JS.ACK.KV_b.<consumer>.1.<sequence>.<consumer's>.<time>.<pending> 72 136 CRLF
    NATS/1.0 CRLF Nats-Batch-Id: <id> CRLF Nats-Batch-Sequence: <number> CRLF CRLF
    value CRLF

A frame with any other header, or with the same ones in another order, is parsed as usual. Each delivery moves the
position by itself, but those of a read are applied together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from keyvalue_replica.applier import Headed
from keyvalue_replica.core import Core
from keyvalue_replica.quick import delivery_pattern
from keyvalue_replica.shared_quick import PLACE, SharedBarriers

__all__ = ["HeadedDeliveries", "SharedHeadedDeliveries"]

log = logging.getLogger(__name__)

#: The sizes of a frame, and its headers in the order in which instances write them. Its groups follow the six of the
#: subject, the subscription or the consumer, and the place.
HEADERS = (
    rb" (\d{1,9}) (\d{1,9})\r\n"
    rb"NATS/1\.0\r\n"
    rb"(?:Nats-Batch-Id: ([!-~]+)\r\nNats-Batch-Sequence: \d+\r\n)?"
    rb"(?:Nats-Expected-Last-Subject-Sequence: \d+\r\n)?"
    rb"(?:Kv-Ttl-Ms: (\d{1,18})\r\nNats-TTL: \d+s\r\nNats-Rollup: sub\r\n"
    rb"|KV-Operation: (DEL|PURGE)\r\n(?:Nats-TTL: \d+s\r\nNats-Marker-Reason: Remove\r\n)?(?:Nats-Rollup: sub\r\n)?)?"
    rb"(Nats-Batch-Commit: 1\r\n)?"
    rb"\r\n"
)
SHARED = re.compile(rb"HMSG (\$KV\.[^. ]+\.(?!_kv\.wrpc\.)[^ ]+) \d+ " + PLACE + HEADERS)
NO_HEADERS: Mapping[bytes, bytes] = {}


def read_headed(found: re.Match[bytes], buffer: bytes, end: int) -> tuple[Headed, int] | None:
    """Return a delivery and the offset after its frame, or None if the frame is incomplete or its sizes are wrong."""
    subject, _, sequence, consumed, timestamp, pending, head, size, batch_id, ttl_ms, deletion, commit = found.groups()
    at, head_bytes = found.end(), int(head)
    payload_end = at + int(size) - head_bytes
    if at - found.end(8) - 2 != head_bytes or not at <= payload_end <= end - 2:
        return None
    headers = NO_HEADERS
    if ttl_ms is not None:
        headers = {b"kv-ttl-ms": ttl_ms}
    elif deletion is not None:
        headers = {b"kv-operation": deletion}
    place = int(sequence), int(consumed), int(timestamp), int(pending)
    return ((subject, headers, buffer[at:payload_end], place), batch_id or b"", commit is not None), payload_end + 2


def deliver(core: Core, deliveries: list[Headed]) -> None:
    """Let a core take deliveries of one read, and answer what it has passed."""
    try:
        core.deliver_headed(deliveries)
    except Exception:  # it must not end the connection
        log.exception("%d deliveries were not applied", len(deliveries))
    core.heard()
    core.release()


class HeadedDeliveries:
    """Reads the deliveries with headers of one consumer."""

    def __init__(self, core: Core, consumer: str) -> None:
        layout = core.layout
        self.prefix = b"HMSG " + layout.prefix
        self._core = core
        names = rb"b[-_0-9A-Za-z]*\.k[-_0-9A-Za-z]*"
        self._match = delivery_pattern(self.prefix, names, layout.stream, consumer, HEADERS).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        match, deliveries = self._match, list[Headed]()
        while (found := match(buffer, at)) is not None and found[2] == subscription:
            if (read := read_headed(found, buffer, end)) is None:
                break
            delivery, at = read
            deliveries.append(delivery)
        if deliveries:
            deliver(self._core, deliveries)
        return at


class SharedHeadedDeliveries:
    """Reads the deliveries with headers of any number of consumers.

    :param cores: the cores by the names of their consumers
    :param barriers: reads frames with the same prefix
    """

    def __init__(self, cores: Mapping[bytes, Core], barriers: SharedBarriers) -> None:
        self.prefix = barriers.prefix
        self._cores = cores
        self._barriers = barriers

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        if (taken := self._barriers.take(buffer, at, end, subscription)) > at:
            return taken
        match, deliveries = SHARED.match, dict[bytes, list[Headed]]()
        while (found := match(buffer, at)) is not None and found[2] in self._cores:
            if (read := read_headed(found, buffer, end)) is None:
                break
            delivery, at = read
            deliveries.setdefault(found[2], []).append(delivery)
        for consumer, of_consumer in deliveries.items():
            deliver(self._cores[consumer], of_consumer)
        return at
