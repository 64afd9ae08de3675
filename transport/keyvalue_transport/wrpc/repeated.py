"""A call that waits without its result, and is made again then (`Again` in handler.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keyvalue_transport.wrpc.handler import Again, Caller, Handler, LargeResult, Pending

__all__ = ["WAITS_AGAIN", "MustWait", "Repeated"]

WAITS_AGAIN = "a call that was made again waits for the same thing again"


class MustWait(Exception):
    """The wait of a call is not over. `Waiting.pending` must be replaced by `pending`."""

    def __init__(self, pending: Pending) -> None:
        self.pending = pending


class Repeated:
    """The Pending answer of a call that is made again when `again` is done."""

    def __init__(self, again: Again, handler: Handler, caller: Caller, params: bytes) -> None:
        self.answer: Any = again.source
        self._handler = handler
        self._caller = caller
        self._params = params

    def encode(self, read: Callable[[], object]) -> bytes:
        """Make the call again, and return its result.

        :raises MustWait: it must wait for something else now
        :raises TypeError: it would wait for what is done
        """
        result = self._handler(self._caller, self._params, 0, len(self._params))
        if isinstance(result, LargeResult):
            result = result.encode()
        if isinstance(result, Again):
            if result.source is self.answer:
                raise TypeError(WAITS_AGAIN)
            result = Repeated(result, self._handler, self._caller, self._params)
        if not isinstance(result, bytes):
            raise MustWait(result)
        return result
