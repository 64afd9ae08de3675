"""A checker for histories of one key: is there an order of the calls that explains all answers?

A call takes effect at some moment between its beginning and its answer. A call without an answer takes effect at some
moment after its beginning, or never. The checker goes through the beginnings and answers in the order of time. It keeps
all *configurations* that are possible so far: the key's value, and the calls that have taken effect before they are
answered. When a call is answered, only configurations remain in which it has taken effect with this answer. (This is
Lowe's variant of the algorithm by Wing and Gong.)

Three rules keep the number of configurations small:

- A read takes effect as soon as the value fits to its answer, because it changes nothing.
- Of unanswered calls that do the same, the one that began first takes effect first.
- A configuration is dropped if another has the same value, and fewer unanswered calls have taken effect in it. An
  order that explains later answers in the first does so in the other, too.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import TypeAlias

__all__ = ["UNKNOWN", "Call", "UndecidedError", "first_unexplained", "is_linearizable"]

#: The result of a call without an answer.
UNKNOWN = "unknown"
#: The checker gives up after this many steps for a key, which take a few minutes. Each unanswered call multiplies them.
STEPS_MAX = 5_000_000
#: Stands for all values that no get has returned.
UNSEEN = b"never seen"
READS = ("get", "exists")
#: The functions that set their argument, and those that return the value.
SETS, SHOWS = ("set", "set-missing", "replace"), ("get", "take", "replace")
Value: TypeAlias = bytes | None
Configuration: TypeAlias = tuple[Value, frozenset[int]]


class UndecidedError(Exception):
    """The checker has given up."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call, and its answer.

    :ivar function: get, exists, set, delete or increment; or of Redis alone: set-missing (SETNX), remove (DEL), take
        (GETDEL), replace (GETSET)
    :ivar argument: the value that is set, or the number of increment
    :ivar result: the value of get, or that before take and replace; True or False of exists, remove (the key existed)
        and set-missing (the key was missing); the sum of increment; None; or UNKNOWN
    :ivar ended_s: when the answer arrived; infinite without an answer
    :ivar place: the instance that was called
    """

    function: str
    began_s: float
    ended_s: float = inf
    argument: bytes | int | None = None
    result: bytes | bool | int | str | None = None
    place: int = 0


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
        case "remove":
            return is_open or call.result == (value is not None), None
        case "take":
            return is_open or call.result == value, None
        case "replace":
            assert isinstance(call.argument, bytes)
            return is_open or call.result == value, call.argument
        case "set-missing":
            assert isinstance(call.argument, bytes)
            return is_open or call.result == (value is None), call.argument if value is None else value
    assert isinstance(call.argument, int)
    total = int(value or b"0") + call.argument
    return is_open or call.result == total, b"%d" % total


def is_linearizable(calls: Iterable[Call]) -> bool:
    """Return True if an order of the calls explains all answers. Every key begins without a value."""
    return first_unexplained(calls) is None


def first_unexplained(calls: Iterable[Call]) -> Call | None:
    """Return the first call, in the order of answers, whose answer cannot be explained, or None.

    :raises UndecidedError: there are too many orders
    """
    relevant = relevant_calls(list(calls))
    events = [(call.began_s, 0, number) for number, call in enumerate(relevant)]
    events += [(call.ended_s, 1, number) for number, call in enumerate(relevant) if call.ended_s < inf]
    search = Search(relevant)
    for _, is_end, number in sorted(events):
        if not is_end:
            search.begin(number)
        elif not search.end(number):
            return relevant[number]
    return None


def relevant_calls(calls: list[Call]) -> list[Call]:
    """Leave out reads without an answer, which explain nothing. Sets of values that were never seen become alike."""
    seen = {call.result for call in calls if call.function in SHOWS}
    if any(call.function == "increment" for call in calls):  # it shows the value, too
        seen |= {call.argument for call in calls}
    return [
        replace(call, argument=UNSEEN) if call.function in SETS and call.argument not in seen else call
        for call in calls
        if call.result != UNKNOWN or call.function not in READS
    ]


class Search:
    """The configurations that are possible at a moment."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._steps = 0
        self._configurations: set[Configuration] = {(None, frozenset())}
        self._reads: set[int] = set()  # those that are not answered yet
        self._writes: set[int] = set()
        self._unanswered: dict[tuple[str, object], list[int]] = defaultdict(list)  # those without an answer, by effect

    def begin(self, number: int) -> None:
        """Take the beginning of a call."""
        call = self._calls[number]
        if call.ended_s == inf:
            self._unanswered[call.function, call.argument].append(number)
        elif call.function in READS:
            self._reads.add(number)
            self._configurations = {self._read(*configuration) for configuration in self._configurations}
        else:
            self._writes.add(number)

    def end(self, number: int) -> bool:
        """Take the answer of a call. Return False if no configuration explains it."""
        following = Smallest(self._reads | self._writes)
        for value, done in self._with_effect(number):
            following.add((value, done - {number}))
        self._configurations = set(following)
        self._reads.discard(number)
        self._writes.discard(number)
        self._forget()
        return bool(self._configurations)

    def _read(self, value: Value, done: frozenset[int]) -> Configuration:
        """Let the reads take effect that fit to the value."""
        fitting = {number for number in self._reads if after(self._calls[number], value)[0]}
        return value, done | fitting

    def _with_effect(self, number: int) -> Iterator[Configuration]:
        """Yield the configurations that can follow, in which a call has just taken effect, or had done so before."""
        tried = Smallest(self._reads | self._writes)
        left = deque(configuration for configuration in self._configurations if tried.add(configuration))
        while left:
            value, done = left.popleft()
            if number in done:
                yield value, done
                continue
            for other in self._possible(done):
                fits, next_value = after(self._calls[other], value)
                self._steps += 1
                if self._steps > STEPS_MAX:
                    raise UndecidedError(f"no result after {STEPS_MAX} steps")
                following = self._read(next_value, done | {other})
                if fits and tried.add(following):
                    left.append(following)

    def _possible(self, done: frozenset[int]) -> Iterator[int]:
        """Yield the writes that may take effect next."""
        yield from self._writes - done
        for numbers in self._unanswered.values():
            first = next((number for number in numbers if number not in done), None)
            if first is not None:
                yield first

    def _forget(self) -> None:
        """Forget the unanswered calls that have taken effect in all configurations."""
        common = frozenset.intersection(*(done for _, done in self._configurations)) if self._configurations else ()
        forgotten = frozenset(common) - self._reads - self._writes
        if forgotten:
            self._configurations = {(value, done - forgotten) for value, done in self._configurations}
            for effect, numbers in list(self._unanswered.items()):
                self._unanswered[effect] = [number for number in numbers if number not in forgotten]
                if not self._unanswered[effect]:
                    del self._unanswered[effect]


class Smallest:
    """Configurations of which none differs from another only by more unanswered calls that have taken effect.

    :param running: the other calls that have not ended
    """

    def __init__(self, running: Iterable[int]) -> None:
        self._running = frozenset(running)
        self._alike: dict[Configuration, list[frozenset[int]]] = defaultdict(list)

    def __iter__(self) -> Iterator[Configuration]:
        return ((value, done) for (value, _), alike in self._alike.items() for done in alike)

    def add(self, configuration: Configuration) -> bool:
        """Add a configuration. Return False if it is superfluous."""
        value, done = configuration
        alike = self._alike[value, done & self._running]
        if any(other <= done for other in alike):
            return False
        alike[:] = [other for other in alike if not done <= other]
        alike.append(done)
        return True
