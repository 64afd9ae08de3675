"""The first piece of an invocation, handled as on both paths."""

from __future__ import annotations

from collections.abc import Sized
from typing import TypeVar

from keyvalue_transport.wrpc.handler import Caller, Handler, HandlerResult
from keyvalue_transport.wrpc.invocation import Invocations, Step

A = TypeVar("A", bound=Sized)
M = TypeVar("M")

__all__ = ["invoke"]


def invoke(
    invocations: Invocations[A, M],
    handler: Handler,
    reply: A,
    caller: Caller,
    piece: bytes,
    now_s: float,
    traceparent: str | None = None,
) -> Step[A, M]:
    """Call the handler, and pass what it returned or raised to the core."""
    outcome: HandlerResult | Exception
    try:
        outcome = handler(caller, piece, 0, len(piece))
    except Exception as error:  # errors of all kinds, including NeedMoreBytes
        outcome = error
    return invocations.receive(handler, reply, caller, piece, outcome, now_s, traceparent)
