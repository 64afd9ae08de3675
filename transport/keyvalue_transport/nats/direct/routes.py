"""The routes of the direct path, from nats-py's subscriptions to handlers. Routes are kept when nats-py reconnects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic
from typing import NamedTuple, Protocol, TypeAlias

from keyvalue_transport.nats.direct.alike import Alike, InvocationGroup
from keyvalue_transport.nats.direct.answers import FrameReplies, message_count
from keyvalue_transport.nats.direct.begun_calls import BegunCalls
from keyvalue_transport.nats.direct.frames import HMSG, MessageFrame
from keyvalue_transport.nats.direct.repeats import Repeats
from keyvalue_transport.nats.headers import CallerCache
from keyvalue_transport.nats.rate_limit import network_limit
from keyvalue_transport.nats.reply_subjects import ReplySubjects
from keyvalue_transport.nats.tracing import Tracer
from keyvalue_transport.wrpc.handler import ANONYMOUS, Handler
from keyvalue_transport.wrpc.invocation import Invocations, Step, Waiting

__all__ = ["DirectRoutes", "DirectServer", "Frames", "Further", "InOrder", "Quick", "Route"]

log = logging.getLogger(__name__)


class Further(Enum):
    """The route for the remaining pieces of cut parameters."""

    PIECES = auto()


class InOrder(NamedTuple):
    """The route for messages that take effect in order of arrival, before all later invocations."""

    handle: Callable[[bytes], None]


class Quick(Protocol):
    """A reader of frames that are very similar, which it can read faster than any frame.

    :ivar prefix: the beginning of all these frames
    """

    @property
    def prefix(self) -> bytes: ...

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes, /) -> int:
        """Handle the frames at `at`, as many as are complete, of this subscription, and of the expected form.

        Return the offset after the last one, or `at` if there is none. This method must not raise.
        """


class Frames(NamedTuple):
    """The route for messages that are neither calls nor parts of calls.

    :ivar handle: called with the subject, the reply subject, the header block and the payload of each message; the
        block is empty if the message has no headers
    :ivar quick: handle frames of certain forms instead
    """

    handle: Callable[[bytes, bytes, bytes, bytes], None]
    quick: tuple[Quick, ...] = ()


Route: TypeAlias = Handler | InOrder | Further | Frames


class FrameWriter(Protocol):
    """A writer of frames to the current connection, for example `DirectProtocol`."""

    def send(self, frames: list[bytes], is_large: bool = False, /) -> bool: ...

    def write_now(self, frames: bytes, /) -> bool: ...

    def call_soon(self, act: Callable[[], None], /) -> None: ...

    def flush(self) -> None: ...

    def has_room(self) -> bool: ...


class DirectServer(NamedTuple):
    """The server whose invocations the direct path answers.

    :ivar on_step: called with each step that the core returns, after the step's messages are added to the output
    :ivar on_waiting: called with each call that has its handshake and waits for its answer
    :ivar on_batch: called with the seconds between reading a batch of invocations and writing its answers
    :ivar on_lost: called with the number of messages that were not sent because the connection is lost
    :ivar tracer: finds the calls to trace; None to trace no calls
    """

    invocations: Invocations[bytes, bytes]
    replies: FrameReplies
    on_step: Callable[[Step[bytes, bytes]], None]
    on_waiting: Callable[[Waiting[bytes]], None]
    on_batch: Callable[[float], None] | None = None
    on_lost: Callable[[int], None] | None = None
    tracer: Tracer | None = None


class DirectRoutes:
    """The routes to the handlers of one server, by subscription id.

    :param replies: the rule for reply subjects; it must be complete before the first call
    :ivar protocol: the protocol of the current connection, or None
    :ivar max_payload: the limit for a message in bytes, from the server's last INFO; None before the first
    :ivar tracer: finds the calls to trace; None to trace no calls
    :ivar is_parsing: True while a read is parsed
    :ivar ending: functions to call once, at the end of this read
    :ivar violations: number of connections that were aborted after a protocol error or an oversized frame
    """

    def __init__(self, replies: ReplySubjects | None = None) -> None:
        self.replies = ReplySubjects() if replies is None else replies
        self.routes: dict[bytes, Route] = {}
        self.quick: tuple[tuple[bytes, Callable[[bytes, int, int, bytes], int], bytes], ...] = ()
        self.alike = Alike(self.replies)
        self.callers = CallerCache()
        self.server: DirectServer | None = None
        self.repeats: Repeats | None = None
        self.begun: BegunCalls | None = None
        self.tracer: Tracer | None = None
        self.protocol: FrameWriter | None = None
        self.max_payload: int | None = None
        self.violations = 0
        self._before_next_call: Callable[[], None] | None = None
        self._failures = network_limit()
        self.ending: list[Callable[[], None]] = []
        self.is_parsing = False

    def serve(self, server: DirectServer) -> None:
        """Set the server whose invocations are answered.

        :raises ValueError: another server is already set
        """
        if self.server is not None:
            raise ValueError("found a second server on one direct connection, allowed one: open a connection for each")
        self.server = server
        self.tracer = server.tracer
        self.alike.is_traced = server.tracer is not None
        core = server.invocations, server.replies, server.on_step, self._send
        self.repeats = Repeats(*core)
        self.begun = BegunCalls(*core, self.call_soon)

    def _send(self, frames: list[bytes], is_large: bool) -> None:
        """Send frames outside of reads, or at the end of the read that is being parsed."""
        protocol, server = self.protocol, self.server
        if frames and (protocol is None or not protocol.send(frames, is_large)):
            assert server is not None
            if server.on_lost is not None:
                server.on_lost(message_count(frames))

    def has_room(self) -> bool:
        """Return True if the connection can take a large result now."""
        return self.protocol is not None and self.protocol.has_room()

    def add(self, subscription_id: int, route: Route) -> None:
        """Route a subscription's messages."""
        self.alike.forget()
        self.routes[b"%d" % subscription_id] = route
        self._note_quick()

    def remove(self, subscription_id: int) -> None:
        """Stop routing a subscription. nats-py then handles the subscription's messages."""
        self.alike.forget()
        self.routes.pop(b"%d" % subscription_id, None)
        self._note_quick()

    def drop_caches(self) -> None:
        """Drop the shapes and the callers, which are learned again, so that their memory can be freed."""
        self.alike.forget()
        self.callers.callers.clear()

    def clear(self) -> None:
        """Remove all routes, because a new client uses the same subscription ids again."""
        self.alike.forget()
        self.routes.clear()
        self._note_quick()

    def _note_quick(self) -> None:
        """List the quick readers. The one with the longest prefix gets a frame, if several could."""
        routes = [(key, route.quick) for key, route in self.routes.items() if isinstance(route, Frames)]
        readers = [(quick.prefix, quick.take, key) for key, all_quick in routes for quick in all_quick]
        self.quick = tuple(sorted(readers, key=lambda reader: len(reader[0]), reverse=True))

    def take_quick(self, buffer: bytes, at: int, end: int) -> int:
        """Handle the frames at `at` that have a quick reader. Return the offset after them, or `at`."""
        for prefix, take, subscription in self.quick:
            if buffer.startswith(prefix, at):
                return take(buffer, at, end, subscription)
        return at

    def before_next_call(self, act: Callable[[], None]) -> None:
        """Call `act` once, before the next invocation is handled."""
        self._before_next_call = act
        self.alike.pause()  # `settle` is called only for a parsed frame

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call `act` once: at the end of the read that is being parsed, or in the next turn of the event loop."""
        if self.is_parsing:
            self.ending.append(act)
        elif self.protocol is None:
            asyncio.get_running_loop().call_soon(act)
        else:
            self.protocol.call_soon(act)

    def end_read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call the functions in `ending`, because a read has been parsed."""
        ending, self.ending = self.ending, []
        for act in ending:
            try:
                act()
            except Exception:  # it must not end the connection
                log.exception("the end of a read was not handled")
        if self.ending:  # what these have added must not wait for the next read
            ending, self.ending = self.ending, []
            for act in ending:
                loop.call_soon(act)

    def group_of(self, buffer: bytes, at: int, frame: MessageFrame, handler: Handler) -> InvocationGroup:
        """Return the group of one call, whose frame at `at` was parsed. Learn from it."""
        block, caller, callers, tracer = b"", ANONYMOUS, self.callers, self.tracer
        calls = iter(((frame.reply, at, frame.payload_at, frame.payload_end),))
        if buffer[at] == HMSG:
            block = buffer[frame.headers_at : frame.payload_at]
            caller = callers.callers.get(block) or callers.find(block)
            if tracer is not None and (traced := tracer.of_block(handler, block, caller)) is not None:
                return traced, caller, b"", calls
        self.alike.learn(frame, block, handler, caller)
        return handler, caller, b"", calls

    def hand_over(self, route: Frames | InOrder, frame: MessageFrame, block: bytes, payload: bytes) -> None:
        """Pass a message to the handler of its route."""
        try:
            if isinstance(route, InOrder):
                route.handle(payload)
            else:
                route.handle(frame.words[1], frame.reply, block, payload)
        except Exception:  # a faulty handler must not end the connection
            if (more := self._failures.admit(monotonic())) is not None:
                log.exception("a message to %s was not handled%s", frame.words[1][:128].decode(errors="replace"), more)

    def settle(self) -> None:
        """Call the function that `before_next_call` registered, if any."""
        act, self._before_next_call = self._before_next_call, None
        if act is not None:
            try:
                act()
            except Exception:  # an exception in a change must not end the connection
                log.exception("a change was not carried out")
