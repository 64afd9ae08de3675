"""When kept handles are dropped, and when waiting calls look again. Real servers: tests/integration/test_shared_buckets.py."""

from __future__ import annotations

from keyvalue_replica.open_bucket import KvPlace, OpenBucket


async def test_handles_are_dropped_only_when_a_bucket_begins_or_ends_to_be_served() -> None:
    """Otherwise, a caller that names missing buckets would make all calls open their handles again."""
    drops = 0

    def drop() -> None:
        nonlocal drops
        drops += 1

    opened, woken = OpenBucket(KvPlace("", "kv"), drop), []
    steps = [(opened.leave, 0), (opened.join, 1), (opened.leave, 2), (opened.leave, 2), (opened.join, 3)]
    for step, expected in steps:
        before = opened.changed
        await step()
        assert drops == expected
        woken.append(before.is_set())
    opened.hide()
    opened.hide()
    assert (drops, opened.is_served, opened.was_served) == (4, False, True)
    assert woken == [False, True, True, False, True]


def test_a_bucket_of_another_domain_has_another_name_in_the_engine() -> None:
    assert (KvPlace("", "kv").name, KvPlace("hub", "kv").name) == (b"kv", b"hub/kv")
