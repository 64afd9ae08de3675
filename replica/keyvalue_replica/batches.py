"""The atomic batches of an instance, of which only a few are in flight.

A server stores a batch in about ten times the time of its messages on their own. Until it has stored all that have
arrived, it sends nothing to the consumers of the stream, and no answer: neither deliveries nor heartbeats. More batches
in flight make the store slower, and hold up every other write and barrier. So the others wait here. When four fifths
of their time are over, too little is left to learn whether they are stored, so they are not sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.outgoing import Outgoing
from keyvalue_replica.publications import Publication

__all__ = ["IN_FLIGHT_MAX", "WAITING_SHARE", "Batches"]

#: Batches of an instance in flight. On file storage, 64 of 10 keys were stored at half the rate of 1 to 4.
IN_FLIGHT_MAX = 4
#: The share of its time in which a batch may wait.
WAITING_SHARE = 0.8


class BatchWriter(Protocol):
    """What the batches need from the core."""

    def now_s(self) -> float: ...

    def publish_together(self, messages: Sequence[Outgoing], publication: Publication, /) -> None: ...


class WaitingBatch(NamedTuple):
    """A batch that was not sent yet."""

    messages: Sequence[Outgoing]
    publication: Publication
    began_s: float


class Batches:
    """Publishes messages that are stored together or not at all.

    :param instance: a name that no other instance has
    """

    def __init__(self, publisher: BatchWriter, instance: str) -> None:
        self._publisher = publisher
        self._instance = instance.encode()
        self._number = 0
        self._in_flight = 0
        self._waiting: deque[WaitingBatch] = deque()

    def publish(self, messages: Sequence[Outgoing], publication: Publication) -> Publication:
        """Publish a batch now or later. The publication is the answer."""
        self._waiting.append(WaitingBatch(messages, publication, self._publisher.now_s()))
        self._go_on()
        return publication

    def _go_on(self) -> None:
        while self._waiting and self._in_flight < IN_FLIGHT_MAX:
            messages, publication, began_s = self._waiting.popleft()
            if publication.done():  # its caller has cancelled it
                publication.release()
                continue
            self._in_flight += 1
            publication.add_done_callback(self._end)
            self._publisher.publish_together(self._numbered(messages), publication)
            publication.began_s = began_s  # the time limit includes the time that it has waited

    def _end(self, _: object) -> None:
        self._in_flight -= 1
        self._go_on()

    def _numbered(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        self._number += 1
        batch = b"Nats-Batch-Id: %b-%x\r\nNats-Batch-Sequence: " % (self._instance, self._number)
        numbered = [
            message._replace(headers=b"%b%d\r\n%b" % (batch, number, message.headers))
            for number, message in enumerate(messages, 1)
        ]
        last = numbered[-1]
        numbered[-1] = last._replace(headers=last.headers + b"Nats-Batch-Commit: 1\r\n")
        return numbered

    def expire(self, now_s: float, timeout_s: float) -> None:
        """Give up the batches that have waited for too long.

        :param timeout_s: the time limit of a call
        """
        before_s, late = now_s - WAITING_SHARE * timeout_s, f"{WAITING_SHARE:.0%} of {timeout_s:g} s"
        while self._waiting and self._waiting[0].began_s <= before_s:
            why = f"earlier batches take too long, {late} (jetstream_timeout_ms): nothing was sent"
            self._waiting.popleft().publication.fail(NotStoredError(why))
