"""The metrics of the Redis listener, and their table in the documents."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from keyvalue_provider.observe.redis_metrics import redis_metrics
from keyvalue_transport.redis.listener import ListenerCounts, RedisListener

ROOT = Path(__file__).parent.parent.parent.parent


class Numbers:
    """The numbers of a listener."""

    held_bytes, unsent_bytes = 2, 3

    def __init__(self) -> None:
        self.counts = ListenerCounts()
        for number, name in enumerate(vars(self.counts), 4):
            setattr(self.counts, name, number)

    def __len__(self) -> int:
        return 1


def test_each_number_has_a_metric_and_a_row() -> None:
    families = list(redis_metrics(cast(RedisListener, Numbers())))
    assert sorted(family.samples[0].value for family in families) == list(range(1, 11))
    suffixes = {"counter": "_total"}
    rows = [
        f"| {family.name}{suffixes.get(family.type, '')} | {family.type} | {family.documentation.removesuffix('.')} |"
        for family in families
    ]
    text = (ROOT / "docs" / "redis.md").read_text()
    assert "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows]) in text, "\n".join(rows)
