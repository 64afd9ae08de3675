"""The phases of a load, and the figures that compare times. The tests move the clocks, so no test waits for a stall."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from bench.load.answers import FrameGenerator, SmallGenerator
from bench.load.case import Load
from bench.load.generator_base import Generator
from bench.load.workload import key_of
from keyvalue_transport.keyvalue.store import KeyResponse, encode_key_response
from tests.bench.load.sockets import answer, connected, load_of

MS_NS = 1_000_000


class Clocks:
    """The time, and the CPU time of every process."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.cpu_ns = 0


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Return the clocks that generators read. They move only when a test moves them."""
    clocks = Clocks()
    time = SimpleNamespace(perf_counter_ns=lambda: clocks.now_ns, process_time_ns=lambda: clocks.cpu_ns)
    for module in ("answers", "generator_base"):
        monkeypatch.setattr(f"bench.load.{module}.time", time)
        monkeypatch.setattr(f"bench.load.{module}.cpu_ns", lambda pid: clocks.cpu_ns)
    monkeypatch.setattr(Generator, "_start_ticks", lambda *_: None)
    return clocks


async def test_calls_are_done_when_all_are_answered_and_warm_up_calls_are_not_measured() -> None:
    generator = SmallGenerator(load_of(warm_calls=4, calls=6, in_flight=2, keys=1))
    socket = connected(generator)
    for number in range(10):
        assert not generator.ended.done()
        generator.data_received(answer(generator, number, generator.script.result(number)))
    await generator.ended
    assert generator.outcome().calls == 6
    assert socket.written.count(b"HPUB ") == 10


class Bursts(SmallGenerator):
    """A generator that records how many calls were fired, and when they were due."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.fired: list[tuple[int, int]] = []

    def serve(self) -> None: ...

    def fire(self, count: int, start_ns: int) -> None:
        self.fired.append((count, start_ns))
        self.sent += count


async def test_the_latency_of_calls_of_an_open_loop_starts_when_they_are_due() -> None:
    generator = Bursts(load_of(rate=2_500.0, seconds=0.01))
    generator.fire_due(999_999)
    assert generator.fired == []
    generator.fire_due(5_000_001)  # late: five bursts are due
    assert generator.fired == [(2, 1_000_000), (3, 2_000_000), (2, 3_000_000), (3, 4_000_000), (2, 5_000_000)]
    generator.fire_due(60_000_000)
    assert sum(count for count, _ in generator.fired) == generator.load.calls_max == 25


@pytest.mark.parametrize(
    ("answered", "max_ms", "excess_ms"),
    [
        ({4: [1, 3, 5], 300: [0, 2, 4]}, 299, 296),
        ({300: [0, 1, 2, 3, 4, 5]}, 299, 0),
        ({4: [0, 3, 5], 300: [1, 2, 4]}, 298, 296),
    ],
    ids=["the provider stalls", "both stall", "one stalls after the other"],
)
async def test_calls_are_compared_with_those_due_at_the_same_moment(
    clocks: Clocks, answered: dict[int, Sequence[int]], max_ms: int, excess_ms: int
) -> None:
    """Pairs of calls are due at 1, 2 and 3 ms.

    The second call of each pair goes to the other provider, and is not measured.
    """
    generator = SmallGenerator(load_of(rate=2_000.0, seconds=0.003, keys=1, beside="default.bare"))
    socket = connected(generator)
    generator.fire_due(3 * MS_NS)
    assert (socket.written.count(b" default.kv.wrpc."), socket.written.count(b" default.bare.wrpc.")) == (3, 3)
    for now_ms, numbers in answered.items():
        clocks.now_ns = now_ms * MS_NS
        generator.data_received(
            b"".join(answer(generator, number, generator.script.result(number)) for number in numbers)
        )
    await generator.ended
    outcome = generator.outcome()
    assert (outcome.calls, outcome.max_us, outcome.excess_us) == (3, max_ms * 1e3, excess_ms * 1e3)


async def test_the_longest_page_is_measured_by_the_cpu_clock_of_the_provider(clocks: Clocks) -> None:
    """A provider that stands still for half a second uses no CPU time."""
    load = load_of(function="list-keys", calls=4, in_flight=1, keys=4, page_keys=2, watched={"provider": 1})
    generator = FrameGenerator(load)
    connected(generator)
    pages = [KeyResponse([key_of(0), key_of(1)], 7), KeyResponse([key_of(2), key_of(3)], None)] * 2
    for number, (page, cpu_ns) in enumerate(zip(pages, [10_000, 15_000, 24_000, 26_000], strict=True)):
        clocks.now_ns += 500 * MS_NS
        clocks.cpu_ns = cpu_ns
        generator.data_received(answer(generator, number, encode_key_response(page)))
    await generator.ended
    outcome = generator.outcome()
    assert (outcome.calls, outcome.keys, outcome.max_us, outcome.page_cpu_us) == (4, 8, 500_000, 9)
