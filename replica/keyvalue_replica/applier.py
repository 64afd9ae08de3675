"""Applies the messages of the stream to the engine. Nothing is refused: limits are checked before a change is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from keyvalue_engine import Bucket, BucketOptions, Store
from keyvalue_engine.options import LENGTH_MAX
from keyvalue_replica.layout import FORMAT, Layout, headers_of, is_deletion, is_readable, lifetime_ns
from keyvalue_replica.position import Delivery
from keyvalue_replica.publications import ReplicaCounts
from keyvalue_replica.sequences import Sequences

__all__ = ["ANY", "Applier", "Deletes", "Headed", "Message", "Place"]

#: The numbers of a `Delivery`. A tuple is quick to make.
Place: TypeAlias = tuple[int, int, int, int]
#: A message: its subject, its headers without those of its batch, its payload and its place.
Message: TypeAlias = tuple[bytes, Mapping[bytes, bytes], bytes, Place]
#: A message, the id of its batch or b"", and True if it is the last one of the batch.
Headed: TypeAlias = tuple[Message, bytes, bool]

#: A handle that refuses nothing. The limits of the engine's snapshots remain.
ANY = BucketOptions(key_bytes_max=LENGTH_MAX, value_bytes_max=LENGTH_MAX, strict_buckets=False)
#: Number of handles that are kept.
HANDLES_MAX = 1_024
#: A kept deadline with more digits is ignored. It is in nanoseconds since 1970.
DEADLINE_DIGITS_MAX = 19
DEADLINE_NS_MAX = 2**63 - 1
#: Number of keys that are removed at a time.
EMPTIED_KEYS = 10_000


class Deletes(Protocol):
    """Someone who is told of deletes."""

    def note_delete(self, subject: bytes, sequence: int, /) -> None:
        """Note a delete that was applied."""

    def restart(self) -> None:
        """Forget all sequences, because the stream is read again, or another one."""


class Applier:
    """Applies messages in the order of the stream.

    The messages of an atomic batch wait for its last one, and are then applied together. The batch may lack messages
    that were overwritten before they were delivered. Then it ends with the first message that does not belong to it.

    :param on_unreadable: called with the reason if the bucket can't be followed any more
    :ivar deletes: told of each applied delete; None for nobody
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        sequences: Sequences,
        counts: ReplicaCounts,
        on_unreadable: Callable[[str], None],
    ) -> None:
        self._store = store
        self._layout = layout
        self._sequences = sequences
        self._counts = counts
        self._on_unreadable = on_unreadable
        self.deletes: Deletes | None = None
        self._handles: dict[bytes, Bucket] = {}
        self._by_token: dict[bytes, Bucket] = {}
        #: The messages of a batch that wait for its end.
        self.batch: list[Message] = []
        self._batch_id = b""

    def apply(self, subject: bytes, block: bytes, payload: bytes, delivery: Delivery) -> None:
        """Apply a message.

        :param block: the header block, or b""
        """
        if not block and not self.batch:
            self._apply(subject, {}, payload, delivery)
            return
        headers = headers_of(block) if block else {}
        message = subject, headers, payload, delivery
        self.apply_all(((message, headers.get(b"nats-batch-id", b""), b"nats-batch-commit" in headers),))

    def apply_all(self, messages: Iterable[Headed]) -> None:
        """Apply messages. Those of a batch wait until it ends."""
        ready: list[Message] = []
        for message, batch_id, is_last in messages:
            if self.batch and batch_id != self._batch_id:
                ready += self._take_batch()
            if not batch_id:
                ready.append(message)
                continue
            self._batch_id = batch_id
            self.batch.append(message)
            if is_last:
                ready += self._take_batch()
        self._apply_together(ready)

    def apply_plain(self, subject: bytes, tokens: tuple[bytes, bytes], payload: bytes, sequence: int) -> None:
        """Apply a message without headers.

        :param tokens: the last two tokens of the subject, which name the bucket and the key
        """
        if self.batch:
            self.end_batch()
        bucket_token, key_token = tokens
        handle = self._by_token.get(bucket_token)
        try:
            if handle is None:
                handle = self._handle_of(bucket_token)
            handle.set(self._layout.key_of(key_token), payload)
        except ValueError:
            self._counts.foreign += 1
            return
        if self._sequences.by_subject:
            self._sequences.note(subject, sequence)

    def apply_run(self, runs: Mapping[bytes, Mapping[bytes, bytes]]) -> None:
        """Apply messages without headers together, which takes half of the time. No sequence may be watched.

        :param runs: the payloads, by the last two tokens of their subjects
        """
        if self.batch:
            self.end_batch()
        key_of = self._layout.key_of
        for bucket_token, entries in runs.items():
            try:
                handle = self._handle_of(bucket_token)
                handle.set_many({key_of(token): payload for token, payload in entries.items()})
            except ValueError:
                for token, payload in entries.items():
                    self.apply_plain(b"", (bucket_token, token), payload, 0)

    def end_batch(self) -> None:
        """Apply the messages of a batch that wait. They are visible together, because no call runs meanwhile."""
        self._apply_together(self._take_batch())

    def _take_batch(self) -> list[Message]:
        batch, self.batch = self.batch, []
        return batch

    def _apply_together(self, messages: Sequence[Message]) -> None:
        """Apply messages in order. Sets without headers that follow each other are one call of the engine for a bucket."""
        names_of, is_watched, has_age = self._layout.names, bool(self._sequences.by_subject), self._layout.max_age_ns
        sets: dict[bytes, dict[bytes, bytes]] = {}
        for message in messages:
            subject, headers, payload, place = message
            if headers or has_age or (names := names_of(subject)) is None:
                self._set_all(sets)
                sets = {}
                self._apply(*message)
                continue
            bucket, key = names
            sets.setdefault(bucket, {})[key] = payload
            if is_watched:
                self._sequences.note(subject, place[0])
        self._set_all(sets)

    def _set_all(self, sets: Mapping[bytes, dict[bytes, bytes]]) -> None:
        for bucket, entries in sets.items():
            self._handle_named(bucket).set_many(entries)

    def forget(self) -> None:
        """Forget the batch that has begun, because the stream is read again."""
        self.batch.clear()
        if self.deletes is not None:
            self.deletes.restart()

    def _apply(self, subject: bytes, headers: Mapping[bytes, bytes], payload: bytes, place: Place) -> None:
        if headers.get(b"nats-rollup") == b"all":
            self._empty()
        names = self._layout.names(subject)
        if names is None:
            if not self._layout.is_internal(subject):
                self._counts.foreign += 1
            return
        bucket, key = names
        sequence, _, timestamp_ns, _ = place
        handle = self._handle_named(bucket)
        if not headers and not self._layout.max_age_ns:
            handle.set(key, payload)
        elif is_deletion(headers):
            handle.delete(key)
            if self.deletes is not None and b"kv-operation" in headers:
                self.deletes.note_delete(subject, sequence)
        else:
            self._set(handle, key, headers, payload, sequence, timestamp_ns)
        self._sequences.note(subject, sequence)

    def _empty(self) -> None:
        """Remove all keys, because another client has replaced all messages of the stream by one."""
        for name in self._store.bucket_names() if self._layout.bucket is None else [self._layout.bucket]:
            handle = self._store.bucket(name, ANY)
            while keys := handle.page(keys_max=EMPTIED_KEYS).keys:
                handle.delete_many(keys)
        self._sequences.clear()

    def _set(
        self,
        handle: Bucket,
        key: bytes,
        headers: Mapping[bytes, bytes],
        payload: bytes,
        sequence: int,
        timestamp_ns: int,
    ) -> None:
        if not is_readable(headers):
            written = headers[b"kv-format"][:16].decode(errors="replace")
            self._on_unreadable(
                f"message {sequence} of the KV bucket has format {written};"
                f" this version reads {FORMAT}: upgrade this instance"
            )
            return
        ttl_ns = lifetime_ns(headers, self._layout.max_age_ns)
        if ttl_ns is None:
            handle.set(key, payload)
        else:
            kept_ns = headers.get(b"kv-deadline-ns", b"")
            is_kept = kept_ns.isdigit() and len(kept_ns) <= DEADLINE_DIGITS_MAX and not self._layout.max_age_ns
            handle.set_until(key, payload, min(int(kept_ns), DEADLINE_NS_MAX) if is_kept else timestamp_ns + ttl_ns)

    def _handle_of(self, token: bytes) -> Bucket:
        """Return the handle of the bucket that a token names.

        :raises ValueError: it names none
        """
        handle = self._by_token.get(token)
        if handle is None:
            handle = self._by_token[token] = self._open(self._layout.bucket_of(token))
        return handle

    def _handle_named(self, bucket: bytes) -> Bucket:
        handle = self._handles.get(bucket)
        return self._open(bucket) if handle is None else handle

    def _open(self, bucket: bytes) -> Bucket:
        if len(self._handles) >= HANDLES_MAX:
            self._handles.clear()
            self._by_token.clear()
        handle = self._handles[bucket] = self._store.bucket(bucket, ANY)
        return handle
