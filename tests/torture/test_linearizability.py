"""The checker accepts what an order explains, and refuses everything else. A brute-force search agrees."""

from __future__ import annotations

from itertools import permutations
from math import inf
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.torture.linearizability import SETS, UNKNOWN, Call, after, is_linearizable


def by_brute_force(calls: list[Call]) -> bool:
    """Try each order of each subset that leaves out only calls without an answer."""
    answered = {number for number, call in enumerate(calls) if call.ended_s < inf}
    unanswered = [number for number in range(len(calls)) if number not in answered]
    for chosen in range(2 ** len(unanswered)):
        numbers = answered | {number for place, number in enumerate(unanswered) if chosen >> place & 1}
        for order in permutations(numbers):
            if any(
                calls[later].ended_s < calls[first].began_s for at, first in enumerate(order) for later in order[at:]
            ):
                continue
            value: bytes | None = None
            for number in order:
                fits, value = after(calls[number], value)
                if not fits:
                    break
            else:
                return True
    return False


FUNCTIONS = (
    *("get", "get", "exists", "set", "delete", "increment"),
    *("get", "take", "replace", "remove", "set-missing"),
)


def played(seed: int, calls: int, clients: int, keeps: float) -> list[Call]:
    """Return a history that a correct store has produced: each call takes effect at some moment while it runs."""
    chance = Random(seed)
    value: bytes | None = None
    moments = sorted(chance.uniform(0, calls) for _ in range(calls))
    free_s = [0.0] * clients
    history = []
    for number, moment_s in enumerate(moments):
        client = chance.randrange(clients)
        began_s = max(free_s[client], moment_s - chance.expovariate(1))
        if began_s > moment_s:
            continue
        ended_s = free_s[client] = moment_s + chance.expovariate(1)
        function = chance.choice(FUNCTIONS)
        if function == "increment" and value is not None and int(value) % 1000 > 900:
            continue
        argument = b"%d" % (1000 * number) if function in SETS else {"increment": chance.choice((1, 2))}.get(function)
        _, following = after(Call(function, 0, argument=argument, result=UNKNOWN), value)
        results: dict[str, bytes | bool | int | None]
        results = {"get": value, "exists": value is not None, "increment": int(following or b"0")}
        results |= {"take": value, "replace": value, "remove": value is not None, "set-missing": value is None}
        is_lost = chance.random() > keeps
        if not is_lost or chance.random() < 0.5:
            value = following
        result = UNKNOWN if is_lost else results.get(function)
        history.append(Call(function, began_s, inf if is_lost else ended_s, argument, result))
    return history


@pytest.mark.parametrize("seed", range(8))
def test_what_a_correct_store_has_answered_is_accepted(seed: int) -> None:
    assert is_linearizable(played(seed, 2_000, 16, keeps=0.995))


@pytest.mark.parametrize("seed", range(8))
def test_a_stale_read_in_a_long_history_is_found(seed: int) -> None:
    history = played(seed, 400, 4, keeps=1)
    sets = [call for call in history if call.function in ("set", "replace")]
    first = sets[len(sets) // 2]
    later = [call for call in history if call.began_s > first.ended_s and call in sets]
    history.append(Call("get", later[1].ended_s + 0.001, later[1].ended_s + 0.002, None, first.argument))
    assert not is_linearizable(history)


values = st.sampled_from([b"1", b"2", None])
times = st.tuples(st.integers(0, 6), st.integers(1, 4))
calls = st.one_of(
    st.tuples(st.just("set"), st.sampled_from([b"1", b"2"]), st.just(None)),
    st.tuples(st.sampled_from(["get"]), st.just(None), values),
    st.tuples(st.just("exists"), st.just(None), st.booleans()),
    st.tuples(st.just("delete"), st.just(None), st.just(None)),
    st.tuples(st.just("increment"), st.just(1), st.sampled_from([1, 2, 3])),
    st.tuples(st.just("replace"), st.sampled_from([b"1", b"2"]), values),
    st.tuples(st.just("set-missing"), st.sampled_from([b"1", b"2"]), st.booleans()),
    st.tuples(st.just("take"), st.just(None), values),
    st.tuples(st.just("remove"), st.just(None), st.booleans()),
)


@example([((0, 1), ("set", b"1", None), False), ((0, 1), ("exists", None, True), True)])
@given(st.lists(st.tuples(times, calls, st.booleans()), max_size=5))
def test_it_agrees_with_trying_every_order(
    drawn: list[tuple[tuple[int, int], tuple[str, bytes | int, int], bool]],
) -> None:
    history = [
        Call(function, began, began + length if is_answered else inf, argument, result if is_answered else UNKNOWN)
        for (began, length), (function, argument, result), is_answered in drawn
    ]
    assert is_linearizable(history) == by_brute_force(history)
