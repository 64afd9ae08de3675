"""Durations: each request of a read counts once, under its command's name."""

from __future__ import annotations

from collections import Counter
from time import process_time

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.redis.durations import CommandDurations

names = st.sampled_from([b"GET", b"get", b"gEt", b"SET", b"\xff", b""])


@given(reads=st.lists(st.tuples(st.lists(st.lists(names, max_size=2), max_size=5), st.sampled_from([0.5, 1.0, 3.0]))))
def test_each_request_counts_once(reads: list[tuple[list[list[bytes]], float]]) -> None:
    durations = CommandDurations(["get", "set"], "unknown", (1.0, 2.0))
    expected: Counter[tuple[str, int]] = Counter()
    sums_s = dict.fromkeys(durations.sums_s, 0.0)
    for requests, duration_s in reads:
        if requests in ([[b"GET"]], [[b"get"]], [[b"SET"]]):
            durations.observe_alike(requests[0][0], 1, duration_s)
        else:
            durations.observe(requests, duration_s)
        for request in filter(None, requests):
            name = {b"get": "get", b"set": "set"}.get(request[0].lower(), "unknown")
            expected[name, 0 if duration_s <= 1 else 2] += 1
            sums_s[name] += duration_s
    assert {
        (name, place): count for name, counts in durations.counts.items() for place, count in enumerate(counts) if count
    } == expected
    assert {name: sum_s for name, [sum_s] in durations.sums_s.items()} == sums_s


def test_a_read_of_different_words_takes_no_quadratic_time() -> None:
    durations = CommandDurations(["get"], "unknown", (1.0,))
    began_s = process_time()
    durations.observe([[b"%d" % number] for number in range(30_000)], 0.5)
    assert process_time() - began_s < 1
    assert durations.counts == {"get": [0, 0], "unknown": [30_000, 0]}
