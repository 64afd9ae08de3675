"""The calls of the flood. The seed and a phase's number decide the sequence of calls in the phase, and nothing else does.

The speed of the machine decides how many of them are sent. So a phase of deletions, which deletes the keys that were
sent before, has the same sequence only up to the number of these keys.

    grow       write to all buckets, and read, count, list and delete a little
    delete     delete bucket by bucket, each key by key in random order or in batches; then read missing keys
    ttl        set new keys that expire after TTL_MS
    backlog    fill one bucket with keys that expire, and list the bucket's keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from keyvalue_transport.keyvalue.atomics import encode_increment
from keyvalue_transport.keyvalue.batch import encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set

__all__ = ["ALONE", "BACKLOG", "BRIEF", "LIMITED", "TTL", "TTL_MS", "Call", "Calls", "Phase", "phases"]

#: The callers, by their source ids. `hostile` puts their links. ALONE has no link.
ALONE, LIMITED, BRIEF, TTL, BACKLOG = "alone", "limited", "brief", "ttl", "backlog"
TTL_MS = 500
BATCH_BYTES_MAX = 256 * 1024
BATCH_KEYS_MAX = 500
SIZES = 1024


class Phase(NamedTuple):
    """A part of a run. `profile` names the sizes of its keys and values."""

    kind: str
    profile: str = "tiny"

    def __str__(self) -> str:
        return f"{self.kind} {self.profile}" if self.kind == "grow" else self.kind


def phases() -> Iterator[Phase]:
    """Yield the phases of a run, without end."""
    while True:
        for profile, between in (("tiny", "ttl"), ("mixed", "backlog"), ("large", "ttl")):
            yield Phase("grow", profile)
            yield Phase("delete")
            yield Phase(between)


class Call(NamedTuple):
    """A call. `cost_bytes` is about the size of its parameters and its answer."""

    function: str
    source_id: str
    params: bytes
    cost_bytes: int


class Profile(NamedTuple):
    """The sizes of keys and values, for the number of a key modulo SIZES."""

    key_bytes: list[int]
    value_bytes: list[int]
    mean_bytes: int


@dataclass(slots=True)
class Span:
    """The keys of a bucket that one phase wrote: those with numbers below `end`."""

    profile: Profile
    prefix: bytes
    end: int = 0


class Calls:
    """The source of the flood's calls.

    :param survivors: share of the buckets in which a phase of deletions leaves a random tenth of the keys, 0 to 1
    """

    def __init__(self, seed: int, buckets: int, survivors: float) -> None:
        self._seed = seed
        self._buckets = buckets
        self._survivors = survivors
        self._spans: list[list[Span]] = [[] for _ in range(buckets)]
        self._names = [b"bucket-%d" % number for number in range(buckets)]
        self._blob = b"v" * 262_144
        self._profiles = {
            "tiny": self._profile("tiny", 32, 64),
            "mixed": self._profile("mixed", 512, 4_096),
            "large": self._profile("large", 65_536, 262_144),
        }

    def phase(self, number: int, phase: Phase) -> Iterator[Call]:
        """Yield the calls of a phase, without end."""
        rng = Random(f"{self._seed}/{number}")
        kinds: dict[str, Callable[[Random, int, Profile], Iterator[Call]]] = {
            "grow": self._grow,
            "delete": self._delete,
            "ttl": self._ttl,
            "backlog": self._backlog,
        }
        return kinds[phase.kind](rng, number, self._profiles[phase.profile])

    def _profile(self, name: str, key_bytes_max: int, value_bytes_max: int) -> Profile:
        """Return sizes that are spread evenly over the orders of magnitude."""
        rng = Random(f"{self._seed}/{name}")
        keys = [int(key_bytes_max ** rng.random()) for _ in range(SIZES)]
        values = [int((value_bytes_max + 1) ** rng.random()) - 1 for _ in range(SIZES)]
        keys[0], keys[1], values[0], values[1] = 1, key_bytes_max, 0, value_bytes_max
        return Profile(keys, values, (sum(keys) + sum(values)) // SIZES)

    def _key(self, span: Span, number: int) -> bytes:
        key = b"%b%x" % (span.prefix, number)
        return key + self._blob[: max(0, span.profile.key_bytes[number % SIZES] - len(key))]

    def _value(self, span: Span, number: int) -> bytes:
        return self._blob[: span.profile.value_bytes[number * 7 % SIZES]]

    def _source(self, bucket: int) -> str:
        """Return the caller that uses a bucket: half of the buckets belong to the caller with a quota."""
        return LIMITED if bucket % 2 else ALONE

    def _grow(self, rng: Random, phase: int, profile: Profile) -> Iterator[Call]:
        current: dict[int, Span] = {}
        batch_keys = max(1, min(BATCH_KEYS_MAX // 10, BATCH_BYTES_MAX // profile.mean_bytes))
        prefix = b"" if profile is self._profiles["tiny"] and not self._survivors else b"%x-" % phase
        while True:
            bucket = rng.randrange(self._buckets)
            name, source = self._names[bucket], self._source(bucket)
            span = current.get(bucket)
            if span is None:
                span = current[bucket] = Span(profile, prefix)
                self._spans[bucket].append(span)
            choice = rng.random()
            if choice < 0.6 or not span.end:
                key, value = self._key(span, span.end), self._value(span, span.end)
                span.end += 1
                params = encode_set(name, key, value)
                yield Call("set", BRIEF if choice < 0.05 else source, params, len(params))
            elif choice < 0.7:
                numbers = range(span.end, span.end + rng.randint(1, 2 * batch_keys))
                span.end = numbers.stop
                pairs = self._fitting([(self._key(span, each), self._value(span, each)) for each in numbers])
                params = encode_set_many(name, pairs)
                yield Call("set-many", source, params, len(params))
            else:
                yield self._small(rng, choice, span, name, source)

    def _small(self, rng: Random, choice: float, span: Span, name: bytes, source: str) -> Call:
        """Return a call that adds no key, or a counter."""
        number = rng.randrange(span.end)
        key = self._key(span, number)
        if choice < 0.8:
            return Call("get", source, encode_bucket_key(name, key), len(key) + len(self._value(span, number)))
        if choice < 0.87:
            return Call("delete", source, encode_bucket_key(name, key), len(key))
        if choice < 0.92:
            counter = b"counter-%d" % rng.randrange(100)
            return Call("increment", source, encode_increment(name, counter, rng.randrange(1000)), 64)
        if choice < 0.95:
            cursor = rng.getrandbits(64) if choice < 0.94 else None
            return Call("list-keys", source, encode_list_keys(name, cursor), 64 * 1024)
        pairs = [(self._key(span, each), self._value(span, each)) for each in range(number, min(number + 20, span.end))]
        pairs = self._fitting(pairs)
        params = encode_bucket_keys(name, [key for key, _ in pairs])
        if choice < 0.97:
            return Call("delete-many", source, params, len(params))
        return Call("get-many", source, params, 2 * len(params) + sum(len(value) for _, value in pairs))

    def _fitting(self, pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the first pairs that fit into a batch; at least one."""
        size = 0
        for at, (key, value) in enumerate(pairs):
            size += len(key) + len(value)
            if size > BATCH_BYTES_MAX and at:
                return pairs[:at]
        return pairs

    def _delete(self, rng: Random, phase: int, profile: Profile) -> Iterator[Call]:
        order = list(range(self._buckets))
        rng.shuffle(order)
        for bucket in order:
            spans, self._spans[bucket] = self._spans[bucket], []
            keep = 0.1 if rng.random() < self._survivors else 0.0
            if keep:
                self._spans[bucket] = spans
            for span in spans:
                yield from self._delete_span(rng, bucket, span, keep)
            counters = [b"counter-%d" % number for number in range(100)]
            yield Call("delete-many", self._source(bucket), encode_bucket_keys(self._names[bucket], counters), 2048)
        while True:
            key = b"missing-%d" % rng.getrandbits(32)
            yield Call("get", ALONE, encode_bucket_key(rng.choice(self._names), key), 64)

    def _delete_span(self, rng: Random, bucket: int, span: Span, keep: float) -> Iterator[Call]:
        numbers = list(range(span.end))
        one_by_one = rng.random() < 0.1
        if keep:
            numbers = [number for number in numbers if rng.random() >= keep]
        if keep or one_by_one:
            rng.shuffle(numbers)
        name, source = self._names[bucket], self._source(bucket)
        if one_by_one:
            for number in numbers:
                params = encode_bucket_key(name, self._key(span, number))
                yield Call("delete", source, params, len(params))
            return
        step = max(1, min(BATCH_KEYS_MAX, BATCH_BYTES_MAX // max(1, sum(span.profile.key_bytes) // SIZES) // 2))
        for at in range(0, len(numbers), step):
            params = encode_bucket_keys(name, [self._key(span, number) for number in numbers[at : at + step]])
            yield Call("delete-many", source, params, len(params))

    def _ttl(self, rng: Random, phase: int, profile: Profile) -> Iterator[Call]:
        number = 0
        while True:
            number += 1
            params = encode_set(rng.choice(self._names), b"ttl-%x-%x" % (phase, number), self._blob[: number % 64])
            yield Call("set", TTL, params, len(params))

    def _backlog(self, rng: Random, phase: int, profile: Profile) -> Iterator[Call]:
        name, number = b"backlog", 0
        while True:
            for _ in range(400):
                pairs = [(b"%x-%x" % (phase, each), b"") for each in range(number, number + 100)]
                number += 100
                params = encode_set_many(name, pairs)
                yield Call("set-many", BACKLOG, params, len(params))
            for _ in range(20):
                cursor = None if rng.random() < 0.5 else rng.getrandbits(64)
                yield Call("list-keys", BACKLOG, encode_list_keys(name, cursor), 64 * 1024)
