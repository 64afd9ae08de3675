"""Publishes deletes of expired keys, so that watchers can be told of them later, and by another instance.

The server removes the message of an expired key by itself, but keeps its marker only for a second. So all instances
publish a delete, which stays for an hour. It is stored once, because it names the message that it follows:

    expired here ──> a delete, if the key has no message ──> stored
                              └── refused: the last one is S ──> when S is applied here:
                                       the key exists, or S is a delete ──> nothing is left to do
                                       otherwise ──> a delete, if the last message is still S
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from keyvalue_engine import Store
from keyvalue_replica.layout import Layout
from keyvalue_replica.publications import Publication

__all__ = ["Deleter", "Expiries"]

#: Number of deletes that are published and not answered at a time.
IN_FLIGHT_MAX = 256
#: Number of keys whose last delete is remembered.
DELETES_MAX = 4_096
#: Seconds until the next look whether a message has been applied.
LOOK_S = 0.05
#: Seconds until the next try after a failure.
RETRY_S = 1.0
NO_MESSAGE = 0


class Deleter(Protocol):
    """The part of the core that this module needs."""

    store: Store
    layout: Layout

    def publish_delete(self, subject: bytes, sequence: int, publication: Publication, /) -> None: ...

    def has_passed(self, sequence: int, /) -> bool: ...

    def call_later(self, delay_s: float, act: Callable[[], None], /) -> None: ...


class Expired:
    """An expired key whose delete is not stored yet. It owns the publication of the delete.

    :ivar last: the sequence of the key's last message, as the server named it; `NO_MESSAGE` at first
    :ivar again: True if the key has expired once more while the delete was in flight
    """

    __slots__ = ("_expiries", "again", "bucket", "key", "last", "subject")

    def __init__(self, expiries: Expiries, subject: bytes, bucket: bytes, key: bytes) -> None:
        self._expiries = expiries
        self.subject = subject
        self.bucket = bucket
        self.key = key
        self.last = NO_MESSAGE
        self.again = False

    def acknowledged(self, sequence: int) -> None:
        """End, because the delete is stored."""
        self._expiries.end(self, is_stored=True)

    def overtaken(self, last_sequence: int | None) -> None:
        """Try again when the key's last message is applied."""
        self.last = last_sequence or NO_MESSAGE
        self._expiries.end(self, delay_s=RETRY_S if last_sequence is None else 0.0)

    def failed(self) -> None:
        """Try again after a pause."""
        self._expiries.end(self, delay_s=RETRY_S)


class Expiries:
    """The expired keys whose deletes are not stored yet.

    :param keys_max: the number of these keys; further ones are dropped
    :param on_dropped: called for each key that is dropped
    """

    def __init__(self, core: Deleter, keys_max: int, on_dropped: Callable[[], None]) -> None:
        self._core = core
        self._keys_max = keys_max
        self._known: dict[bytes, Expired] = {}
        self._due: deque[Expired] = deque()
        self._deletes: OrderedDict[bytes, int] = OrderedDict()  # the sequence of the last delete, by subject
        self._in_flight = 0
        self._is_called = False  # `publish_due` will be called without a delay
        self._is_closed = False
        self._on_dropped = on_dropped

    def __len__(self) -> int:
        """Return the number of keys whose deletes are not stored yet."""
        return len(self._known)

    def add(self, bucket: bytes, key: bytes) -> None:
        """Note that a key has expired. An observer may call this method."""
        subject = self._core.layout.subject(bucket, key)
        known = self._known.get(subject)
        if known is not None:
            known.again = True
        elif len(self._known) >= self._keys_max:
            self._on_dropped()
        else:
            self._known[subject] = expired = Expired(self, subject, bucket, key)
            self._put(expired, 0.0)

    def close(self) -> None:
        """Forget all keys, because the stream is not followed any more."""
        self._is_closed = True
        self._known.clear()
        self._due.clear()

    def note_delete(self, subject: bytes, sequence: int) -> None:
        """Note a delete that was applied."""
        self._deletes[subject] = sequence
        self._deletes.move_to_end(subject)
        if len(self._deletes) > DELETES_MAX:
            self._deletes.popitem(last=False)

    def restart(self) -> None:
        """Forget all sequences, because the stream is read again, or another one."""
        self._deletes.clear()
        for expired in self._known.values():
            expired.last = NO_MESSAGE

    def end(self, expired: Expired, delay_s: float = 0.0, is_stored: bool = False) -> None:
        """End a publication."""
        self._in_flight -= 1
        if self._is_closed:
            return
        if is_stored:
            self._finish(expired)
        else:
            self._put(expired, delay_s)
        if self._due:
            self._call()

    def _finish(self, expired: Expired) -> None:
        if expired.again:
            expired.again, expired.last = False, NO_MESSAGE
            self._put(expired, 0.0)
        else:
            del self._known[expired.subject]

    def _put(self, expired: Expired, delay_s: float) -> None:
        if self._is_closed:
            return
        if delay_s:
            self._core.call_later(delay_s, lambda: self._put(expired, 0.0))
        else:
            self._due.append(expired)
            self._call()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._core.call_later(0.0, self._publish_due)

    def _publish_due(self) -> None:
        self._is_called = False
        core, due = self._core, self._due
        while due and self._in_flight < IN_FLIGHT_MAX:
            expired = due.popleft()
            if expired.last and not core.has_passed(expired.last):
                self._put(expired, LOOK_S)
            elif self._is_owed(expired):
                publication = Publication()
                publication.owner = expired
                self._in_flight += 1
                core.publish_delete(expired.subject, expired.last, publication)
            else:
                self._finish(expired)

    def _is_owed(self, expired: Expired) -> bool:
        """Return False if the key exists again, or if its last message is a delete."""
        if expired.last and self._deletes.get(expired.subject, NO_MESSAGE) >= expired.last:
            return False
        return not self._core.store.bucket(expired.bucket).exists(expired.key)
