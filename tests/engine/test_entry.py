"""The memory of an entry: one formula, and its parts."""

from __future__ import annotations

import pytest

from keyvalue_engine.entry import DEADLINE_BYTES, ENTRY_BYTES, bytes_size, entry_size, value_size


@pytest.mark.parametrize("length", range(100))
def test_the_size_of_an_entry_is_the_sum_of_its_parts(length: int) -> None:
    assert bytes_size(length) == (length + 33 + 15) // 16 * 16, "a header and a terminator, in steps of the allocator"
    for key, value in ((b"k" * length, b""), (b"", b"v" * length)):
        plain = ENTRY_BYTES + bytes_size(len(key)) + bytes_size(len(value))
        assert entry_size(key, value) == plain
        assert entry_size(key, (value, 1)) == plain + DEADLINE_BYTES
        for entry in (value, (value, 1)):
            assert value_size(entry) == entry_size(key, entry) - ENTRY_BYTES - bytes_size(len(key))
