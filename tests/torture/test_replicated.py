"""A short history of a replicated store on three real servers, with faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.linearizability import Call
from tests.torture.replicated import History, record


@pytest.mark.timeout(180)
async def test_a_short_history_under_faults_is_linearizable(tmp_path: Path) -> None:
    history = await record(tmp_path, seed=3, calls=2_000, seconds=8)
    assert history.unexplained() is None
    assert len(history) > 500
    assert history.unknown < len(history) / 2
    assert sum(history.faults.values()) >= 3


def test_a_failed_history_is_kept(tmp_path: Path) -> None:
    history = History()
    history.calls["a"] += [Call("set", 0, 1, b"1"), Call("get", 2, 3, None, b"2")]
    assert history.unexplained() == ("a", history.calls["a"][1])
    history.save(tmp_path / "history")
    assert (tmp_path / "history").read_text().count('"key": "a"') == 2
