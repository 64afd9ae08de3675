"""What the direct path answers: which handler a subscription of nats-py's client belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keyvalue_transport.nats.direct.callers import CallerCache
from keyvalue_transport.nats.direct.frames import NO_SHAPE, Cut, Shape, shape_of
from keyvalue_transport.wrpc.handler import Caller, Handler, narrow
from keyvalue_transport.wrpc.invocation import Invocations, Step

__all__ = ["PARAMS", "DirectRoutes"]

#: The route of the subscription to further pieces of parameters.
PARAMS = "params"
#: Shapes that are kept; when there are more, all are forgotten.
SHAPES_MAX = 256
#: Of parameters, what a handler is narrowed by stands within so many bytes: a shape keeps it.
NARROWED_BYTES_MAX = 2048


class DirectRoutes:
    """What the direct path answers: handlers by subscription id, over one core. Outlives connections.

    :ivar shape: of the last invocation that was taken apart and like the one before it
    :ivar on_step: told of each step but those of invocations that were answered whole; their messages are sent by then, or about to be
    :ivar on_batch: told how many seconds the frames of a read took, from the read to the write of their answers
    """

    def __init__(self) -> None:
        self.on_batch: Callable[[float], None] | None = None
        self.handlers: dict[bytes, Handler] = {}
        self.params: set[bytes] = set()
        self.shape = NO_SHAPE
        self._shapes: dict[tuple[bytes, bytes, Caller], Shape] = {}
        self.callers = CallerCache()
        self.invocations: Invocations | None = None
        self.on_step: Callable[[Step], None] = lambda step: None
        self.violations = 0  # connections aborted for a frame that claims too much

    def add(self, subscription_id: int, route: Handler | str) -> None:
        """Answer a subscription from now on."""
        self.forget_shapes()
        key = b"%d" % subscription_id
        if route == PARAMS:
            self.params.add(key)
        else:
            assert callable(route)
            self.handlers[key] = route

    def learn_shape(self, words: Sequence[bytes], block: bytes, buffer: bytes, cut: Cut) -> None:
        """Take the shape of an invocation that was like the one before it, and does not have the shape that there is.

        A shape is for parameters that begin alike, until it is found here that others of the same size come, which begin otherwise.
        """
        handler, _, caller, start, end = cut
        kind = (words[2], words[-1], caller)
        known = self._shapes.get(kind)
        if known is None or known is self.shape:
            narrowed = None
            if known is None:
                narrowed = narrow(handler, buffer[start : min(end, start + NARROWED_BYTES_MAX)])
            known = shape_of(words, block, end - start, handler, caller, narrowed)
            if known is None:
                return
            if len(self._shapes) >= SHAPES_MAX:
                self._shapes.clear()
            self._shapes[kind] = known
        self.shape = known

    def forget_shapes(self) -> None:
        """Take the next frames apart as if they were the first."""
        self.shape = NO_SHAPE
        self._shapes.clear()

    def remove(self, subscription_id: int) -> None:
        """Leave a subscription to nats-py."""
        key = b"%d" % subscription_id
        self.handlers.pop(key, None)
        self.params.discard(key)
        self.forget_shapes()

    def clear(self) -> None:
        """Forget all subscriptions: another client, whose numbers begin anew, takes the place of the one that had them."""
        self.handlers.clear()
        self.params.clear()
        self.forget_shapes()
