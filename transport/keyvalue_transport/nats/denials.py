"""The messages that the NATS server does not let us publish: their count, the log lines, and what health says.

A caller chooses the reply subject of its call. So a refused answer may be the fault of a single caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Protocol

from keyvalue_transport.nats.rate_limit import network_limit
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Denials"]

log = logging.getLogger(__name__)

#: Health reports the last denial for this time.
REPORTED_S = 60.0


class Inboxes(Protocol):
    """The part of a connection that this module uses."""

    def new_inbox(self) -> str: ...

    async def publish(self, subject: str, payload: bytes) -> None: ...


class Denials:
    """The denials of one connection.

    :ivar count: number of messages that the server refused to publish
    :ivar listeners: called with each subject that we may not publish to or subscribe to, in lowercase
    :ivar own_inbox: an inbox of ours, where messages must be allowed; empty if nobody has asked
    """

    def __init__(self) -> None:
        self.count = 0
        self.listeners: set[Callable[[str], None]] = set()
        self.own_inbox = ""
        self._last, self._reported_until_s = "", 0.0
        self._lines = network_limit()

    async def probe(self, connection: Inboxes) -> None:
        """Publish to an inbox of ours. A server that may not do so can't answer anybody.

        A caller chooses its reply subject, so a refused answer may be the caller's fault. This message is not.
        """
        self.own_inbox = self.own_inbox or connection.new_inbox()
        with suppress(DisconnectedError):  # the next reconnect repeats the check
            await connection.publish(self.own_inbox, b"")

    def tell(self, subject: str) -> None:
        """Tell the listeners of a denied subject."""
        for listener in tuple(self.listeners):
            listener(subject)

    def note(self, text: str) -> str | None:
        """Count and log a message that the server refused. If it went to `own_inbox`, return why no call can be answered.

        :param text: the server's error
        """
        self.count += 1
        self._last, self._reported_until_s = text, monotonic() + REPORTED_S
        if (more := self._lines.admit(monotonic())) is not None:
            log.warning("NATS: a message was refused: %s%s", text, more)
        is_own = self.own_inbox and f'"{self.own_inbox}"' in text
        return f"no call can be answered: NATS: {text}" if is_own else None

    def remarks(self) -> list[str]:
        """Return what an operator should know, or an empty list if nothing was denied lately."""
        if monotonic() >= self._reported_until_s:
            return []
        return [f"NATS refused {self.count} messages; the last: {self._last}"]
