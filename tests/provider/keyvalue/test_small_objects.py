"""The allocator of small objects: where memory comes from, and that either allocator frees it."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from keyvalue_provider.keyvalue.small_objects import SmallObjects

OBJECTS = 20_000

MAKE_AND_FREE = """
from keyvalue_provider.keyvalue.small_objects import SmallObjects
small_objects = SmallObjects()
kept = []
for number in range(1_000):
    small_objects.use_malloc(number % 2 == 1)
    kept += [b"%d" % number, [number], {number: float(number)}]
    del kept[:: 7]
"""


def blocks_of_new_objects(*, uses_malloc: bool) -> int:
    """Return the number of Python's memory blocks that new objects take."""
    small_objects = SmallObjects()
    small_objects.use_malloc(uses_malloc)
    try:
        before = sys.getallocatedblocks()
        objects = [b"%d" % number for number in range(OBJECTS)]
        return sys.getallocatedblocks() - before + 0 * len(objects)
    finally:
        small_objects.use_malloc(False)


@pytest.mark.skipif("PYTHONMALLOC" in os.environ, reason="another allocator is in use")
def test_new_objects_take_blocks_of_python_only_without_malloc() -> None:
    assert blocks_of_new_objects(uses_malloc=False) > 0.9 * OBJECTS
    assert blocks_of_new_objects(uses_malloc=True) < 0.1 * OBJECTS
    assert blocks_of_new_objects(uses_malloc=False) > 0.9 * OBJECTS


def test_objects_of_either_allocator_grow_and_are_freed_under_the_other() -> None:
    rng, small_objects = Random(1), SmallObjects()
    lists: list[list[int]] = [[] for _ in range(500)]
    try:
        for turn in range(200):
            small_objects.use_malloc(turn % 2 == 1)
            for _ in range(200):
                number = rng.randrange(len(lists))
                if rng.random() < 0.2:
                    lists[number] = []
                else:
                    lists[number].append(number)
    finally:
        small_objects.use_malloc(False)
    assert all(each == [number] * len(each) for number, each in enumerate(lists))


@pytest.mark.parametrize("allocator", ["default", "malloc", "debug", "pymalloc_debug"])
def test_another_allocator_is_left_alone(allocator: str) -> None:
    """The debugging allocators abort the process if they free memory that is not theirs."""
    environment = {**os.environ, "PYTHONMALLOC": allocator}
    subprocess.run([sys.executable, "-c", MAKE_AND_FREE], env=environment, timeout=60, check=True)
