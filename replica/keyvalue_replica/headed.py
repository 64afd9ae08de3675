"""Reads deliveries with the headers that instances write: parts of atomic batches, changes with a condition or a time
to live, and deletes. It completes `quick.py`, and works in the same way.

    HMSG $KV.b.<bucket>.<key> <sid> $JS.ACK.KV_b.<consumer>.1.<sequence>.<consumer's>.<time>.<pending> 72 136 CRLF
    NATS/1.0 CRLF Nats-Batch-Id: <id> CRLF Nats-Batch-Sequence: <number> CRLF CRLF
    value CRLF

A frame with any other header, or with the same ones in another order, is parsed as usual. Each delivery moves the
position by itself, but those of a read are applied together. Runs of new sets of one batch are split as in `quick.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from keyvalue_replica.applier import Headed, Message
from keyvalue_replica.core import Core
from keyvalue_replica.quick import RUN_FRAMES_MIN, Runs, delivery_pattern
from keyvalue_replica.shared_quick import PLACE, SharedBarriers

__all__ = ["HeadedDeliveries", "SharedHeadedDeliveries"]

log = logging.getLogger(__name__)

#: The sizes of a frame, and its headers in the order in which instances write them. Its groups follow the six of the
#: subject, the subscription or the consumer, and the place.
HEADERS = (
    rb" (\d{1,9}) (\d{1,9})\r\n"
    rb"NATS/1\.0\r\n"
    rb"(?:Nats-Batch-Id: ([!-~]+)\r\nNats-Batch-Sequence: (\d+)\r\n)?"
    rb"(?:Nats-Expected-Last-Subject-Sequence: \d+\r\n)?"
    rb"(?:Kv-Ttl-Ms: (\d{1,18})\r\n(?:Kv-Deadline-Ns: (\d{1,19})\r\n)?Nats-TTL: \d+s\r\nNats-Rollup: sub\r\n"
    rb"|KV-Operation: (DEL|PURGE)\r\n(?:Nats-TTL: \d+s\r\nNats-Marker-Reason: Remove\r\n)?(?:Nats-Rollup: sub\r\n)?)?"
    rb"(Nats-Batch-Commit: 1\r\n)?"
    rb"\r\n"
)
#: The group of the number in a batch.
BATCH_NUMBER = 10
SHARED = re.compile(rb"HMSG (\$KV\.[^. ]+\.(?!_kv\.wrpc\.)[^ ]+) \d+ " + PLACE + HEADERS)
NO_HEADERS: Mapping[bytes, bytes] = {}


def read_headed(found: re.Match[bytes], buffer: bytes, end: int) -> tuple[Headed, int] | None:
    """Return a delivery and the offset after its frame, or None if the frame is incomplete or its sizes are wrong."""
    subject, _, sequence, consumed, timestamp, pending, head, size, batch_id, _, ttl_ms, until_ns, deletion, commit = (
        found.groups()
    )
    at, head_bytes = found.end(), int(head)
    payload_end = at + int(size) - head_bytes
    if at - found.end(8) - 2 != head_bytes or not at <= payload_end <= end - 2:
        return None
    headers = NO_HEADERS
    if ttl_ms is not None:
        headers = {b"kv-ttl-ms": ttl_ms}
        if until_ns is not None:
            headers[b"kv-deadline-ns"] = until_ns
    elif deletion is not None:
        headers = {b"kv-operation": deletion}
    place = int(sequence), int(consumed), int(timestamp), int(pending)
    return ((subject, headers, buffer[at:payload_end], place), batch_id or b"", commit is not None), payload_end + 2


def deliver(core: Core, deliveries: list[Headed]) -> None:
    """Let a core take deliveries of one read."""
    try:
        core.deliver_headed(deliveries)
    except Exception:  # it must not end the connection
        log.exception("%d deliveries were not applied", len(deliveries))


class HeadedDeliveries:
    """Reads the deliveries with headers of one consumer."""

    def __init__(self, core: Core, consumer: str) -> None:
        layout = core.layout
        self.prefix = b"HMSG " + layout.prefix
        self._core = core
        names = rb"b[-_0-9A-Za-z]*\.k[-_0-9A-Za-z]*"
        self._match = delivery_pattern(self.prefix, names, layout.stream, consumer, HEADERS).match
        self._runs = Runs()

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        core, match, began = self._core, self._match, at
        takes_runs, deliveries = not core.layout.max_age_ns, list[Headed]()
        while (found := match(buffer, at)) is not None and found[2] == subscription:
            if (read := read_headed(found, buffer, end)) is None:
                break
            frame_at, (delivery, at) = at, read
            deliveries.append(delivery)
            if (
                takes_runs
                and found.lastindex == BATCH_NUMBER
                and buffer.startswith(self.prefix, at + (RUN_FRAMES_MIN - 2) * (at - frame_at))
            ):
                applied = core.position.applied
                deliver(core, deliveries)
                deliveries = []
                if applied < int(found[3]) == core.position.applied:  # it is new, and waits for the rest of its batch
                    at += (at - frame_at) * self._take_run(buffer, found, frame_at, at, end)
        if deliveries:
            deliver(core, deliveries)
        if at > began:
            core.heard()
            core.release()
        return at

    def _take_run(self, buffer: bytes, first: re.Match[bytes], at: int, frame_end: int, end: int) -> int:
        """Take the sets of a batch that are like the first one, and are of the same bucket. Return their number."""
        consumed, timestamp_ns, pending = map(int, first.group(4, 5, 6))
        if consumed < 10:  # as in `quick.py`
            return 0
        key_at, messages = buffer.rindex(b".", *first.span(1)) + 1, list[Message]()
        subject = buffer[first.start(1) : key_at]
        bounds = at, key_at, first.end(1), *first.span(3), *first.span(6), *first.span(BATCH_NUMBER), first.end()
        frames = self._runs.split(buffer, "ssssxssxsss", (*bounds, frame_end - 2, frame_end), end)
        head, _, middle, _, _, sizes, rest, _, tail = next(frames)
        for its_head, token, its_middle, sequence, left, its_sizes, its_rest, payload, its_tail in frames:
            if (its_head, its_middle, its_sizes, its_rest, its_tail) != (head, middle, sizes, rest, tail):
                break
            if left == b"0" or not (left.isdigit() and sequence.isdigit()):
                break
            # Nobody needs the other numbers of a set without a time to live, so those of the first one do.
            messages.append((subject + token, NO_HEADERS, payload, (int(sequence), consumed, timestamp_ns, pending)))
        count = len(messages)
        last = self._match(buffer, at + count * (frame_end - at)) if count else None
        if last is None or (read := read_headed(last, buffer, end)) is None:
            return 0
        try:
            self._core.deliver_part(messages, read[0][0][3])
        except Exception:  # it must not end the connection
            log.exception("%d deliveries were not applied", count)
        return count


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
            core = self._cores[consumer]
            deliver(core, of_consumer)
            core.heard()
            core.release()
        return at
