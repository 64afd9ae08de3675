"""The progress of an export or an import, as one line on a terminal."""

from __future__ import annotations

import sys
from time import monotonic

from keyvalue_provider.client.streams import say

__all__ = ["ProgressLine"]

INTERVAL_S = 0.2
#: The codes that move to the start of the line, and that clear the rest of it.
BEGIN, CLEAR = "\r", "\x1b[K"


class ProgressLine:
    """A line that shows how far the command is. Without a terminal, nothing is written.

    :ivar keys: the keys of this run
    :param is_shown: False if the terminal shows something else
    """

    def __init__(self, is_shown: bool = True) -> None:
        self.keys = 0
        self._is_terminal = is_shown and sys.stderr is not None and sys.stderr.isatty()
        self._begin_s = self._last_s = monotonic()
        self._has_line = False

    def add(self, keys: int) -> None:
        """Count keys, and show the line again if it is old."""
        self.keys += keys
        now_s = monotonic()
        if self._is_terminal and now_s - self._last_s >= INTERVAL_S:
            self._last_s = now_s
            self._has_line = True
            say(f"{BEGIN}{self.keys:,} keys, {self.keys / (now_s - self._begin_s):,.0f} keys/s{CLEAR}", end="")

    def end(self) -> None:
        """Remove the line."""
        if self._has_line:
            say(f"{BEGIN}{CLEAR}", end="")
            self._has_line = False
