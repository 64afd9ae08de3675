"""An interrupt at any place of a call on one key: all locks are free, and the counts agree with the entries.

A signal handler runs when a function begins, and after a call of a C function. So a profile function can raise the
handler's exception at each of these places, one after the other. Loops, a further place, are not reached this way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import keyvalue_engine
from keyvalue_engine import Bucket, Quota, Reach, Store
from keyvalue_engine.options import BucketOptions
from tests.engine.clock import Clock
from tests.engine.entries import shards_of
from tests.engine.races import run_together

ENGINE = str(Path(keyvalue_engine.__file__).parent)
PLACES_MAX = 500


class Interrupt(BaseException):
    """The exception of a signal handler, such as KeyboardInterrupt."""


def interrupted(call: Callable[[], object], place: int) -> bool:
    """Make the call, and raise `Interrupt` at a place of it. Return False if the call ended before that place."""
    left = place

    def at_event(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(ENGINE):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupt

    sys.setprofile(at_event)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


CALLS: dict[str, Callable[[Bucket], object]] = {
    "get": lambda bucket: bucket.get(b"old"),
    "get a timed key": lambda bucket: bucket.get(b"timed"),
    "set a new key": lambda bucket: bucket.set(b"new", b"value"),
    "set a new key with a deadline": lambda bucket: bucket.set(b"new", b"value", 1_000),
    "set an old key": lambda bucket: bucket.set(b"old", bytes(1_000)),
    "set an old key with a deadline": lambda bucket: bucket.set(b"old", b"value", 1_000),
    "set a timed key": lambda bucket: bucket.set(b"timed", bytes(1_000)),
    "set a timed key with an earlier deadline": lambda bucket: bucket.set(b"timed", bytes(1_000), 100),
    "increment a new key": lambda bucket: bucket.increment(b"new", 1),
    "increment an old key": lambda bucket: bucket.increment(b"old", 10**9),
    "increment a timed key": lambda bucket: bucket.increment(b"timed", 10**9),
    "delete an old key": lambda bucket: bucket.delete(b"old"),
    "delete a timed key": lambda bucket: bucket.delete(b"timed"),
    "set an expired key": lambda bucket: bucket.set(b"expired", b"value"),
}


@pytest.mark.usefixtures("few_keys_count_ahead")
@pytest.mark.parametrize("has_quota", [False, True])
@pytest.mark.parametrize("has_times", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupted_call_holds_no_lock_and_counts_right(
    call: Callable[[Bucket], object], has_times: bool, has_quota: bool
) -> None:
    """Without a quota, the counts are ahead of the keys."""
    for place in range(PLACES_MAX):
        clock = Clock()
        store = Store(clock=clock)
        quota = Quota(Reach(prefix=b""), 10, 10_000) if has_quota else None
        if quota is not None:
            store.add_quota(quota)
        bucket = store.bucket(b"b", BucketOptions(quota=quota))
        bucket.set(b"stays", b"1")
        bucket.set(b"old", b"1")
        if has_times:
            bucket.set(b"timed", b"1", 1_000)
            bucket.set(b"expired", b"1", 1)
            clock.move_ms(1)
        bucket.page()
        (shard,) = shards_of(store)
        was_interrupted = interrupted(partial(call, bucket), place)
        run_together(partial(bucket.set, b"other", b"value"))  # from another thread, so that a held lock shows
        store.check()
        assert sorted(bucket.keys()) == sorted(key for key in shard.entries if bucket.exists(key))
        assert bucket.get(b"old") in (b"1", b"1000000001", b"value", bytes(1_000), None)
        if not was_interrupted:
            break
    else:
        pytest.fail(f"the call has more than {PLACES_MAX} places")
