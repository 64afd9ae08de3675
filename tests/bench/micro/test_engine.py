"""The command `engine`: a small run, and bars that it misses."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator

import pytest

from bench.micro.engine import CASES, main, shuffled_keys, where

SMALL = ["--keys", "3000", "--rounds", "1"]


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """Restore the cyclic garbage collector, which the command tunes."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_every_figure_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3,000 keys of 12 bytes, values of 64; one thread; 1 rounds")
    judged = [line for line in lines if line.endswith((" ok", " unclear", " missed"))]
    names = [re.split(" {2,}", line)[0] for line in judged]
    assert names == ["new key", "get", "overwrite", "first walk", "second walk", "place in the order"]
    assert [case.name for case in CASES if not any(line.startswith(f"{case.name} ") for line in lines)] == []
    assert max(map(len, lines)) <= 100


def test_the_lines_of_the_engine_say_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    keys = shuffled_keys(300_000)
    found = list(where(keys))
    titles = [line for line in found if line.startswith("\nwhere the ")]
    assert [re.sub(r"[\d]+", "N", title) for title in titles] == [
        f"\nwhere the N ns of each {name} go (N samples)" for name in ("new key", "overwrite")
    ]
    assert {line.split()[2].partition(":")[0] for line in found if " ns  " in line} >= {"bucket.py", "shard.py"}
    assert (
        sum(int(line.split()[0]) for line in found if " ns  " in line)
        <= sum(int(title.split()[2]) for title in titles) + 20
    )


def test_a_missed_bar_fails_only_a_strict_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.micro.engine.PAGE_MS_MAX", 1e-9)
    assert main([*SMALL, "--strict"]) == 1
    assert main(SMALL) == 0


@pytest.mark.parametrize("option", ["--keys", "--rounds"])
def test_an_empty_run_is_refused(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([option, "0"])
    assert f"{option}: invalid positive value: '0'" in capsys.readouterr().err
