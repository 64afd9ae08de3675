"""The calls of a load: the bytes that a client sends for each call, and the expected answers. This module does no I/O.

Keys are numbers of 12 digits. A value begins with its key, so that an answer with another key's value is detected. A
value contains no '.' and no white space, so no part of it looks like a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import gcd
from secrets import randbits
from typing import NamedTuple

from bench.load.case import KEY_BYTES, Headers, Load
from keyvalue_transport.keyvalue import atomics, batch, store
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.nats.subjects import invocation_subject

__all__ = [
    *("COUNT_FROM", "FUNCTIONS", "LINK_NAME", "SOURCE_ID", "Frame", "Script", "WireFunction"),
    *("key_of", "result_sizes", "spread_indices", "value_of"),
]

LINK_NAME = "default"
SOURCE_ID = "bench-component"
#: In a mixed load, one call in this many is a set, so 95 % of the calls are gets.
MIXED_SET_ONE_IN = 20
#: Maximum number of frames that are built before the load. A load with more keys uses an evenly spread sample of keys.
FRAMES_MAX = 20_000
FRAMES_BYTES_MAX = 128 * 1024 * 1024
#: The text that fills values. Its length is a prime number, 61, so pieces in the wrong order do not match.
PATTERN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_+=/:;,!"
#: The value of counters before a measurement. It is so large that a counter's number of digits never changes in a run.
COUNT_FROM = 1_000_000
#: The cursor of the bare responder's pages.
CURSOR = 2**63
#: Maximum number of digits in a call's number.
NUMBER_BYTES = 20
#: The placeholder for the trace id and span id in a traceparent.
NO_SPAN = b"0" * 32 + b"-" + b"0" * 16


def key_of(index: int) -> bytes:
    """Return the key with this number.

    >>> key_of(17)
    b'000000000017'
    """
    return b"%0*d" % (KEY_BYTES, index)


def value_of(key: bytes, value_bytes: int) -> bytes:
    """Return the value of a key. It begins with the key."""
    return key + (PATTERN * (value_bytes // len(PATTERN) + 1))[len(key) : value_bytes]


class WireFunction(NamedTuple):
    """A function on the wire: the instance of its interface, and how to make the bytes of a call.

    :ivar params: returns the parameters of a load's call with these keys
    :ivar result: returns the result of a correct store, for the n-th call with these keys
    """

    instance: str
    params: Callable[[Load, Sequence[bytes]], bytes]
    result: Callable[[Load, Sequence[bytes], int], bytes]


def _pairs(load: Load, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return [(key, value_of(key, load.value_bytes)) for key in keys]


def _values(load: Load, keys: Sequence[bytes]) -> bytes:
    values = [value_of(key, load.value_bytes) for key in keys]
    return batch.encode_get_many_result(keys, values, bytes_max=sum(map(len, (*keys, *values))))


def _of_key(load: Load, keys: Sequence[bytes]) -> bytes:
    return encode_bucket_key(load.bucket_name, keys[0])


def _of_keys(load: Load, keys: Sequence[bytes]) -> bytes:
    return batch.encode_bucket_keys(load.bucket_name, keys)


def _ok(load: Load, keys: Sequence[bytes], turn: int) -> bytes:
    return encode_unit_result(None)


#: Each function by its name on the wire.
FUNCTIONS: Mapping[str, WireFunction] = {
    "get": WireFunction(
        store.STORE, _of_key, lambda load, keys, _: store.encode_get_result(value_of(keys[0], load.value_bytes))
    ),
    "set": WireFunction(
        store.STORE,
        lambda load, keys: store.encode_set(load.bucket_name, keys[0], value_of(keys[0], load.value_bytes)),
        _ok,
    ),
    "delete": WireFunction(store.STORE, _of_key, _ok),
    "exists": WireFunction(store.STORE, _of_key, lambda *_: store.encode_truth_result(True)),
    "list-keys": WireFunction(
        store.STORE,
        lambda load, _: store.encode_list_keys(load.bucket_name, None),
        lambda _, keys, __: store.encode_key_response(store.KeyResponse(list(keys), CURSOR)),
    ),
    "get-many": WireFunction(batch.BATCH, _of_keys, lambda load, keys, _: _values(load, keys)),
    "set-many": WireFunction(
        batch.BATCH, lambda load, keys: batch.encode_set_many(load.bucket_name, _pairs(load, keys)), _ok
    ),
    "delete-many": WireFunction(batch.BATCH, _of_keys, _ok),
    "increment": WireFunction(
        atomics.ATOMICS,
        lambda load, keys: atomics.encode_increment(load.bucket_name, keys[0], load.delta),
        lambda load, _, turn: atomics.encode_increment_result(load.counted + turn * load.delta),
    ),
}


def result_sizes(load: Load) -> dict[str, int]:
    """Return the expected size of each function's result. The size is 0 for list-keys, whose results vary in size."""
    keys = [key_of(0)] * load.keys_a_call
    return {name: len(FUNCTIONS[name].result(load, keys, 1)) if keys else 0 for name in names_of(load)}


def names_of(load: Load) -> tuple[str, ...]:
    """Return the wire names of the functions that a load calls."""
    return ("get", "set") if load.function == "mixed" else (load.function,)


class Frame(NamedTuple):
    """The constant parts of a call's first message.

    The message is `head`, the call's number, `middle`, the call's span if it is traced, and `tail`.
    """

    head: bytes
    middle: bytes
    tail: bytes


class Script:
    """The messages of a load's calls, and the expected answers. Calls are numbered from 0.

    :param before: an earlier script. If its load differs only in the provider, its messages need only new subjects
    :ivar later: the pieces of cut parameters after the first message, which are the same for every key
    """

    def __init__(self, load: Load, inbox: bytes, max_payload: int, before: Script | None = None) -> None:
        self._load = load
        self._names = names_of(load)
        self._sizes = result_sizes(load)
        self._block = header_block(load.headers)
        verb = b"HPUB" if self._block else b"PUB"

        def head_of(prefix: str, name: str) -> bytes:
            return b"%b %b %b." % (verb, invocation_subject(prefix, FUNCTIONS[name].instance, name).encode(), inbox)

        self._heads = {name: head_of(load.prefix, name) for name in self._names}
        self._head_beside = head_of(load.beside, "get") if load.beside else b""
        # Leave room in the first message for its subjects and headers, as the clients in other languages do.
        self._room = max_payload - len(self._block) - max(map(len, self._heads.values())) - NUMBER_BYTES
        first = FUNCTIONS["set"].params(load, [key_of(0)]) if "set" in self._names else b""
        self.later = [first[at : at + max_payload] for at in range(self._room, len(first), max_payload)]
        self.trace = randbits(128)
        keys = load.keys_a_call
        self._picked = 0
        if keys and not load.each_once:
            frame_bytes = 256 + min(self._room, len(first)) + (keys - 1) * (KEY_BYTES + load.value_bytes)
            self._picked = min(load.keys // keys, FRAMES_MAX, max(1, FRAMES_BYTES_MAX // frame_bytes))
        self._indices = spread_indices(load.keys, self._picked * keys)
        self._alike = replace(load, prefix="", exact=True), self._room if self.later else 0
        old = before._frames if before and before._alike == self._alike else []
        self._frames: list[Frame] = [Frame(self._heads[self._name(at)], *frame[1:]) for at, frame in enumerate(old)]
        self._frames = self._frames or [self._frame(number) for number in range(self._picked)]

    def frame(self, number: int) -> Frame:
        """Return the first message of a call."""
        frames = self._frames
        frame = frames[number % len(frames)] if frames else self._frame(number)
        return frame._replace(head=self._head_beside) if self._head_beside and number % 2 else frame

    def walk_frame(self, cursor: int | None) -> Frame:
        """Return the first message of a list-keys call."""
        return self._pack("list-keys", store.encode_list_keys(self._load.bucket_name, cursor))

    def span(self, number: int) -> bytes:
        """Return the trace id and span id for a call's traceparent. Each call has a new trace id."""
        return b"%032x-%016x" % ((self.trace + number) % 2**128 or 1, number + 1)

    def is_cut(self, number: int) -> bool:
        """Return True if a call's parameters do not fit in its first message."""
        return bool(self.later) and self._name(number) == "set"

    def result(self, number: int) -> bytes:
        """Return the expected result of a call."""
        # NATS keeps the calls of one connection in order, and no other load uses the same keys.
        turn = number // (self._picked or self._load.keys) + 1
        return FUNCTIONS[self._name(number)].result(self._load, self._keys(number), turn)

    def result_size(self, number: int) -> int:
        """Return the expected size of a call's result, or 0 for list-keys, whose results vary in size."""
        return self._sizes[self._name(number)]

    def _name(self, number: int) -> str:
        if len(self._names) == 1:
            return self._names[0]
        place = number % (self._picked or MIXED_SET_ONE_IN)
        return "set" if place % MIXED_SET_ONE_IN == MIXED_SET_ONE_IN - 1 else "get"

    def _keys(self, number: int) -> list[bytes]:
        """Return the keys of a call."""
        load, keys = self._load, self._load.keys_a_call
        if self._picked:
            first = number % self._picked * keys
            return [key_of(load.first_key + index) for index in self._indices[first : first + keys]]
        return [key_of(load.first_key + (number * keys + place) % load.keys) for place in range(keys)]

    def _frame(self, number: int) -> Frame:
        name = self._name(number)
        return self._pack(name, FUNCTIONS[name].params(self._load, self._keys(number))[: self._room])

    def _pack(self, name: str, params: bytes) -> Frame:
        block = self._block
        if not block:
            return Frame(self._heads[name], b" %d\r\n" % len(params), params + b"\r\n")
        sizes = b" %d %d\r\n" % (len(block), len(block) + len(params))
        before, zeros, rest = block.partition(NO_SPAN)
        if not zeros:
            return Frame(self._heads[name], sizes, b"%b%b\r\n" % (block, params))
        return Frame(self._heads[name], sizes + before, b"%b%b\r\n" % (rest, params))


def header_block(headers: Headers) -> bytes:
    """Return the NATS headers of a call as a wasmCloud host sends them."""
    if headers == "none":
        return b""
    traced = b"traceparent: 00-%b-01\r\ntracestate: \r\n" % NO_SPAN if headers == "traced" else b""
    names = f"link-name: {LINK_NAME}\r\nsource-id: {SOURCE_ID}\r\n".encode()
    return b"NATS/1.0\r\n%b%b\r\n" % (names, traced)


def spread_indices(keys: int, picked: int) -> list[int]:
    """Return `picked` distinct indices, spread over the key space. Successive indices are far apart.

    >>> spread_indices(10, 5)
    [0, 6, 2, 8, 4]
    """
    step = round(picked * 0.618) or 1
    while gcd(step, picked) > 1:
        step += 1
    every = keys // picked if picked else 1
    return [number * step % picked * every for number in range(picked)]
