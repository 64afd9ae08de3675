"""Subscriptions of a connection, and what they call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from keyvalue_transport.wrpc.handler import Handler

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
    """Calls a plain function with each message as it comes, in the order in which they come, over all subscriptions that have one.

    nats-py handles the messages of each subscription in a task of its own, so that the order between two is lost. To a subscription with a future
    it tells each message at once: this stands in the future's place.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._handle = handle

    def cancelled(self) -> bool:
        """Never: nats-py asks before each message."""
        return False

    def set_result(self, message: Message) -> None:
        """A message has come. What the function raises ends here: behind this is nats-py's reading."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message to %s was not handled", message.subject[:128])


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription that outlives the clients that carry it.

    :ivar take: a coroutine function that is called for one message after the other, or InlineCallback
    """

    subject: str
    take: Callback | InlineCallback
    queue: str = ""
    on_drop: Callable[[str], Awaitable[None]] | None = None
    route: Handler | str | None = None
    carried: Any = None  # nats-py's subscription, of the client that is alive
