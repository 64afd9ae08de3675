"""The server's time, as an instance estimates it from timestamps that arrive late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_replica.clock import WINDOW_NS, ServerClock

S = 10**9
steps = st.lists(st.tuples(st.integers(0, WINDOW_NS), st.integers(0, 5 * S), st.integers(-3 * S, 3 * S)), max_size=30)


@given(steps)
def test_it_never_goes_back_and_never_leads_what_was_proven(moves: list[tuple[int, int, int]]) -> None:
    """Messages are delayed by any time, and the server's clock jumps."""
    local_ns, server_ns = 0, 10**18
    clock = ServerClock(lambda: local_ns)
    assert clock() == 0
    before_ns = highest_ns = 0
    for passed_ns, delay_ns, jump_ns in moves:
        local_ns += passed_ns
        server_ns += passed_ns + jump_ns
        highest_ns = max(highest_ns + passed_ns, server_ns)
        clock.note(server_ns - delay_ns)
        assert before_ns <= clock() <= max(highest_ns, before_ns + passed_ns)
        before_ns = clock()


def test_the_shortest_delay_counts_and_an_old_one_is_forgotten() -> None:
    local_ns = 0
    clock = ServerClock(lambda: local_ns)
    clock.note(100 * S)
    clock.note(99 * S)
    assert clock() == 100 * S
    local_ns = S
    assert clock() == 101 * S
    for _ in range(3):  # the server's clock was set back by 50 s
        local_ns += WINDOW_NS + 1
        clock.note(50 * S + local_ns)
    late_ns = clock()
    local_ns += S
    assert clock() == late_ns, "the clock stands still until the server's time has caught up"
