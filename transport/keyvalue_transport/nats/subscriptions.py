"""Subscriptions of a connection, and their callbacks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from keyvalue_transport.nats.arrival_order import Lane
from keyvalue_transport.nats.direct.routes import Route

__all__ = ["Callback", "InlineCallback", "Message", "Subscription", "never"]

log = logging.getLogger(__name__)


class Message(Protocol):
    """A message as a subscription's callback receives it. nats-py's Msg implements this protocol."""

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
    """A callback that nats-py calls as soon as it has read a message, so messages stay in order of arrival.

    nats-py handles each subscription in its own task, so the order between two subscriptions is lost. But if a
    subscription has a future, nats-py sets the future's result at once. An InlineCallback takes the future's place.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._handle = handle

    def cancelled(self) -> bool:
        """Return False. nats-py calls this method before each message."""
        return False

    def set_result(self, message: Message) -> None:
        """Handle a message. Catch every exception, so that nats-py keeps reading."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message to %s was not handled", message.subject[:128])


def never(message: Message) -> None:
    """Raise an error, because nats-py must not see the messages of this subscription."""
    raise AssertionError("nats-py has received a message that is routed past it")


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription that each new nats-py client takes over.

    :ivar take: a coroutine function that is called for each message in turn, or an InlineCallback
    :ivar on_drop: called with the reply subject of each dropped message
    :ivar route: the direct path's route for the messages
    :ivar lane: the subscription's lane in the plain path's `ArrivalOrder`
    :ivar left: the reply subjects of the messages that were queued when a drain ended too early
    :ivar carried: nats-py's subscription in the current client
    """

    subject: str
    take: Callback | InlineCallback
    queue: str = ""
    on_drop: Callable[[str], Awaitable[None]] | None = None
    route: Route | None = None
    lane: Lane | None = None
    left: list[str] = field(default_factory=list)
    carried: Any = None

    @property
    def queued(self) -> int:
        """Return the number of messages that wait to be handled."""
        return 0 if self.carried is None else int(self.carried.pending_msgs)

    def is_carried_by(self, client: Any) -> bool:
        """Return True if `carried` belongs to this client. Each client uses the same ids, from 1 on."""
        return self.carried is not None and self.carried._conn is client

    def take_queued(self) -> list[str]:
        """Remove the messages that wait to be handled. Return their reply subjects."""
        queue, replies = self.carried._pending_queue, []
        while not queue.empty():
            replies.append(queue.get_nowait().reply)
            queue.task_done()
        return replies
