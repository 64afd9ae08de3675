"""The memory formula of the ledger against the growth of a process, at a million keys.

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

from engine import Store
from engine.ledger import ORDER_BYTES

KEYS = 1_000_000
ROOT = Path(__file__).parents[2]


def resident_bytes() -> int:
    """Memory of this process that is in use, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure() -> dict[str, int]:
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


@pytest.fixture(scope="module")
def growth() -> dict[str, int]:
    command = [sys.executable, "-m", "tests.engine.test_memory"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    result: dict[str, int] = json.loads(child.stdout)
    assert result["walked"] == KEYS
    return result


@pytest.mark.parametrize("state", ["unordered", "ordered"])
def test_the_formula_is_the_growth_of_the_process(growth: dict[str, int], state: str) -> None:
    assert growth[state] == pytest.approx(growth[f"{state}_formula"], rel=0.15)


def test_the_order_of_a_key_is_cheap(growth: dict[str, int]) -> None:
    assert growth["ordered_formula"] - growth["unordered_formula"] == KEYS * ORDER_BYTES
    assert 0 < growth["ordered"] - growth["unordered"] <= 110 * KEYS
    assert ORDER_BYTES <= 110


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
