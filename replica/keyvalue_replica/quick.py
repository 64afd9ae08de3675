"""Reads the kinds of frames that come most often: acknowledgements, plain deliveries, and barriers.

    MSG _INBOX.abc.<number> <sid> 28 CRLF {"stream":"KV_b","seq":<sequence>} CRLF
    MSG $KV.b.<bucket>.<key> <sid> $JS.ACK.KV_b.<consumer>.1.<sequence>.<consumer's>.<time>.<pending> 5 CRLF value CRLF
    HMSG $KV.b.i.b.<instance> <sid> $JS.ACK... 74 75 CRLF <the headers of a barrier> <number> CRLF

A regular expression reads such a frame in a third of the time that parsing takes. All others are parsed as usual.

A run is a sequence of such frames of one size, which differ only in their variable fields. `struct` splits a run into
fields in a third of the time that the regular expression takes. Runs never change a result.

A server often sends an acknowledgement and the delivery of the same message in turn. So there are also runs of pairs.
Deliveries of messages that were applied when they were acknowledged are skipped together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from operator import sub
from struct import Struct

from keyvalue_replica.core import Core
from keyvalue_replica.layout import BARRIER_BLOCK

__all__ = ["Acknowledgements", "Barriers", "Deliveries"]

log = logging.getLogger(__name__)

#: What follows the number in an acknowledgement's subject.
STORED = rb' (\d+) \d+\r\n\{"stream":"[^"]*",(?:"domain":"[^"]*",)?"seq":(\d{1,18})\}\r\n'
#: The numbers in a delivery's reply subject. Their groups are those of `Delivery`. They do not match the first delivery of a
#: consumer, with which the core checks where the stream goes on.
NUMBERS = rb"(\d{1,18})\.((?!1\.)\d{1,18})\.(\d{1,19})\.(\d{1,18})"

#: A run is split if a frame follows where the last one of so many would begin. Splitting a shorter run saves no time.
RUN_FRAMES_MIN = 4
#: Where the subject begins.
SUBJECT_AT = len(b"MSG ")
#: At most this number of deliveries are skipped at once. It bounds the work of a search that finds none.
SKIPPED_MAX = 256
#: The number of structs that are kept.
STRUCTS_MAX = 256


class Runs:
    """Splits runs of frames into fields."""

    def __init__(self) -> None:
        self._structs: dict[tuple[int, ...], Struct] = {}

    def split(self, buffer: bytes, kinds: str, bounds: tuple[int, ...], end: int) -> Iterator[tuple[bytes, ...]]:
        """Yield the fields of each frame, as long as whole frames of the first one's size fit.

        :param kinds: for each field, "s" to yield it, or "x" to skip it
        :param bounds: the offsets of the first frame's fields, and its end
        """
        sizes = tuple(map(sub, bounds[1:], bounds))
        struct = self._structs.get(sizes)
        if struct is None:
            if len(self._structs) >= STRUCTS_MAX:
                self._structs.clear()
            struct = self._structs[sizes] = Struct(
                "".join(f"{size}{kind}" for size, kind in zip(sizes, kinds, strict=True))
            )
        at = bounds[0]
        return struct.iter_unpack(memoryview(buffer)[at : end - (end - at) % struct.size])


class Acknowledgements:
    """Reads the acknowledgements of one instance.

    :param inbox: the prefix of their subjects, without the last point
    """

    def __init__(self, core: Core, inbox: str) -> None:
        self.prefix = f"MSG {inbox}.".encode()
        self.match = re.compile(re.escape(self.prefix) + rb"(\d{1,18})" + STORED).match
        self.subscription = b""  # that of the last acknowledgements
        self._core = core
        self._runs = Runs()

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the acknowledgements at `at`. Return the offset after the last one."""
        numbers: list[bytes] = []
        sequences: list[bytes] = []
        match, self.subscription = self.match, subscription
        while (found := match(buffer, at)) is not None:
            token, sid, sequence = found.groups()
            if sid != subscription:
                break
            numbers.append(token)
            sequences.append(sequence)
            size, at = found.end() - at, found.end()
            if buffer.startswith(self.prefix, at + (RUN_FRAMES_MIN - 2) * size):
                bounds = at - size, *found.span(1), *found.span(3), at
                at += size * self._take_run(self._runs.split(buffer, "sssss", bounds, end), numbers, sequences)
        if numbers:
            acknowledge(self._core, numbers, sequences)
        return at

    def _take_run(self, frames: Iterator[tuple[bytes, ...]], numbers: list[bytes], sequences: list[bytes]) -> int:
        """Take the acknowledgements that are like the first one. Return their number."""
        before = len(numbers)
        head, _, middle, _, tail = next(frames)
        for its_head, token, its_middle, sequence, its_tail in frames:
            if its_head != head or its_middle != middle or its_tail != tail:
                break
            if not (token.isdigit() and sequence.isdigit()):
                break
            numbers.append(token)
            sequences.append(sequence)
        return len(numbers) - before


def acknowledge(core: Core, numbers: list[bytes], sequences: list[bytes]) -> None:
    """Tell a core the numbers of its messages that were stored, and their sequences."""
    try:
        core.acknowledge_all(numbers, sequences)
    except Exception:  # it must not end the connection
        log.exception("acknowledgements were not handled")


def delivery_pattern(prefix: bytes, rest: bytes, stream: str, consumer: str, sizes: bytes) -> re.Pattern[bytes]:
    """Return the pattern of one consumer's deliveries. The subject, the subscription and NUMBERS are groups.

    :param prefix: the verb and the beginning of the subject
    :param rest: the pattern of the rest of the subject
    :param sizes: the pattern of what follows the reply subject
    """
    verb, _, begin = prefix.partition(b" ")
    place = re.escape(f"$JS.ACK.{stream}.{consumer}.1.".encode()) + NUMBERS
    return re.compile(verb + b" (" + re.escape(begin) + rest + rb") (\d+) " + place + sizes)


class Barriers:
    """Reads the deliveries of barriers of one consumer."""

    def __init__(self, core: Core, consumer: str) -> None:
        layout = core.layout
        self.prefix = b"HMSG " + layout.barriers
        self._core = core
        rest = rb" \d+ \d+\r\n" + re.escape(BARRIER_BLOCK) + rb"(\d{1,18})\r\n"
        self._match = delivery_pattern(self.prefix, rb"[0-9a-f]+", layout.stream, consumer, rest).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the barriers at `at`. Return the offset after the last one."""
        core, match, began = self._core, self._match, at
        while at < end and (found := match(buffer, at)) is not None:
            subject, sid, sequence, consumed, timestamp, pending, token = found.groups()
            if sid != subscription:
                break
            place = int(sequence), int(consumed), int(timestamp), int(pending)
            try:
                core.deliver_barrier(subject, int(token), place)
            except Exception:  # it must not end the connection
                log.exception("a barrier was not handled")
            at = found.end()
        if at > began:
            core.release()
        return at


class Deliveries:
    """Reads the deliveries without headers of one consumer.

    :param acknowledgements: reads those of the same instance, which may come in turn with the deliveries
    """

    def __init__(self, core: Core, consumer: str, acknowledgements: Acknowledgements | None = None) -> None:
        layout = core.layout
        self.prefix = b"MSG " + layout.prefix
        self._core = core
        names = rb"(b[-_0-9A-Za-z]*)\.(k[-_0-9A-Za-z]*)"
        self._match = delivery_pattern(self.prefix, names, layout.stream, consumer, rb" (\d{1,9})\r\n").match
        self._runs = Runs()
        self._acknowledgements = acknowledgements
        self._acknowledgement = b"no frame" if acknowledgements is None else acknowledgements.prefix

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        core, match, began = self._core, self._match, at
        position = core.position
        run = DeliveryRun(core) if core.takes_runs else None
        known: re.Match[bytes] | None = None  # the last of the deliveries that were applied when they were acknowledged
        known_count, skips = 0, True
        while (found := match(buffer, at)) is not None:
            sid, sequence, size = found.group(4, 5, 9)
            payload_at = found.end()
            payload_end = payload_at + int(size)
            if payload_end + 2 > end or sid != subscription:
                break
            frame_at, at = at, payload_end + 2
            if int(sequence) <= position.applied:
                known = found
                known_count += 1
                if skips and buffer.startswith(self.prefix, at + (RUN_FRAMES_MIN - 2) * (at - frame_at)):
                    last_known = self._last_known(buffer, found, frame_at, at, end)
                    skips = last_known is not None  # to search again from each frame would take quadratic time
                    if last_known is not None:
                        count, known = last_known
                        at += count * (at - frame_at)
                        known_count += count
                if buffer.startswith(self._acknowledgement, at):
                    count, last_at, at = self._take_pairs(buffer, at, end)
                    if count and (last := match(buffer, last_at)) is not None:
                        known = last
                        known_count += count
                continue
            try:
                if known is not None:
                    core.deliver_known(known_count, place_in(known))
                    known, known_count = None, 0
                if run is None or not run.add(found, found[2], found[3], buffer[payload_at:payload_end]):
                    core.deliver_plain(found[1], (found[2], found[3]), buffer[payload_at:payload_end], place_in(found))
                elif buffer.startswith(self.prefix, at + (RUN_FRAMES_MIN - 2) * (at - frame_at)):
                    at += (at - frame_at) * self._add_new(buffer, found, frame_at, at, end, run)
            except Exception:  # it must not end the connection
                log.exception("a delivery was not applied")
        if known is not None:
            core.deliver_known(known_count, place_in(known))
        if run is not None:
            run.end()
        if at > began:
            core.heard()
            core.release()
        return at

    def _last_known(
        self, buffer: bytes, first: re.Match[bytes], at: int, frame_end: int, end: int
    ) -> tuple[int, re.Match[bytes]] | None:
        """Return the number of further deliveries that are like the first one and were applied, and the last of them.

        The frames between are not read. Each has a payload of the first one's size at the same place, and no other line ends
        are in them. So no payload can hold the beginning of a frame. Their subjects begin with `$`, so none is a call or an
        acknowledgement. The consumer numbers its deliveries, so the last one's number tells whether all are there.
        """
        size, applied = frame_end - at, self._core.position.applied
        count = min((end - at) // size - 1, applied - int(first[5]), SKIPPED_MAX)
        size_at, payload_at = first.start(9) - 1 - at, first.end() - at
        for offset in (SUBJECT_AT, *range(size_at, payload_at), size - 2, size - 1):
            column = buffer[at + offset : at + offset + count * size + 1 : size]
            count -= len(column.lstrip(column[:1]))
        stop = frame_end + count * size
        if (
            count
            and buffer.count(b"\r\n", at, stop) == 2 * count + 2
            and (last := self._match(buffer, at + count * size)) is not None
            and int(last[6]) == int(first[6]) + count
            and int(last[5]) <= applied
        ):
            return count, last
        return None

    def _add_new(
        self, buffer: bytes, first: re.Match[bytes], at: int, frame_end: int, end: int, run: DeliveryRun
    ) -> int:
        """Add the new deliveries that are like the first one, and are of the same bucket. Return their number."""
        if len(first[6]) == 1:  # the number may be 1, which NUMBERS excludes
            return 0
        entries: dict[bytes, bytes] = {}
        bounds = at, *first.span(3), *first.span(5), *first.span(8), first.end(), frame_end - 2, frame_end
        frames = self._runs.split(buffer, "ssssxssss", bounds, end)
        head, _, middle, _, _, sizes, _, tail = next(frames)
        count = 0
        for its_head, token, its_middle, sequence, pending, its_sizes, payload, its_tail in frames:
            if its_head != head or its_middle != middle or its_sizes != sizes or its_tail != tail:
                break
            if pending == b"0" or not (pending.isdigit() and sequence.isdigit()):
                break
            entries[token] = payload
            count += 1
        if not count or (last := self._match(buffer, at + count * (frame_end - at))) is None:
            return 0
        run.extend(last, entries, count)
        return count

    def _take_pairs(self, buffer: bytes, at: int, end: int) -> tuple[int, int, int]:
        """Take acknowledgements and deliveries in turn, if these are of messages that the acknowledgements let apply.

        Return the number of deliveries, the offset of the last one, and the offset after it. An acknowledgement after that
        may have been taken, too. It does nothing when it is taken again.
        """
        own, nothing = self._acknowledgements, (0, at, at)
        assert own is not None
        if (first := own.match(buffer, at)) is None or first[2] != own.subscription:
            return nothing
        middle_at = first.end()
        if (second := self._match(buffer, middle_at)) is None or len(second[6]) == 1:
            return nothing
        size = second.end() + int(second[9]) + 2 - at
        if not buffer.startswith(self._acknowledgement, at + size * (RUN_FRAMES_MIN - 2)):
            return nothing
        numbers, stored, sequences = self._split_pairs(buffer, first, second, at + size, end)
        acknowledge(self._core, numbers, stored)
        newest = b"%0*d" % (len(second[5]), min(self._core.position.applied, 10 ** len(second[5]) - 1))
        count = sum(1 for _ in takewhile(newest.__ge__, sequences))
        return count, middle_at + (count - 1) * size, at + count * size

    def _split_pairs(
        self, buffer: bytes, first: re.Match[bytes], second: re.Match[bytes], pair_end: int, end: int
    ) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Return the numbers and the sequences in the acknowledgements, and the sequences of the deliveries.

        They are those of all pairs like the first one.
        """
        of_first = first.start(), *first.span(1), *first.span(3), first.end()
        of_second = second.start(2), second.end(3), *second.span(5), second.end(5) + 1, second.end(8), second.end()
        frames = self._runs.split(buffer, "ssssssxsssxsx", (*of_first, *of_second, pair_end), end)
        numbers: list[bytes] = []
        stored: list[bytes] = []
        sequences: list[bytes] = []
        constant: tuple[bytes, ...] = ()
        for head, token, middle, sequence, tail, its_head, its_middle, place, point, its_size in frames:
            its_constant = head, middle, tail, its_head, its_middle, point, its_size
            if its_constant != constant:
                if constant:
                    break
                constant = its_constant
            if not (token.isdigit() and sequence.isdigit()):
                break
            numbers.append(token)
            stored.append(sequence)
            sequences.append(place)
        return numbers, stored, sequences


class DeliveryRun:
    """New deliveries in a row that all have successors. While nothing can be answered, a core takes them together."""

    __slots__ = ("_core", "_count", "_last", "_runs")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._count = 0
        self._last: re.Match[bytes] | None = None
        self._runs: dict[bytes, dict[bytes, bytes]] = {}

    def add(self, found: re.Match[bytes], bucket: bytes, key: bytes, payload: bytes) -> bool:
        """Add a delivery. If it has no successor, end the run, and return False.

        :param bucket: the token that names the bucket
        :param key: the token that names the key
        """
        if found[8] == b"0":
            self.end()
            return False
        run = self._runs.get(bucket)
        if run is None:
            run = self._runs[bucket] = {}
        run[key] = payload
        self._last = found
        self._count += 1
        return True

    def extend(self, last: re.Match[bytes], entries: Mapping[bytes, bytes], count: int) -> None:
        """Add more deliveries of the bucket of the last one. They all have successors.

        :param entries: their payloads, by the tokens that name the keys
        """
        self._runs[last[2]].update(entries)
        self._last = last
        self._count += count

    def end(self) -> None:
        """Let the core take the deliveries that were added since the last call."""
        last, count, runs = self._last, self._count, self._runs
        self._last, self._count, self._runs = None, 0, {}
        if last is not None:
            try:
                self._core.deliver_run(runs, count, place_in(last))
            except Exception:  # it must not end the connection
                log.exception("%d deliveries were not applied", count)


def place_in(found: re.Match[bytes]) -> tuple[int, int, int, int]:
    """Return the numbers in the reply subject of a delivery."""
    sequence, consumed, timestamp, pending = found.group(5, 6, 7, 8)
    return int(sequence), int(consumed), int(timestamp), int(pending)
