"""What is measured when, and when the calls of an open loop are due."""

from __future__ import annotations

from bench.load.answers import SmallGenerator
from bench.load.workload import Load
from tests.bench.load.sockets import connected, load_of


async def test_calls_are_done_when_all_are_answered_and_the_warm_ones_are_not_measured() -> None:
    generator = SmallGenerator(load_of(warm_calls=4, calls=6, in_flight=2, keys=1))
    socket = connected(generator)
    for number in range(10):
        assert not generator.ended.done()
        reply = b"%b.%d" % (generator.inbox, number)
        result = generator.script.result(number)
        generator.data_received(
            b"MSG %b.results 1 %d\r\n%b\r\nMSG %b.results 1 0\r\n\r\n" % (reply, len(result), result, reply)
        )
    await generator.ended
    assert generator.outcome().calls == 6
    assert socket.written.count(b"HPUB ") == 10


class Bursts(SmallGenerator):
    """Keeps what was fired and when it was due."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.fired: list[tuple[int, int]] = []

    def serve(self) -> None: ...

    def fire(self, count: int, start_ns: int) -> None:
        self.fired.append((count, start_ns))
        self.sent += count


async def test_calls_of_an_open_loop_count_from_when_they_were_due() -> None:
    generator = Bursts(load_of(rate=2_500.0, seconds=0.01))
    generator.fire_due(999_999)
    assert generator.fired == []
    generator.fire_due(5_000_001)  # late: five bursts are due
    assert generator.fired == [(2, 1_000_000), (3, 2_000_000), (2, 3_000_000), (3, 4_000_000), (2, 5_000_000)]
    generator.fire_due(60_000_000)
    assert sum(count for count, _ in generator.fired) == generator.load.calls_max == 25
