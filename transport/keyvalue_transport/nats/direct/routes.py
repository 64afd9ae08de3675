"""What the direct path answers: which handler a subscription of nats-py's client belongs to. Outlives connections."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeAlias

from keyvalue_transport.nats.direct.alike import Alike
from keyvalue_transport.nats.direct.answers import FrameReplies
from keyvalue_transport.nats.headers import CallerCache
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import Invocations, Step

__all__ = ["DirectRoutes", "DirectServer", "Further", "InOrder", "Route"]

log = logging.getLogger(__name__)


class Further(Enum):
    """The route of the subscription to further pieces of parameters."""

    PIECES = auto()


class InOrder(NamedTuple):
    """The route of a subscription whose payloads take effect before every invocation that comes after them."""

    handle: Callable[[bytes], None]


Route: TypeAlias = Handler | InOrder | Further


class FrameWriter(Protocol):
    """Writes frames to the connection that is alive (`DirectProtocol` does)."""

    def send(self, frames: list[bytes], /) -> bool: ...

    def flush(self) -> None: ...


class DirectServer(NamedTuple):
    """The server whose invocations the direct path answers.

    :ivar on_step: told of each step but those of invocations that were answered whole; its messages are sent by then, or about to be
    :ivar on_batch: told how many seconds the frames of a read took, from the read to the write of their answers
    """

    invocations: Invocations[bytes, bytes]
    replies: FrameReplies
    on_step: Callable[[Step[bytes, bytes]], None]
    on_batch: Callable[[float], None] | None = None


class DirectRoutes:
    """Routes by subscription id, over one server.

    :ivar protocol: of the connection that is alive, if one is
    :ivar violations: connections aborted for a frame that claims too much
    """

    def __init__(self) -> None:
        self.routes: dict[bytes, Route] = {}
        self.alike = Alike()
        self.callers = CallerCache()
        self.server: DirectServer | None = None
        self.protocol: FrameWriter | None = None
        self.violations = 0
        self._before_next_call: Callable[[], None] | None = None

    def serve(self, server: DirectServer) -> None:
        """Answer the invocations of this server.

        :raises ValueError: another server has them
        """
        if self.server is not None:
            raise ValueError("found a second server on one direct connection, allowed one: open a connection for each")
        self.server = server

    def add(self, subscription_id: int, route: Route) -> None:
        """Answer a subscription from now on."""
        self.alike.forget()
        self.routes[b"%d" % subscription_id] = route

    def remove(self, subscription_id: int) -> None:
        """Leave a subscription to nats-py."""
        self.alike.forget()
        self.routes.pop(b"%d" % subscription_id, None)

    def clear(self) -> None:
        """Forget all subscriptions: another client, whose numbers begin anew, takes the place of the one that had them."""
        self.alike.forget()
        self.routes.clear()

    def before_next_call(self, act: Callable[[], None]) -> None:
        """Have `act` called once, before the next invocation is handled."""
        self._before_next_call = act
        self.alike.pause()  # a frame that is taken apart asks for it

    def settle(self) -> None:
        """Do what must be done before the next invocation is handled."""
        act, self._before_next_call = self._before_next_call, None
        if act is not None:
            try:
                act()
            except Exception:  # the connection and its other calls go on
                log.exception("a change was not carried out")
