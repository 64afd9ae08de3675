"""How long commands take, by command: counts by duration, and sums."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from keyvalue_transport.redis.requests import Request

__all__ = ["CommandDurations"]


class CommandDurations:
    """Command durations, measured from a read to the write of its answers.

    The requests of a read are executed together, and each is counted with the duration of all. An answer that comes
    later, as those of the replicated store do, is not part of it.

    :param names: the names of the commands, in lower case
    :param unknown: the name under which all others are counted
    :param bounds_s: the upper bounds of the buckets, in seconds
    :ivar sums_s: lists of one number
    """

    def __init__(self, names: Iterable[str], unknown: str, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self.counts = {name: [0] * (len(bounds_s) + 1) for name in (*names, unknown)}
        self.sums_s = {name: [0.0] for name in self.counts}
        rows = {name: (counts, self.sums_s[name]) for name, counts in self.counts.items()}
        self._unknown = rows[unknown]
        self._rows = {word.encode(): rows[name] for name in rows for word in (name, name.upper())}

    def observe_alike(self, word: bytes, count: int, duration_s: float) -> None:
        """Count the requests of a read that are all of one known command."""
        counts, sum_s = self._rows[word]
        counts[bisect_left(self._bounds_s, duration_s)] += count
        sum_s[0] += count * duration_s

    def observe(self, requests: Sequence[Request], duration_s: float) -> None:
        """Count the requests of a read. O(requests), also if each has a word of its own."""
        if len(requests) == 1:
            numbers: Mapping[bytes, int] = dict.fromkeys(requests[0][:1], 1)
        else:
            numbers = Counter([request[0] for request in requests if request])
        place = bisect_left(self._bounds_s, duration_s)
        for word, number in numbers.items():
            counts, sum_s = self._rows.get(word) or self._rows.get(word.lower(), self._unknown)
            counts[place] += number
            sum_s[0] += number * duration_s
