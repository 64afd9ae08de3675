"""The KV buckets that are kept because their expired keys are watched.

tests/integration/test_replicated_watch.py tests the rest.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from keyvalue_engine import Store
from keyvalue_provider.watching.patterns import Pattern, _patterns
from keyvalue_provider.watching.queue import WatchCounts
from keyvalue_provider.watching.replicated_watchers import ExpiredKeys, WatcherKey
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.watched_bucket import WatchedBucket


def test_a_kv_bucket_is_forgotten_with_its_last_watcher() -> None:
    stores: Any = SimpleNamespace(plain=SimpleNamespace(store=Store(), on_closed=None), follower=None)
    requests: Any = None
    expired = ExpiredKeys(stores, 100, WatchCounts())
    deletes, sets = (_patterns(text) for text in ("DEL@*", "SET@*"))

    def observe(name: str, patterns: tuple[Pattern, ...], link: str) -> None:
        key: WatcherKey = (("provider", "component", link), None)
        expired.observe(key, WatchedBucket(requests, PlainLayout(name, name.encode(), ""), lambda: None), patterns)

    for number in range(3):
        name = f"b{number}"
        for patterns, link, is_kept in (
            (sets, "one", False),
            (deletes, "one", True),
            (deletes, "two", True),
            ((), "one", True),
            ((), "one", True),
            (sets, "two", False),
            ((), "two", False),
        ):
            observe(name, patterns, link)
            assert list(expired._watched) == ([name.encode()] if is_kept else [])
