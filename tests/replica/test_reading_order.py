"""The order in which followers read, and how many do so at a time."""

from __future__ import annotations

import asyncio

from keyvalue_replica.reading_order import LARGE_BYTES, LARGE_MAX, SMALL_MAX, ReadingOrder

SMALL, LARGE = LARGE_BYTES - 1, LARGE_BYTES


async def test_each_lane_is_in_the_order_of_arrival_and_the_large_one_delays_no_small_reader() -> None:
    order, began, ends = ReadingOrder(), list[str](), dict[str, asyncio.Event]()

    async def read(name: str, size: int) -> None:
        async with order.turn(name, size):
            began.append(name)
            await ends[name].wait()

    names = {f"large{number}": LARGE for number in range(3)} | {f"small{number}": SMALL for number in range(8)}
    tasks = {}
    for name, size in names.items():
        ends[name] = asyncio.Event()
        tasks[name] = asyncio.create_task(read(name, size))
        await asyncio.sleep(0)
    assert (SMALL_MAX, LARGE_MAX) == (4, 1)
    assert began == ["large0", "small0", "small1", "small2", "small3"]
    assert [order.ahead_of(name) for name in names] == [None, 1, 2, None, None, None, None, 4, 5, 6, 7]
    tasks["small5"].cancel()  # its KV bucket is closed while it waits
    await asyncio.gather(tasks["small5"], return_exceptions=True)
    assert [order.ahead_of(name) for name in ("small4", "small5", "small6", "small7")] == [4, None, 5, 6]
    tasks["small1"].cancel()  # its KV bucket is closed while it is read
    await asyncio.gather(tasks["small1"], return_exceptions=True)
    for name in ("large0", "small3", "small0"):
        ends[name].set()
        await tasks[name]
        await asyncio.sleep(0)
    assert began[5:] == ["small4", "large1", "small6", "small7"]
    for event in ends.values():
        event.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert began[-1] == "large2"
    assert all(order.ahead_of(name) is None for name in names)
