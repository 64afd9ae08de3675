"""Log lines of this process, for tests that wait for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import DEADLINE_S


class LogLines(logging.Handler):
    """Lines of the form `LEVEL message`, of one event loop."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._more = asyncio.Event()

    @classmethod
    @contextmanager
    def of(cls, name: str) -> Iterator[LogLines]:
        """Collect all lines of a logger."""
        handler, logger = cls(), logging.getLogger(name)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            yield handler
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")
        self._more.set()

    async def wait_for(self, text: str, times: int = 1) -> None:
        """Return once this number of lines contains the text."""
        async with asyncio.timeout(DEADLINE_S):
            while sum(text in line for line in self.lines) < times:
                self._more.clear()
                await self._more.wait()
