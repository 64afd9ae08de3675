"""The figures of a run, and the bars that they must keep. Without I/O, so that a test can judge any course of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from tests.torture.calls import TTL_MS, Phase

__all__ = ["MIB", "Bars", "Figures", "Sample", "Waits"]

MIB = 1024 * 1024
MARK_S = 60.0


@dataclass(frozen=True)
class Bars:
    """The bars. Growth is the resident memory since the provider was ready."""

    growth_ratio: float = 1.5
    growth_slack_bytes: int = 16 * MIB
    ttl_ratio: float = 1.5
    #: A phase of deletions is judged if it removes at least this much counted memory.
    fall_bytes_min: int = 16 * MIB
    #: The flood may wait this long for any answer.
    stall_s_max: float = 30.0

    def growth_bytes_max(self, counted_bytes: float) -> float:
        """Return the growth that this much counted memory allows."""
        return self.growth_ratio * counted_bytes + self.growth_slack_bytes


class Sample(NamedTuple):
    """The state of the provider at a moment of the run."""

    at_s: float
    phase: Phase
    phase_number: int
    answered: int
    rss_bytes: int
    counted_bytes: float
    keys: float
    reconnects: float
    is_connected: bool


@dataclass(slots=True)
class Waits:
    """The waits of a caller that is called one at a time, and its calls without a right answer."""

    calls: int = 0
    refused: int = 0
    worst_s: float = 0.0
    worst_since_line_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, wait_s: float) -> None:
        """Count an answered call."""
        self.calls += 1
        self.worst_s = max(self.worst_s, wait_s)
        self.worst_since_line_s = max(self.worst_since_line_s, wait_s)

    def take_worst_s(self) -> float:
        """Return the worst wait since the last call of this method."""
        worst_s, self.worst_since_line_s = self.worst_since_line_s, 0.0
        return worst_s


class Figures:
    """The samples of a run, and the bars that were missed.

    :param ready_bytes: the provider's resident memory when it was ready
    :ivar missed: one line for each missed bar
    """

    def __init__(self, bars: Bars, ready_bytes: int) -> None:
        self.bars = bars
        self.missed: list[str] = []
        self.careful = Waits()
        self.health = Waits()
        self.worst_excess_bytes = float("-inf")
        self.ttl_ratios: list[float] = []
        self.falls: list[str] = []
        self._ready_bytes = ready_bytes
        self._first: Sample | None = None
        self._of_phase: list[Sample] = []
        self._before_phase: Sample | None = None
        self._next_mark_s = MARK_S
        self._moved_s = 0.0
        self._longest_stall_s = 0.0
        self.last: Sample | None = None

    def growth_bytes(self, sample: Sample) -> int:
        """Return the growth of the resident memory."""
        return sample.rss_bytes - self._ready_bytes

    def add(self, sample: Sample) -> None:
        """Judge a sample."""
        last, self.last = self.last, sample
        if last is None or sample.answered > last.answered:
            self._moved_s = sample.at_s
        self._longest_stall_s = max(self._longest_stall_s, sample.at_s - self._moved_s)
        if last is not None and sample.phase_number != last.phase_number:
            self._end_phase()
            self._before_phase = last
        self._of_phase.append(sample)
        if sample.at_s >= self._next_mark_s:
            self._next_mark_s += MARK_S
            self._judge_growth(sample)

    def end(self) -> None:
        """Judge the whole run."""
        self._end_phase()
        last = self.last
        if last is None:
            self.missed.append("no sample was taken")
            return
        self._judge_growth(last)
        if last.reconnects or not last.is_connected:
            self.missed.append(f"the provider lost its NATS connection {max(1, last.reconnects):.0f} times")
        if self._longest_stall_s > self.bars.stall_s_max:
            self.missed.append(f"the flood got no answer for {self._longest_stall_s:.0f} s")
        for name, waits in (("the careful caller", self.careful), ("the health probe", self.health)):
            if waits.faults:
                self.missed.append(f"{name}: {len(waits.faults)} of {waits.calls} calls; the first: {waits.faults[0]}")
            elif not waits.calls:
                self.missed.append(f"{name} made no call")

    def _judge_growth(self, sample: Sample) -> None:
        growth, allowed = self.growth_bytes(sample), self.bars.growth_bytes_max(sample.counted_bytes)
        self.worst_excess_bytes = max(self.worst_excess_bytes, growth - allowed)
        if growth > allowed:
            self.missed.append(
                f"at {sample.at_s:.0f} s ({sample.phase}): RSS grew by {growth / MIB:.1f} MiB; the limit is "
                f"{allowed / MIB:.1f} MiB for {sample.counted_bytes / MIB:.1f} MiB counted"
            )

    def _end_phase(self) -> None:
        samples, self._of_phase = self._of_phase, []
        before = self._before_phase
        if not samples or before is None:
            return
        last = samples[-1]
        if last.phase.kind == "delete":
            self._judge_fall(before, last)
        elif last.phase.kind == "ttl":
            self._judge_ttl(before, samples)

    def _judge_fall(self, before: Sample, last: Sample) -> None:
        if before.counted_bytes - last.counted_bytes < self.bars.fall_bytes_min:
            return
        grown, left = self.growth_bytes(before), self.growth_bytes(last)
        fall = (
            f"at {last.at_s:.0f} s: deletions took the counted memory from {before.counted_bytes / MIB:.0f} to "
            f"{last.counted_bytes / MIB:.0f} MiB, and the RSS growth from {grown / MIB:.0f} to {left / MIB:.0f} MiB"
        )
        self.falls.append(fall)
        if left >= grown:
            self.missed.append(fall)

    def _judge_ttl(self, before: Sample, samples: list[Sample]) -> None:
        """Compare the mean of the keys held with the mean rate. The first second fills the store."""
        samples = [sample for sample in samples if sample.at_s >= before.at_s + 1.5]
        if len(samples) < 2:
            return
        first, last = samples[0], samples[-1]
        rate = (last.answered - first.answered) / (last.at_s - first.at_s)
        held = fmean(sample.keys for sample in samples) - min(before.keys, *(sample.keys for sample in samples))
        allowed = rate * TTL_MS / 1000
        if not allowed:
            return
        self.ttl_ratios.append(held / allowed)
        if held > self.bars.ttl_ratio * allowed:
            self.missed.append(
                f"at {last.at_s:.0f} s (ttl): {held:.0f} keys are held; the limit is "
                f"{self.bars.ttl_ratio * allowed:.0f} at {rate:.0f} sets/s with a ttl of {TTL_MS} ms"
            )
