"""The ledger's memory formula against the growth of a process: for keys, their order and their deadlines.

A fresh process stores the keys (`python -m tests.engine.test_memory`), so that nothing else has left holes in its
memory.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_engine.entry import DEADLINE_BYTES, ORDER_BYTES

KEYS = 200_000
HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[2]


def resident_bytes() -> int:
    """Return the resident memory of this process, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(ttl_ms: int | None, eviction: str = "none") -> list[tuple[int, int]]:
    """Return the growth of the process and the formula's figure, after the keys were set and after a walk."""
    gc.collect()
    store = Store(StoreOptions(eviction=eviction))
    bucket = store.bucket(b"b")
    start = resident_bytes()
    for number in range(KEYS):
        bucket.set(b"%012d" % number, b"%064d" % number, None if ttl_ms is None else ttl_ms + number)
    unordered = resident_bytes() - start, store.memory_bytes
    assert sum(1 for _ in bucket) == KEYS
    return [unordered, (resident_bytes() - start, store.memory_bytes)]


def measured(*arguments: str) -> list[tuple[int, int]]:
    command = [sys.executable, "-m", "tests.engine.test_memory", *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    found: list[tuple[int, int]] = json.loads(child.stdout)
    return found


def test_the_formula_predicts_the_growth_of_the_process() -> None:
    (plain, ordered), (timed, timed_ordered) = measured(), measured(str(HOUR_MS))
    for growth_bytes, formula_bytes in (plain, ordered, timed, timed_ordered):
        assert growth_bytes == pytest.approx(formula_bytes, rel=0.15)
    for less, more, key_bytes in ((plain, ordered, ORDER_BYTES), (plain, timed, DEADLINE_BYTES)):
        assert more[1] - less[1] == pytest.approx(KEYS * key_bytes, rel=0.05), "besides what shards take"
        assert more[0] - less[0] == pytest.approx(more[1] - less[1], rel=0.15)


@pytest.mark.parametrize("eviction", ["oldest", "unused"])
def test_the_formula_counts_what_eviction_takes(eviction: str) -> None:
    (growth_bytes, formula_bytes), _ = measured("0", eviction)
    assert growth_bytes == pytest.approx(formula_bytes, rel=0.15)


if __name__ == "__main__":
    ttl_ms, eviction = [*sys.argv[1:], *("0", "none")[len(sys.argv) - 1 :]]
    json.dump(measure(int(ttl_ms) or None, eviction), sys.stdout)
