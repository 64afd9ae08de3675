"""The handlers of get and set, which are inlined for speed, against the decoders that they must agree with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.interface import NEVER, ParameterLimits, encode_unit_result, function_handler
from keyvalue_transport.keyvalue.outcomes import Tally
from keyvalue_transport.keyvalue.store import (
    STORE,
    StoreInterface,
    decode_get,
    decode_set,
    encode_get_result,
    store_handlers,
)
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import Handler
from tests.transport.keyvalue.functions import (
    CALLER,
    FUNCTIONS,
    KINDS,
    TALLIES,
    Kind,
    Noted,
    Parameters,
    answered,
    interface_errors,
    mutated,
)

#: Lengths next to those at which the result changes: a length of one byte, and the limits below.
lengths = st.sampled_from([0, 1, 2, 7, 8, 9, 126, 127, 128, 129, 200])
texts = st.builds(lambda size, unit: (unit * size)[:size], lengths, st.sampled_from([b"k", "é".encode(), b"\xff"]))
#: Answers of the service. For get, values whose length takes one byte and two bytes.
failures = interface_errors | st.builds(RuntimeError, st.just("the disk is on fire"))
ANSWERS: dict[str, st.SearchStrategy[object]] = {"get": st.none() | texts | failures, "set": st.none() | failures}


def decoded_handler(name: str, store: StoreInterface, limits: ParameterLimits, tally: Tally) -> Handler:
    """Return the handler that get or set would have if it were not inlined."""
    if name == "get":
        return function_handler(decode_get, store.get, encode_get_result, None, limits, tally)
    return function_handler(decode_set, store.set, encode_unit_result, NEVER, limits, tally)


def outcomes(
    name: str, kind: Kind, answer: object, limits: ParameterLimits, buffer: bytes, start: int, end: int
) -> list[tuple[object, list[Parameters], dict[str, Tally]]]:
    """Return the outcomes of both handlers: result or error, calls and counts.

    The limits change after the handlers are made.
    """
    seen = []
    for is_written_out in (True, False):
        service, tallies, in_force = Noted(answer), TALLIES[STORE](), ParameterLimits()
        if is_written_out:
            handler = store_handlers(kind(service), in_force, tallies)[name]
        else:
            handler = decoded_handler(name, kind(service), in_force, tallies[name])
        in_force.bucket_bytes_max, in_force.key_bytes_max = limits.bucket_bytes_max, limits.key_bytes_max
        in_force.value_bytes_max = limits.value_bytes_max
        seen.append((outcome_at(handler, buffer, start, end), service.calls, tallies))
    return seen


def outcome_at(handler: Handler, buffer: bytes, start: int, end: int) -> object:
    """Return the outcome of a handler, in a form that can be compared."""
    try:
        return answered(handler(CALLER, buffer, start, end))
    except NeedMoreBytes as error:
        return error.end_min
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize("name", ["get", "set"])
@settings(max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    limits=st.builds(ParameterLimits, lengths, lengths, lengths),
    before=st.binary(max_size=3),
    trailing=st.binary(max_size=3),
    choice=st.data(),
)
def test_the_inlined_handlers_agree_with_their_decoders(
    name: str, kind: Kind, limits: ParameterLimits, before: bytes, trailing: bytes, choice: st.DataObject
) -> None:
    """Try any bytes and any limits, with the parameters anywhere in a buffer."""
    encoded = st.builds(FUNCTIONS[name].encode, *[texts] * (2 if name == "get" else 3))
    params = choice.draw(encoded | mutated(encoded) | st.binary(max_size=12))
    start, end = len(before), len(before + params)
    written, decoded = outcomes(name, kind, choice.draw(ANSWERS[name]), limits, before + params + trailing, start, end)
    assert written == decoded


@pytest.mark.parametrize("name", ["get", "set"])
@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        *((b"k" * size, b"k" * 106) for size in (128, 200, 255)),
        *((b"k", b"k" * size) for size in (128, 200, 255)),
        (b"b", b"\x04kkkk"),
        (b"b\x06", b"kkkkk"),
    ],
)
def test_the_bytes_of_a_text_are_never_read_as_a_length(name: str, bucket: bytes, key: bytes) -> None:
    """Cut the parameters anywhere.

    The second byte of a length, "k" (107), 4 and 6 would be lengths that reach exactly to the end.
    """
    parameters = (bucket, key, b"k" * 20)[: len(FUNCTIONS[name].call)]
    params = FUNCTIONS[name].encode(*parameters)
    for cut in range(len(params) + 1):
        written, decoded = outcomes(name, KINDS[0], None, ParameterLimits(), params, 0, cut)
        assert written == decoded
    assert written[1] == [(name, CALLER, *parameters)]
