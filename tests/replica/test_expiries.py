"""Several instances publish deletes of expired keys, against a model of the stream that delays, fails and loses answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from keyvalue_replica.expiries import Expiries
from keyvalue_replica.layout import Layout
from keyvalue_replica.publications import Publication
from tests.replica import stream_model

LAYOUT = Layout("kv")
SET, DELETE, MARKER = "set", "delete", "marker"


class Stream:
    """The messages of the stream: kind and key, by sequence. Messages that the server has removed are missing."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[str, bytes]] = {}
        self.written = 0
        self.expired: set[int] = set()
        self.history: list[tuple[int, str, bytes]] = []  # all messages, also those that are gone
        self.seen: list[tuple[int, bytes]] = []  # the sets that an instance has found to be expired

    def last(self, key: bytes) -> int:
        return max((sequence for sequence, (_, known) in self.messages.items() if known == key), default=0)

    def add(self, kind: str, key: bytes) -> int:
        self.written += 1
        self.messages[self.written] = kind, key
        self.history.append((self.written, kind, key))
        return self.written

    def delete(self, key: bytes, expected: int) -> int | None:
        """Store a delete if the key's last sequence is the expected one. Return its sequence, or None."""
        last = self.last(key)
        if last != expected:
            return None
        kind = self.messages[last][0] if last else MARKER
        assert kind == MARKER or (kind == SET and last in self.expired), "only an expired key is deleted, and once"
        return self.add(DELETE, key)

    def remove_expired(self, chance: random.Random) -> None:
        """Remove an expired message or a marker, as the server does."""
        for sequence, (kind, key) in list(self.messages.items()):
            if sequence not in self.messages or chance.random() < 0.5:
                continue
            if kind == MARKER:
                del self.messages[sequence]
            elif kind == SET and sequence in self.expired:
                del self.messages[sequence]
                if self.last(key) < sequence:  # the marker has the header Nats-Rollup: sub
                    self.messages = {each: message for each, message in self.messages.items() if message[1] != key}
                    self.add(MARKER, key)


class Instance:
    """An instance: what it has applied, and the part of its core that `Expiries` needs."""

    layout = LAYOUT

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.applied = 0
        self.keys: dict[bytes, int] = {}  # the sequence of the set, of each key that exists here
        self.publications: list[tuple[bytes, int, Publication]] = []
        self.timers: list[Callable[[], None]] = []
        self.store: Any = SimpleNamespace(bucket=lambda _: SimpleNamespace(exists=self.keys.__contains__))
        self.expiries = Expiries(self, 100, lambda: None)

    def publish_delete(self, subject: bytes, sequence: int, publication: Publication) -> None:
        names = LAYOUT.names(subject)
        assert names is not None
        self.publications.append((names[1], sequence, publication))

    def has_passed(self, sequence: int) -> bool:
        return self.applied >= sequence

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        self.timers.append(act)

    def apply(self) -> None:
        """Apply the next message. Messages that are gone are skipped."""
        if self.applied >= self.stream.written:
            return
        self.applied += 1
        kind, key = self.stream.messages.get(self.applied, ("", b""))
        if kind == SET:
            self.expire(key)
            self.keys[key] = self.applied
        elif kind:
            self.expire(key)  # the engine finds that it has expired
            self.keys.pop(key, None)
            if kind == DELETE:
                self.expiries.note_delete(LAYOUT.subject(b"b", key), self.applied)

    def expire(self, *keys: bytes) -> None:
        """Find the expired keys, of these keys or of all."""
        for key, sequence in list(self.keys.items()):
            if sequence in self.stream.expired and (not keys or key in keys):
                del self.keys[key]
                self.stream.seen.append((sequence, key))
                self.expiries.add(b"b", key)

    def pass_time(self) -> None:
        timers, self.timers = self.timers, []
        for act in timers:
            act()

    def answer(self, chance: random.Random, may_fail: bool = True) -> None:
        """Let the server take a publication, or lose it, or lose its answer. The answer comes later."""
        if not self.publications:
            return
        key, expected, publication = self.publications.pop(0)
        owner = publication.owner
        assert owner is not None
        what = chance.random() if may_fail else 1.0
        sequence = None if what < 0.1 else self.stream.delete(key, expected)
        if what < 0.2:
            self.timers.append(owner.failed)
        elif sequence is None:
            self.timers.append(partial(owner.overtaken, self.stream.last(key)))
        else:
            self.timers.append(partial(owner.acknowledged, sequence))


@pytest.mark.parametrize("seed", range(200))
def test_one_delete_is_stored_for_each_expired_key(seed: int) -> None:
    chance = random.Random(seed)
    stream = Stream()
    instances = [Instance(stream) for _ in range(3)]
    for _ in range(300):
        instance = chance.choice(instances)
        step = chance.choice(["set", "expire", "expired here", "remove", "apply", "apply", "apply", "time", "answer"])
        if step == "set" and chance.random() < 0.3:
            stream.add(SET, b"k%d" % chance.randrange(3))
        elif step == "expire":
            stream.expired |= {sequence for sequence in stream.messages if chance.random() < 0.3}
        elif step == "expired here":
            instance.expire()
        elif step == "remove" and chance.random() < 0.3:
            stream.remove_expired(chance)
        elif step == "apply":
            instance.apply()
        elif step == "time":
            instance.pass_time()
        elif step == "answer":
            instance.answer(chance)
    stream.expired |= set(range(stream.written + 1))
    while any(instance.applied < stream.written or len(instance.expiries) or instance.keys for instance in instances):
        for instance in instances:
            instance.apply()
            instance.expire()
            instance.pass_time()
            instance.answer(chance, may_fail=False)
    for sequence, key in stream.seen:
        assert any(later > sequence and known == key and kind != MARKER for later, kind, known in stream.history)


def test_sequences_of_an_older_stream_do_not_count() -> None:
    stream = Stream()
    instance = Instance(stream)
    for _ in range(20):
        stream.add(SET, b"k")
    stream.add(DELETE, b"k")
    while instance.applied < stream.written:
        instance.apply()
    instance.stream = stream = Stream()
    instance.applied = 0
    instance.expiries.restart()
    stream.add(SET, b"k")
    instance.apply()
    stream.expired.add(1)
    instance.expire()
    while len(instance.expiries):
        instance.pass_time()
        instance.answer(random.Random(1), may_fail=False)
    assert stream.history[-1] == (2, DELETE, b"k")


def test_a_core_that_reads_its_stream_again_says_so() -> None:
    core, told = stream_model.Instance(stream_model.Stream(64), "i").core, list[bool]()
    core.report_deletes(SimpleNamespace(note_delete=print, restart=lambda: told.append(True)))
    core.restart()
    assert told
