"""Subscriptions of a connection, and what they call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from keyvalue_transport.nats.arrival_order import Lane
from keyvalue_transport.nats.direct.routes import Route

__all__ = ["Callback", "InlineCallback", "Message", "Subscription"]

log = logging.getLogger(__name__)


class Message(Protocol):
    """What a subscription's callback gets (nats-py's Msg is one)."""

    @property
    def subject(self) -> str: ...
    @property
    def reply(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> dict[str, str] | None: ...


Callback = Callable[[Message], Awaitable[None]]


class InlineCallback:
    """Calls a plain function with each message when nats-py has read it, in the order in which messages come.

    nats-py handles the messages of each subscription in a task of its own, so that the order between two is lost. It tells a subscription
    that has a future of each message at once; this stands in the future's place.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._handle = handle

    def cancelled(self) -> bool:
        """Return False: nats-py asks before each message."""
        return False

    def set_result(self, message: Message) -> None:
        """Take a message. What the function raises ends here: nats-py's reading goes on after it."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message to %s was not handled", message.subject[:128])


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription that outlives the clients that carry it.

    :ivar take: a coroutine function that is called for one message after the other, or InlineCallback
    :ivar on_drop: told the reply subject of a message that came faster than messages are handled
    :ivar route: what the direct path answers it with
    :ivar lane: its place in the order of the plain path
    :ivar carried: nats-py's subscription, of the client that is alive
    """

    subject: str
    take: Callback | InlineCallback
    queue: str = ""
    on_drop: Callable[[str], Awaitable[None]] | None = None
    route: Route | None = None
    lane: Lane | None = None
    carried: Any = None

    @property
    def queued(self) -> int:
        """Return the number of messages that have come and that are not being handled."""
        return 0 if self.carried is None else int(self.carried.pending_msgs)
