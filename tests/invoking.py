"""An invocation's first piece, as both paths take it."""

from __future__ import annotations

from keyvalue_transport.wrpc.handler import Answer, Caller, Handler
from keyvalue_transport.wrpc.invocation import Invocations, Step

__all__ = ["invoke"]


def invoke(
    invocations: Invocations,
    handler: Handler,
    reply: str,
    caller: Caller,
    piece: bytes,
    now_s: float,
    traceparent: str | None = None,
) -> Step:
    """Have the handler called, and the core told what it returned or raised."""
    outcome: Answer[bytes] | Exception
    try:
        outcome = handler(caller, piece, 0, len(piece))
    except Exception as error:  # of all kinds, NeedMoreBytes too
        outcome = error
    return invocations.receive(handler, reply, caller, piece, outcome, now_s, traceparent)
