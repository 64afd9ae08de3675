"""The memory of calls that wait: whatever begins and ends, the counts are the sums, and nothing is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.wrpc.in_flight import BytesInFlight

BYTES_MAX = 4096


steps = st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 2 * BYTES_MAX), st.integers(0, 3))


@given(st.lists(steps, max_size=40))
def test_a_caller_may_hold_three_quarters_and_all_callers_the_limit(steps: list[tuple[str | None, int, int]]) -> None:
    """Calls begin if they may. After each, some calls end, the oldest first."""
    in_flight = BytesInFlight(BYTES_MAX)
    held: list[tuple[str | None, int]] = []

    def own_bytes(caller: str | None) -> int:
        return sum(size for source_id, size in held if source_id == caller)

    for source_id, size, ends in [*steps, (None, 1, 10**6)]:
        is_full = in_flight.held_bytes >= BYTES_MAX or own_bytes(source_id) >= BYTES_MAX * 3 // 4
        assert in_flight.is_full(source_id) == is_full
        if not is_full:
            in_flight.begin(source_id, size)
            held.append((source_id, size))
        sizes = [size for _, size in held]
        assert in_flight.held_bytes == sum(sizes) < BYTES_MAX + max(sizes, default=1)
        for ended in held[:ends]:
            in_flight.end(*ended)
        del held[:ends]
    assert in_flight.held_bytes == 0
    assert not any(map(in_flight.is_full, [None, "a", "b"]))
