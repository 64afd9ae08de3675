"""The sweep: it keeps up with writes that never pause, its turns are short, and other tasks run between two turns."""

from __future__ import annotations

import asyncio
from itertools import pairwise, product

import pytest

from keyvalue_engine import BucketOptions, Store
from keyvalue_provider.keyvalue.expiry_sweep import STEP_KEYS, TURN_MAX_S, Sweep
from tests.conftest import DEADLINE_S
from tests.engine.clock import Clock

NS_PER_S = 1_000_000_000


async def test_expired_keys_are_removed_step_by_step() -> None:
    clock = Clock()
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    for number in range(3 * STEP_KEYS):
        bucket.set(b"%d" % number, b"v", ttl_ms=1000)
    bucket.set(b"stays", b"v")
    sweeping = asyncio.create_task(Sweep(store, clock=lambda: 0.0).run())
    await asyncio.sleep(0)
    assert len(store) == 3 * STEP_KEYS + 1
    clock.move_ms(1000)
    seen = [len(store)]
    async with asyncio.timeout(DEADLINE_S):
        while seen[-1] > 1:
            await asyncio.sleep(0)
            if len(store) != seen[-1]:
                seen.append(len(store))
    sweeping.cancel()
    assert all(0 < before - after <= STEP_KEYS for before, after in pairwise(seen))
    assert store.expired_keys == 3 * STEP_KEYS
    store.check()


@pytest.mark.parametrize("ttl_ms", [100, 500])
@pytest.mark.parametrize(
    ("rate", "read_keys", "write_us", "remove_us"),
    [*product([20_000, 100_000], [125, 2_500], [8], [2]), (200_000, 20_000, 5, 4)],
)
def test_a_sweep_keeps_up_with_writes_that_never_pause(
    rate: int, read_keys: int, write_us: int, remove_us: int, ttl_ms: int
) -> None:
    """Simulate a loop that is always busy. Between two turns, it writes what arrived in one read of the socket.

    Writing and removing a key take simulated time, so that at the higher rate the sweep needs all the time that is
    left. 20,000 keys are two batches. Their reads take 0.1 s, which is longer than the sweep's turns once were.
    """

    class TimedStore(Store):
        """A store whose sweeps take simulated time."""

        def sweep(self, keys_max: int = 1_000) -> bool:
            before = self.expired_keys
            more = super().sweep(keys_max)
            clock.now_ns += remove_us * 1_000 * (self.expired_keys - before) + 1_000
            return more

    clock = Clock()
    store = TimedStore(clock=clock)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=ttl_ms))
    sweep = Sweep(store, clock=lambda: clock.now_ns / NS_PER_S)
    written, most = 0, 0
    while clock.now_ns < 2 * ttl_ms * 1_000_000 + NS_PER_S // 2:
        due = min(rate * clock.now_ns // NS_PER_S, written + read_keys)
        for number in range(written, due):
            bucket.set(b"%d" % number, b"v")
            clock.now_ns += write_us * 1_000
        if due == written:
            clock.now_ns += 100_000
        written = due
        began_ns = clock.now_ns
        sweep.turn()
        assert clock.now_ns - began_ns <= TURN_MAX_S * NS_PER_S + remove_us * 1_000 * STEP_KEYS + 1_000
        most = max(most, len(store))
    reached = written * NS_PER_S / clock.now_ns
    unavoidable = 2 * read_keys if read_keys > 2_500 else 0
    assert reached * ttl_ms / 1_000 <= most <= (1.5 if ttl_ms >= 500 else 2.0) * reached * ttl_ms / 1_000 + unavoidable
    store.check()
