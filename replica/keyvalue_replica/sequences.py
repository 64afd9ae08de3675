"""The stream sequence of the last message of each key that was incremented lately."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["NO_MESSAGE", "UNKNOWN", "Sequences"]

#: Number of keys whose sequence is kept. A key that is not kept costs its next increment one refused message.
KEYS_MAX = 16_384
#: The sequence of a key that has no message in the stream.
NO_MESSAGE = 0
#: The sequence of a key of which nothing was learnt since it is watched.
UNKNOWN = -1


class Sequences:
    """The sequence of each watched subject's last message."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self.by_subject: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of subjects that are watched."""
        return len(self.by_subject)

    def watch(self, subject: bytes) -> int:
        """Return the sequence of a subject, and keep it from now on. Forget the one that was kept for the longest time."""
        sequence = self.by_subject.setdefault(subject, UNKNOWN)
        if len(self.by_subject) > self._keys_max:
            self.by_subject.popitem(last=False)
        return sequence

    def get(self, subject: bytes) -> int:
        """Return the sequence of a subject."""
        return self.by_subject.get(subject, UNKNOWN)

    def note(self, subject: bytes, sequence: int) -> None:
        """Note the sequence of a message that was applied."""
        if subject in self.by_subject:
            self.by_subject[subject] = sequence

    def learn(self, subject: bytes, sequence: int, expected: int) -> None:
        """Note the sequence that the server has named. What was applied later counts more.

        :param expected: the one that was known when the server was asked
        """
        known = self.by_subject.get(subject)
        if known is not None and (sequence > known or (sequence == NO_MESSAGE and known == expected)):
            self.by_subject[subject] = sequence

    def clear(self) -> None:
        """Forget all, because the stream is read again."""
        self.by_subject.clear()
