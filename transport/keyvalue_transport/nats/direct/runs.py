"""Runs: calls of one function by one caller that follow each other in a read, and whose frames have one shape and size.

Some functions have a handler that makes the calls of a run together (`ForRuns` in wrpc/handler.py). Then a run takes one
call of the handler, and one expression that builds all answers, in place of one for each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from keyvalue_transport.nats.direct.answers import END, RESULT_LINES
from keyvalue_transport.wrpc.handler import Again, Caller, ForRuns, RunResults

__all__ = ["FrameRun", "answers_of_run"]


class FrameRun:
    """The calls of a run. It is an iterable of their tuples, like the calls of any other group (alike.py).

    :param tails: the tails of their reply subjects
    :param params: their parameters, if their handler makes the calls of a run together and these are short; otherwise empty
    :ivar arguments: what the `split` of `ForRuns` returns, after `results_of` was called
    :param at: the offset of the first frame
    :param frame_bytes: the size of a frame
    :param start: the offset of the first frame's parameters
    :param stop: the offset where these end
    """

    __slots__ = ("_at", "_frame_bytes", "_start", "_stop", "arguments", "params", "tails")

    def __init__(
        self, tails: tuple[bytes, ...], params: tuple[bytes, ...], at: int, frame_bytes: int, start: int, stop: int
    ) -> None:
        self.tails = tails
        self.params = params
        self.arguments: Any = None
        self._at = at
        self._frame_bytes = frame_bytes
        self._start = start
        self._stop = stop

    def results_of(self, handler: ForRuns, caller: Caller) -> RunResults | Again | None:
        """Make the calls, as `call_run` of the handler does. If they must wait, this method can be called again."""
        if self.arguments is None:
            if not self.params:
                return None
            self.arguments = handler.split(self.params)
            if self.arguments is None:
                return None
            self.params = ()  # the arguments take their place while the calls wait
        return handler.call_run(caller, self.arguments)

    def pass_over(self, number: int) -> Sequence[bytes]:
        """Let the run begin after the next `number` calls, and return the tails of their reply subjects."""
        tails = self.tails
        self.tails = tails[number:]
        passed_bytes = number * self._frame_bytes
        self._at += passed_bytes
        self._start += passed_bytes
        self._stop += passed_bytes
        return tails[:number]

    def cut_out(self, buffer: bytes) -> bytes:
        """Return a copy of the frames, and let the offsets be those in the copy."""
        frames, at = buffer[self._at : self.end], self._at
        self._at, self._start, self._stop = 0, self._start - at, self._stop - at
        return frames

    @property
    def end(self) -> int:
        """Return the offset after the last frame."""
        return self._at + len(self.tails) * self._frame_bytes

    def __len__(self) -> int:
        return len(self.tails)

    def __iter__(self) -> Iterator[tuple[bytes, int, int, int]]:
        size, end = self._frame_bytes, self.end
        return zip(
            self.tails,
            range(self._at, end, size),
            range(self._start, end, size),
            range(self._stop, end, size),
            strict=True,
        )


def answers_of_run(
    begun: tuple[bytes, bytes, bytes], tails: Sequence[bytes], of_all: bytes, rests: Sequence[bytes]
) -> list[bytes]:
    """Return the parts of the frames that answer calls. To fill a column at a time takes half as long as `zip`.

    :param begun: the bytes before each of the three tails in an answer
    :param tails: the tails of the calls' reply subjects
    :param of_all: the bytes with which all results begin; if there are any, all results have the same size
    :param rests: the rest of each result, at least one. With `of_all`, it has 1 to SMALL - 1 bytes
    """
    pub, handshake, next_pub = begun
    line = RESULT_LINES[len(of_all) + len(rests[0])] + of_all
    parts = [pub, b"", handshake, b"", line, b"", next_pub, b"", END] * len(tails)
    parts[1::9] = parts[3::9] = parts[7::9] = tails
    if not of_all:
        parts[4::9] = [RESULT_LINES[len(rest)] for rest in rests]
    parts[5::9] = rests
    return parts
