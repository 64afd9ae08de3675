"""An invocation's first piece, as both paths take it."""

from __future__ import annotations

from typing import TypeVar

from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import Invocations, Step

A = TypeVar("A")
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
    """Have the handler called, and the core told what it returned or raised."""
    outcome: bytes | Pending | Exception
    try:
        outcome = handler(caller, piece, 0, len(piece))
    except Exception as error:  # of all kinds, NeedMoreBytes too
        outcome = error
    return invocations.receive(handler, reply, caller, piece, outcome, now_s, traceparent)
