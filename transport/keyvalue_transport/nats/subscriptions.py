"""Subscriptions of a connection, and their callbacks."""

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
    """A message that a subscription's callback gets. nats-py's Msg is one."""

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
    """Calls a plain function with each message as soon as nats-py has read it, in order of arrival.

    nats-py handles each subscription in its own task, so the order between two subscriptions is lost. But if a
    subscription has a future, nats-py sets it at once. An object of this class takes the future's place.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._handle = handle

    def cancelled(self) -> bool:
        """Return False. nats-py asks before each message."""
        return False

    def set_result(self, message: Message) -> None:
        """Handle a message. Exceptions end here, so that nats-py keeps reading."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message to %s was not handled", message.subject[:128])


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription that outlives the clients that carry it.

    :ivar take: a coroutine function that is called for each message in turn, or an InlineCallback
    :ivar on_drop: called with the reply subject of a message that arrived faster than messages are handled
    :ivar route: what the direct path does with its messages
    :ivar lane: its lane in the order of the plain path
    :ivar carried: nats-py's subscription in the current client
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
        """Return the number of messages that have arrived and whose handling has not begun."""
        return 0 if self.carried is None else int(self.carried.pending_msgs)
