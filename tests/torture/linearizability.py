"""A checker for histories of one key: is there an order of the calls that explains all answers?

A call takes effect at some moment between its beginning and its answer. A call without an answer takes effect at some
moment after its beginning, or never. The checker goes through the beginnings and answers in the order of time. It keeps
all *configurations* that are possible so far: the key's value, and the unanswered calls that have taken effect. When a
call is answered, only configurations remain in which it has taken effect with this answer. (This is Lowe's variant of
the algorithm by Wing and Gong.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

__all__ = ["UNKNOWN", "Call", "first_unexplained", "is_linearizable"]

#: The result of a call without an answer.
UNKNOWN = "unknown"
Value: TypeAlias = bytes | None
Configuration: TypeAlias = tuple[Value, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call, and its answer.

    :ivar function: get, exists, set, delete or increment
    :ivar argument: the value of set, or the number of increment
    :ivar result: the value of get, the truth of exists, the sum of increment, None, or UNKNOWN
    :ivar ended_s: when the answer arrived; infinite without an answer
    """

    function: str
    began_s: float
    ended_s: float = inf
    argument: bytes | int | None = None
    result: bytes | bool | int | str | None = None


def after(call: Call, value: Value) -> tuple[bool, Value]:
    """Return True if the call's answer fits to this value, and the value afterwards."""
    is_open = call.result == UNKNOWN
    match call.function:
        case "get":
            return is_open or call.result == value, value
        case "exists":
            return is_open or call.result == (value is not None), value
        case "set":
            assert isinstance(call.argument, bytes)
            return True, call.argument
        case "delete":
            return True, None
    assert isinstance(call.argument, int)
    total = int(value or b"0") + call.argument
    return is_open or call.result == total, b"%d" % total


def is_linearizable(calls: Iterable[Call]) -> bool:
    """Return True if an order of the calls explains all answers. Every key begins without a value."""
    return first_unexplained(calls) is None


def first_unexplained(calls: Iterable[Call]) -> Call | None:
    """Return the first call, in the order of answers, whose answer cannot be explained, or None."""
    relevant = relevant_calls(list(calls))
    events = [(call.began_s, 0, number) for number, call in enumerate(relevant)]
    events += [(call.ended_s, 1, number) for number, call in enumerate(relevant) if call.ended_s < inf]
    configurations: set[Configuration] = {(None, frozenset())}
    running: set[int] = set()
    for _, is_end, number in sorted(events):
        if not is_end:
            running.add(number)
            continue
        configurations = {
            (value, done - {number}) for value, done in with_effect(relevant, configurations, running, number)
        }
        running.discard(number)
        if not configurations:
            return relevant[number]
    return None


def with_effect(
    calls: Sequence[Call], configurations: Iterable[Configuration], running: set[int], number: int
) -> set[Configuration]:
    """Return the configurations that can follow, in which a call has just taken effect, or had done so before."""
    found: set[Configuration] = set()
    seen = set(configurations)
    left = list(seen)
    while left:
        value, done = left.pop()
        if number in done:
            found.add((value, done))
            continue
        for other in running - done:
            fits, next_value = after(calls[other], value)
            if not fits:
                continue
            following = next_value, done | {other}
            if other == number:
                found.add(following)
            elif following not in seen:
                seen.add(following)
                left.append(following)
    return found


def relevant_calls(calls: list[Call]) -> list[Call]:
    """Leave out calls that explain nothing: reads without an answer, and sets without one whose value was never seen.

    A value is seen by get, and any value by exists and increment.
    """
    seen = {call.result for call in calls if call.function == "get" and call.result != UNKNOWN}
    sees_any = any(call.function == "increment" or call.result is True for call in calls)
    return [
        call
        for call in calls
        if call.result != UNKNOWN
        or (call.function in ("delete", "increment"))
        or (call.function == "set" and (sees_any or call.argument in seen))
    ]
