"""Half-open invocations: memory, turns of callers, and what is reserved for lists. test_invocation.py has the model."""

from __future__ import annotations

import tracemalloc
from itertools import count

import pytest

from keyvalue_transport.keyvalue.batch import decode_set_many, encode_set_many
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.half_open import HalfOpen, HalfOpenInvocations, InvocationLimits
from keyvalue_transport.wrpc.handler import Caller

MIB = 1024 * 1024
NUMBERS = count()


def opened(caller: Caller, needed: NeedMoreBytes, piece: bytes = b"", reply: str = "R") -> HalfOpen[str]:
    half_open = HalfOpen(f"{next(NUMBERS)}", lambda *_: b"", reply, caller, None, piece, 60.0)
    half_open.need(needed)
    return half_open


def needs(source_id: str, expected: int) -> HalfOpen[str]:
    return opened(Caller(source_id, None), NeedMoreBytes(expected))


@pytest.mark.parametrize("character", ["a", "\u0436", "\U0001f600"])
@pytest.mark.parametrize("piece_bytes", [0, 100, 5000])
def test_the_counted_memory_is_at_least_the_memory(character: str, piece_bytes: int) -> None:
    """Each invocation is of another caller, and all of them are inside a list, which takes the most."""
    half_opens: HalfOpenInvocations[str] = HalfOpenInvocations(InvocationLimits(half_open_max=10_000))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1000):
        piece = encode_set_many(b"b", [(b"k", bytes(piece_bytes))])[:-1] or b"\x01b"
        with pytest.raises(NeedMoreBytes) as raised:
            decode_set_many(piece, 0, len(piece), ParameterLimits())
        caller = Caller(character * 400 + f"{number}", character * 400 + f"{number}")
        assert half_opens.add(opened(caller, raised.value, piece, f"_INBOX.{number:022}"), 0.0)
        del raised
        half_opens.admit(0.0)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(half_opens) == 1000
    assert taken <= half_opens.held_bytes


def test_callers_take_turns_and_keep_to_their_share() -> None:
    half_opens: HalfOpenInvocations[str] = HalfOpenInvocations(InvocationLimits(expected_bytes_max=400))
    blocking = needs("blocking", 300)
    assert half_opens.add(blocking, 0.0)
    assert half_opens.admit(0.0) == [blocking]
    many = [needs("many", 60) for _ in range(6)]
    few = [needs("few", 101), needs("few", 1)]
    for half_open in (*many, *few):
        assert half_opens.add(half_open, 0.0)
    assert half_opens.admit(0.0) == [many[0]], "the turn of few: it does not fit, so no other overtakes it"
    assert half_opens.take(blocking.token) is blocking
    assert half_opens.admit(0.0) == [few[0]], "many may not expect more, and few has nothing else"
    assert half_opens.take(few[0].token) is few[0]
    assert half_opens.admit(0.0) == [few[1]]
    assert half_opens.take(many[0].token) is many[0]
    assert half_opens.admit(0.0) == [many[1]]
    assert half_opens.expected_bytes == 61


def test_a_later_piece_cannot_take_the_share_of_others() -> None:
    """A key may end in a later piece, which then tells how long the value is. So 200 sets expected 3.3 GB."""
    half_opens: HalfOpenInvocations[str] = HalfOpenInvocations(InvocationLimits(expected_bytes_max=400))
    greedy = [needs("greedy", 1) for _ in range(8)]
    for half_open in greedy:
        assert half_opens.add(half_open, 0.0)
    assert half_opens.admit(0.0) == greedy
    kept = []
    for half_open in greedy:
        assert half_opens.take(half_open.token) is half_open
        half_open.need(NeedMoreBytes(40))
        kept.append(half_opens.keep(half_open, 0.0))
    assert kept == [True] * 2 + [False] * 6
    assert (len(half_opens), half_opens.expected_bytes) == (2, 80)
    alone, modest = needs("alone", 1), needs("modest", 100)
    for half_open in (alone, modest):
        assert half_opens.add(half_open, 0.0)
    assert half_opens.admit(0.0) == [alone, modest]
    assert half_opens.take(alone.token) is alone
    alone.need(NeedMoreBytes(300))
    assert half_opens.keep(alone, 0.0), "its caller has nothing else, and the handshake cannot be taken back"


def test_a_share_is_reserved_for_a_list_until_it_is_complete() -> None:
    """Otherwise lists that come from many callers at once would be more than NATS keeps."""
    half_opens: HalfOpenInvocations[str] = HalfOpenInvocations(InvocationLimits())
    for number in range(12):
        piece = encode_set_many(b"b", [(b"%d" % key, bytes(65_000)) for key in range(99)])[:MIB]
        with pytest.raises(NeedMoreBytes) as raised:
            decode_set_many(piece, 0, len(piece), ParameterLimits())
        assert half_opens.add(opened(Caller(f"{number}", None), raised.value, piece), 0.0)
    assert len(half_opens.admit(0.0)) == 4
    assert half_opens.expected_bytes == InvocationLimits().expected_bytes_max


def test_even_the_largest_invocation_has_its_turn() -> None:
    half_opens: HalfOpenInvocations[str] = HalfOpenInvocations(InvocationLimits(expected_bytes_max=400))
    largest, small = needs("a", 10_000), needs("b", 100)
    for half_open in (largest, small):
        assert half_opens.add(half_open, 0.0)
    assert half_opens.admit(0.0) == [largest, small]
