"""Quick readers as in `quick.py`, for any number of cores (`wires.py`).

Those of deliveries take the frames of any subscription, because they know a consumer by its name, which is random.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from keyvalue_replica.core import Core
from keyvalue_replica.layout import BARRIER_BLOCK
from keyvalue_replica.plain_layout import BARRIER_TOKENS, PLAIN_BARRIER_BLOCK
from keyvalue_replica.quick import NUMBERS, STORED, DeliveryRun, acknowledge, place_in

__all__ = ["SharedAcknowledgements", "SharedBarriers", "SharedDeliveries"]

log = logging.getLogger(__name__)

#: The reply subject of a delivery of any consumer.
PLACE = rb"\$JS\.ACK\.[^. ]+\.([0-9a-f]{16})\.1\." + NUMBERS
#: Its groups from the fifth on are those of a delivery in `quick.py`.
DELIVERY = re.compile(rb"MSG (\$KV\.[^. ]+\.((?!_kv\.wrpc\.)[^ ]+)) (\d+) " + PLACE + rb" (\d{1,9})\r\n")
BARRIER = re.compile(
    rb"HMSG (\$KV\.[^. ]+\."
    + re.escape(BARRIER_TOKENS)
    + rb"[0-9a-f]+) \d+ "
    + PLACE
    + rb" \d+ \d+\r\n(?:"
    + re.escape(BARRIER_BLOCK)
    + b"|"
    + re.escape(PLAIN_BARRIER_BLOCK)
    + rb")(\d{1,18})\r\n"
)


class SharedAcknowledgements:
    """Reads the acknowledgements of all cores.

    :param inbox: the prefix of their subjects, without the last point
    :param cores: the cores by number
    """

    def __init__(self, inbox: str, cores: Mapping[bytes, Core]) -> None:
        self.prefix = f"MSG {inbox}.".encode()
        self._cores = cores
        self._match = re.compile(re.escape(self.prefix) + rb"(\d{1,18})\.(\d{1,18})" + STORED).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the acknowledgements at `at`. Return the offset after the last one."""
        match, before = self._match, b""
        numbers: list[bytes] = []
        sequences: list[bytes] = []
        while (found := match(buffer, at)) is not None:
            number, token, sid, sequence = found.groups()
            if sid != subscription:
                break
            if number != before:
                self._pass_on(before, numbers, sequences)
                before, numbers, sequences = number, [], []
            numbers.append(token)
            sequences.append(sequence)
            at = found.end()
        self._pass_on(before, numbers, sequences)
        return at

    def _pass_on(self, number: bytes, numbers: list[bytes], sequences: list[bytes]) -> None:
        core = self._cores.get(number)
        if numbers and core is not None:
            acknowledge(core, numbers, sequences)


class SharedBarriers:
    """Reads the deliveries of barriers.

    :param cores: the cores by the names of their consumers
    """

    def __init__(self, cores: Mapping[bytes, Core]) -> None:
        self.prefix = b"HMSG $KV."
        self._cores = cores

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the barriers at `at`. Return the offset after the last one."""
        touched: dict[bytes, Core] = {}
        while (found := BARRIER.match(buffer, at)) is not None:
            subject, consumer, sequence, consumed, timestamp, pending, token = found.groups()
            core = self._cores.get(consumer)
            if core is None:
                break
            touched[consumer] = core
            try:
                core.deliver_barrier(subject, int(token), (int(sequence), int(consumed), int(timestamp), int(pending)))
            except Exception:  # it must not end the connection
                log.exception("a barrier was not handled")
            at = found.end()
        release(touched)
        return at


class SharedDeliveries:
    """Reads the deliveries without headers.

    :param cores: the cores by the names of their consumers
    """

    def __init__(self, cores: Mapping[bytes, Core]) -> None:
        self.prefix = b"MSG $KV."
        self._cores = cores

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        match, cores, touched = DELIVERY.match, self._cores, dict[bytes, Core]()
        core: Core | None = None
        before = b""
        run: DeliveryRun | None = None
        known: re.Match[bytes] | None = None  # the last of the deliveries that were applied when they were acknowledged
        known_count = 0
        while (found := match(buffer, at)) is not None:
            consumer, sequence, size = found.group(4, 5, 9)
            payload_at = found.end()
            payload_end = payload_at + int(size)
            if consumer != before:
                if core is not None and known is not None:
                    core.deliver_known(known_count, place_in(known))
                if run is not None:
                    run.end()
                known, known_count, before, core = None, 0, consumer, cores.get(consumer)
                run = DeliveryRun(core) if core is not None and core.takes_runs else None
            if payload_end + 2 > end or core is None:
                break
            touched[consumer] = core
            at = payload_end + 2
            if int(sequence) <= core.position.applied:
                known = found
                known_count += 1
                continue
            try:
                if known is not None:
                    core.deliver_known(known_count, place_in(known))
                    known, known_count = None, 0
                if run is None or not run.add(found, b"", found[2], buffer[payload_at:payload_end]):
                    core.deliver_plain(found[1], (b"", found[2]), buffer[payload_at:payload_end], place_in(found))
            except Exception:  # it must not end the connection
                log.exception("a delivery was not applied")
        if core is not None and known is not None:
            core.deliver_known(known_count, place_in(known))
        if run is not None:
            run.end()
        release(touched)
        return at


def release(touched: Mapping[bytes, Core]) -> None:
    """Answer what the cores have passed."""
    for core in touched.values():
        core.heard()
        core.release()
