"""The rate limit of log lines. Each line that was left out is counted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.rate_limit import RateLimit


@given(st.integers(1, 4), st.integers(1, 10), st.lists(st.integers(0, 12), max_size=40))
def test_an_interval_admits_a_number_and_the_next_line_counts_the_others(
    number_max: int, interval_s: int, waits_s: list[int]
) -> None:
    limit = RateLimit(number_max, interval_s)
    now_s = told = suppressed = admitted = 0
    until_s = 0
    for wait_s in waits_s:
        now_s += wait_s
        if now_s >= until_s:
            until_s, admitted = now_s + interval_s, 0
        found = limit.admit(now_s)
        assert (found is None) == (admitted == number_max)
        if found is None:
            suppressed += 1
        else:
            admitted += 1
            told += found
            assert told == suppressed
