"""The memory formula of the ledger against the growth of a process: at a million keys, and at some 100,000 with deadlines.

The keys are stored by a fresh process, `python -m tests.engine.test_memory`, so that nothing else has left holes in its memory.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyvalue_engine import Store
from keyvalue_engine.entry import DEADLINE_BYTES, ORDER_BYTES

KEYS = 1_000_000
TIMED_KEYS = 500_000
HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[2]


def resident_bytes() -> int:
    """Memory of this process that is in use, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure_orders() -> dict[str, int]:
    """Growth of the process, and growth by the formula: after a million sets, and after a full walk."""
    gc.collect()
    store = Store()
    bucket = store.bucket(b"b")
    start = resident_bytes()
    for number in range(KEYS):
        bucket.set(b"%012d" % number, b"%064d" % number)
    unordered = resident_bytes() - start
    unordered_formula = store.memory_bytes
    cursor: int | None = 0
    walked = 0
    while cursor is not None:
        keys, cursor = bucket.page(cursor)
        walked += len(keys)
    return {
        "walked": walked,
        "unordered": unordered,
        "unordered_formula": unordered_formula,
        "ordered": resident_bytes() - start,
        "ordered_formula": store.memory_bytes,
    }


def measure_sets(count: int, ttl_ms: int = 0) -> dict[str, int]:
    """Growth of the process, and growth by the formula, after so many sets; with deadlines, if a time to live is given."""
    gc.collect()
    store = Store()
    bucket = store.bucket(b"b")
    start = resident_bytes()
    for number in range(count):
        bucket.set(b"%012d" % number, b"%064d" % number, ttl_ms + number if ttl_ms else None)
    return {"found": resident_bytes() - start, "formula": store.memory_bytes}


def measured(*arguments: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.engine.test_memory", *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    result: dict[str, int] = json.loads(child.stdout)
    return result


@pytest.fixture(scope="module")
def growth() -> dict[str, int]:
    result = measured()
    assert result["walked"] == KEYS
    return result


@pytest.mark.parametrize("state", ["unordered", "ordered"])
def test_the_formula_is_the_growth_of_the_process(growth: dict[str, int], state: str) -> None:
    assert growth[state] == pytest.approx(growth[f"{state}_formula"], rel=0.15)


def test_the_order_of_a_key_is_cheap(growth: dict[str, int]) -> None:
    assert growth["ordered_formula"] - growth["unordered_formula"] == KEYS * ORDER_BYTES
    assert 0 < growth["ordered"] - growth["unordered"] <= 110 * KEYS
    assert ORDER_BYTES <= 110


def test_the_formula_of_a_deadline_is_the_growth_of_the_process() -> None:
    plain, timed = measured(str(TIMED_KEYS)), measured(str(TIMED_KEYS), str(HOUR_MS))
    assert timed["found"] == pytest.approx(timed["formula"], rel=0.15)
    formula = timed["formula"] - plain["formula"]
    assert formula == pytest.approx(DEADLINE_BYTES * TIMED_KEYS, rel=0.01), "but for the number of shards"
    assert timed["found"] - plain["found"] == pytest.approx(formula, rel=0.05)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    json.dump(measure_sets(*numbers) if numbers else measure_orders(), sys.stdout)
