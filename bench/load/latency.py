"""Latencies in an HdrHistogram: three significant digits, from a nanosecond to ten minutes, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram

__all__ = ["Latencies"]

HIGHEST_NS = 600_000_000_000
DIGITS = 3


class Latencies:
    """A histogram of latencies in nanoseconds."""

    def __init__(self, latencies_ns: Iterable[int] = ()) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_NS, DIGITS)
        for latency_ns, count in Counter(latencies_ns).items():
            self._histogram.record_value(max(1, min(latency_ns, HIGHEST_NS)), count)

    @classmethod
    def merged(cls, encoded: Iterable[str]) -> Latencies:
        """Merge encoded histograms into one histogram."""
        merged = cls()
        for text in encoded:
            merged._histogram.decode_and_add(text.encode())
        return merged

    def encoded(self) -> str:
        """Return the histogram in HdrHistogram's own format, which its libraries in other languages can read."""
        encoded: bytes = self._histogram.encode()
        return encoded.decode()

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def percentiles_us(self, percents: Sequence[float]) -> list[float]:
        """Return the latency at each percentile, in microseconds."""
        return [self._histogram.get_value_at_percentile(percent) / 1e3 for percent in percents]
