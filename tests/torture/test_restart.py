"""A short run of kills and starts, and how its figures are judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.torture.restart import Figures, Writers, run


@pytest.mark.timeout(60)
async def test_no_acknowledged_change_is_missing_after_a_kill(tmp_path: Path) -> None:
    figures = await run(tmp_path, seed=1, tries=2, keys=1_000)
    assert (len(figures.starts_s), figures.checked, figures.missing) == (2, 2_000, [])
    assert figures.acknowledged > 1_000, "the load went on"


class Forgetful:
    """A client of a store that loses each change of a key but the first."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def set(self, _: str, key: str, value: bytes) -> None:
        self.values.setdefault(key, value)

    async def get_many(self, _: str, keys: Sequence[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]


async def test_a_missing_change_and_a_late_start_are_found() -> None:
    figures, client = Figures(starts_s=[0.5, 2.1]), cast(Any, Forgetful())
    writers = Writers(client, 3, figures)
    await writers.fill()
    await writers.check(client)
    assert figures.missed == ["it served after 2.10 s; the limit is 2 s"]
    await writers.fill()
    del client.values["1"]
    await writers.check(client)
    assert figures.missed[1:] == [
        "key 0 is b'1', acknowledged 2, sent 2",
        "key 1 is None, acknowledged 2, sent 2",
        "key 2 is b'1', acknowledged 2, sent 2",
    ]
