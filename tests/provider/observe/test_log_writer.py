"""The thread that writes the log: order, the limit of what waits, and descriptors that take nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Thread

import pytest

from keyvalue_provider.observe.log_writer import QUEUE_BYTES_MAX, LogWriter
from tests.conftest import DEADLINE_S

LINE = b"x" * 8191 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe: the one to read, and the one to write."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_lines_beyond_the_limit_are_dropped_and_the_others_arrive_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    lines = [b"%d %b" % (number, LINE) for number in range(2 * QUEUE_BYTES_MAX // len(LINE))]
    taken = [line for line in lines if writer.write(line)]
    assert writer.refused == len(lines) - len(taken)
    assert QUEUE_BYTES_MAX - len(LINE) < sum(map(len, taken)) <= QUEUE_BYTES_MAX + 2 * 65_536
    writer.flush(0.01)  # it does not wait longer than that
    read = bytearray()

    def read_all() -> None:
        while len(read) < sum(map(len, taken)):
            read.extend(os.read(pipe[0], 65_536))

    reader = Thread(target=read_all)
    reader.start()
    writer.flush(DEADLINE_S)
    reader.join(DEADLINE_S)
    assert bytes(read) == b"".join(taken)
    assert writer.write(LINE), "there is room again"
    assert writer.failed == 0


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1])
    for _ in range(32):
        assert writer.write(LINE)
    read = 0
    while read < 32 * len(LINE):
        read += len(os.read(pipe[0], 65_536))
    writer.flush(DEADLINE_S)
    assert (writer.refused, writer.failed) == (0, 0)


def test_lines_to_a_reader_that_is_gone_or_a_full_disk_are_counted() -> None:
    read, gone = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (gone, full):
        writer = LogWriter(descriptor)
        for _ in range(3):
            assert writer.write(LINE)
        writer.flush(DEADLINE_S)
        assert writer.failed == 3
        os.close(descriptor)
