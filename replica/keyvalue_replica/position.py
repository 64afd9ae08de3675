"""How far an instance has applied the stream, and whether what it has applied is whole.

JetStream keeps only the newest messages of a key. A message that is overwritten before it was delivered never arrives,
and its successor may come after the sequence that somebody waits for. So a gap makes the position *torn*: what was
applied may lack a change that is older than the last delivery.

If one server has the stream, a delivery without successors (`pending` 0) makes the position *whole* again, because then
nothing is missing:

    sequence   5        6         9             12
    pending    0        3         2             0
    state      whole    whole     torn (7, 8)   whole

If several servers have the stream, this is not enough. The consumer may run on a server that was away and catches up.
That server learns at once which messages were overwritten, but gets their successors one by one. In between, it has
nothing more to deliver, and yet changes are missing. There, only a *barrier* makes the position whole: a message of ours
that was published after the last gap. All successors come before it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Delivery", "Position"]


class Delivery(NamedTuple):
    """What the reply subject of a delivery says.

    :ivar sequence: the message's place in the stream
    :ivar consumer_sequence: its place among the deliveries of the consumer, from 1
    :ivar timestamp_ns: when the server stored the message, in Unix time
    :ivar pending: number of messages that the consumer will deliver after this one, as of the delivery
    """

    sequence: int
    consumer_sequence: int
    timestamp_ns: int
    pending: int

    @classmethod
    def of(cls, reply: bytes) -> Delivery | None:
        """Read the reply subject of a delivery. Return None if it has another form.

        >>> Delivery.of(b"$JS.ACK.KV_b.c.1.12.3.1700000000000000000.0")
        Delivery(sequence=12, consumer_sequence=3, timestamp_ns=1700000000000000000, pending=0)
        """
        words = reply.split(b".")
        if len(words) == 12:  # domain, account and a random word
            words.pop()
        try:
            _, sequence, consumer_sequence, timestamp_ns, pending = words[-5:]
            return cls(int(sequence), int(consumer_sequence), int(timestamp_ns), int(pending))
        except ValueError:
            return None


class Position:
    """A place in the stream.

    :ivar applied: the sequence of the last message that was applied, or after which nothing is missing
    :ivar is_whole: False if a change up to `applied` may be missing
    :ivar pending: number of messages that had not been delivered yet at the last delivery
    :ivar trusts_pending: True if one server has the stream
    :ivar gaps: changes with each gap, so that a barrier can tell whether it was published after the last one
    :ivar torn: number of times that a change was missing when a later one arrived
    """

    __slots__ = ("_consumed", "applied", "gaps", "is_whole", "pending", "torn", "trusts_pending")

    def __init__(self, applied: int = 0, trusts_pending: bool = True) -> None:
        self.applied = applied
        self.is_whole = False
        self.pending = 0
        self.trusts_pending = trusts_pending
        self.gaps = self.torn = 0
        self._consumed = 0

    def begin(self) -> None:
        """Begin with a new consumer."""
        self._consumed = 0
        self.tear()

    def expect(self, pending: int) -> None:
        """Note how many messages the new consumer had to deliver when it was created, unless one has arrived."""
        if not self._consumed:
            self.pending = pending
            self.is_whole = not pending and self.trusts_pending

    def advance(self, sequence: int, consumer_sequence: int, pending: int, count: int = 1) -> bool:
        """Advance to a delivery, which must be applied next. Return False, and stay, if deliveries before it were lost.

        :param count: number of deliveries since the last call. Either all were applied before, or none was, and all have
            successors.
        """
        if consumer_sequence != self._consumed + count:
            self.tear()
            return False
        self._consumed = consumer_sequence
        if not pending and self.trusts_pending:
            self.is_whole = True
        elif sequence > self.applied + count:
            self.torn += self.is_whole
            self.tear()
        if sequence > self.applied:
            self.applied = sequence
        self.pending = pending
        return True

    def tear(self) -> None:
        """Note that a change may be missing."""
        self.is_whole = False
        self.gaps += 1

    def mend(self, gaps: int) -> bool:
        """Note that a barrier was delivered. Return False if a gap came after it was published.

        :param gaps: the number of gaps when the barrier was published
        """
        if gaps == self.gaps:
            self.is_whole = True
        return self.is_whole

    def rest(self, last_sequence: int, consumed: int) -> bool:
        """Note a heartbeat: the consumer has nothing to deliver up to a sequence. Return False if deliveries were lost.

        :param consumed: number of messages that the consumer has delivered
        """
        if consumed != self._consumed:
            self.tear()
            return False
        self.pending = 0
        if last_sequence > self.applied:
            self.tear()
            self.applied = last_sequence
        if self.trusts_pending:
            self.is_whole = True
        return True

    def has_passed(self, sequence: int) -> bool:
        """Return True if this and all earlier messages are applied."""
        return self.is_whole and self.applied >= sequence
