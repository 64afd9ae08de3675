"""A load: its calls, the bytes that a client sends for each call, and the expected answers. This module does no I/O.

Keys are numbers of 12 digits. A value begins with its key, so that an answer with another key's value is detected. A
value contains no '.' and no white space, so no part of it looks like a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from secrets import randbits
from typing import Literal, NamedTuple

from keyvalue_transport.keyvalue.atomics import ATOMICS, encode_increment, encode_increment_result
from keyvalue_transport.keyvalue.batch import BATCH, encode_bucket_keys, encode_get_many_result, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, encode_get_result, encode_list_keys, encode_set
from keyvalue_transport.nats.subjects import invocation_subject

__all__ = [
    *(
        "BATCHES",
        "COUNT_FROM",
        "INSTANCES",
        "KEY_BYTES",
        "LINK_NAME",
        "NO_SPAN",
        "PAIR_RATE",
        "SOURCE_ID",
        "SPAN_BYTES",
    ),
    *("Frame", "Function", "Headers", "Load", "Script", "bucket_of", "get_many_result_of", "get_result_bytes"),
    *("header_block", "key_of", "result_sizes", "set_params_bytes", "value_of"),
]

Function = Literal["get", "set", "exists", "delete", "list-keys", "mixed", "get-many", "set-many", "increment"]
Headers = Literal["none", "host", "traced"]

#: The interface instance of each function. The keys of the mapping are the functions' names on the wire.
INSTANCES: Mapping[str, str] = {
    **dict.fromkeys(("get", "set", "delete", "exists", "list-keys"), STORE),
    **dict.fromkeys(("get-many", "set-many"), BATCH),
    "increment": ATOMICS,
}
#: Functions that read or write `batch_keys` keys per call.
BATCHES = frozenset(name for name, instance in INSTANCES.items() if instance == BATCH)

KEY_BYTES = 12
LINK_NAME = "default"
SOURCE_ID = "bench-component"
#: Rate of a load with `beside`, in calls per second. Two calls are due at the same time, one on each provider.
PAIR_RATE = 2_000.0
#: In a mixed load, one call in this many is a set, so 95 % of the calls are gets.
MIXED_SET_ONE_IN = 20
#: Maximum number of frames that are built before the load. A load with more keys uses an evenly spread sample of keys.
FRAMES_MAX = 20_000
FRAMES_BYTES_MAX = 128 * 1024 * 1024
#: The text that fills values. Its length is a prime number, 61, so pieces in the wrong order do not match.
PATTERN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_+=/:;,!"

#: The value of counters before a measurement. It is so large that a counter's number of digits never changes in a run.
COUNT_FROM = 1_000_000
#: Maximum size of a batch, chosen so that parameters and answer each fit in one message with headers.
BATCH_BYTES_MAX = 512 * 1024
#: Bytes for each pair besides key and value: an option's tag and two lengths.
PAIR_OVERHEAD_BYTES = 8

#: Maximum number of digits in a call's number.
NUMBER_BYTES = 20
SET_OK = b"\x00"
EXISTS_TRUE = b"\x00\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load. A closed loop keeps `in_flight` calls in flight. An open loop sends `rate` calls per second.

    :ivar bucket: name of the bucket; if empty, the name that `bucket_of(value_bytes)` returns
    :ivar calls: number of calls to measure; if 0, the measurement ends after `seconds`
    :ivar warm_calls: number of calls before the measurement; only for a closed loop
    :ivar keys: number of keys; the first key is `key_of(first_key)`
    :ivar each_once: True to use each key once, in order; otherwise keys are repeated, in a scattered order
    :ivar batch_keys: number of keys in a get-many or set-many; no key is repeated before all keys have been used
    :ivar counted: for increment, the value of every counter before the load
    :ivar delta: for increment, the amount that a call adds
    :ivar beside: `{lattice}.{provider key}` of another provider, which gets every second call. Only the shape of its
        answers is checked. Its latencies are used only for `Outcome.excess_us`
    :ivar closing: True to send the empty message that ends the parameters, as every client does
    :ivar exact: True to expect the answers of a store; otherwise only the shape of answers is checked
    :ivar watched: ids of the processes whose CPU time is measured, by name
    """

    url: str
    prefix: str
    function: Function = "get"
    bucket: str = ""
    value_bytes: int = 64
    in_flight: int = 64
    rate: float = 0.0
    calls: int = 0
    seconds: float = 1.0
    warm_calls: int = 0
    headers: Headers = "host"
    keys: int = 10_000
    first_key: int = 0
    each_once: bool = False
    page_keys: int = 1_000
    batch_keys: int = 100
    counted: int = 0
    delta: int = 1
    beside: str = ""
    closing: bool = True
    exact: bool = True
    timeout_s: float = 30.0
    watched: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value_bytes < KEY_BYTES:
            raise ValueError(
                f"value_bytes is {self.value_bytes}; the minimum is {KEY_BYTES}, because a value holds its key"
            )
        keys_max = min(self.keys, BATCH_BYTES_MAX // (KEY_BYTES + self.value_bytes + PAIR_OVERHEAD_BYTES))
        if self.function in BATCHES and not 1 <= self.batch_keys <= keys_max:
            raise ValueError(
                f"batch_keys: found {self.batch_keys}, allowed 1 to {keys_max}: "
                "a batch needs distinct keys and must fit in one message"
            )

    @property
    def calls_max(self) -> int:
        """Return the total number of calls to send, or 0 if the load ends after `seconds`."""
        if self.calls:
            return self.warm_calls + self.calls
        return max(1, round(self.rate * self.seconds)) if self.rate else 0

    @property
    def keys_a_call(self) -> int:
        """Return the number of keys that a call reads or writes, or 0 for list-keys, where the number varies."""
        if self.function == "list-keys":
            return 0
        return self.batch_keys if self.function in BATCHES else 1


def result_sizes(load: Load) -> dict[str, int]:
    """Return the expected size of each function's result. The size is 0 for list-keys, whose results vary in size."""
    return {name: _result_size(load, name) for name in names_of(load)}


def _result_size(load: Load, name: str) -> int:
    match name:
        case "get":
            return get_result_bytes(load.value_bytes)
        case "get-many":
            return len(get_many_result_of([key_of(0)] * load.batch_keys, load.value_bytes))
        case "increment":
            return len(encode_increment_result(load.counted + load.delta))
        case "exists":
            return len(EXISTS_TRUE)
        case "list-keys":
            return 0
    return len(SET_OK)


def names_of(load: Load) -> tuple[str, ...]:
    """Return the wire names of the functions that a load calls."""
    return ("get", "set") if load.function == "mixed" else (load.function,)


def bucket_of(value_bytes: int) -> str:
    """Return the name of the bucket for values of this size.

    All bucket names have the same length, so the bare responder can predict the length of parameters.

    >>> bucket_of(64)
    'values-0000000064'
    """
    return f"values-{value_bytes:010}"


def key_of(index: int) -> bytes:
    """Return the key with this number.

    >>> key_of(17)
    b'000000000017'
    """
    return b"%0*d" % (KEY_BYTES, index)


def value_of(key: bytes, value_bytes: int) -> bytes:
    """Return the value of a key. It begins with the key."""
    return key + (PATTERN * (value_bytes // len(PATTERN) + 1))[len(key) : value_bytes]


def get_result_bytes(value_bytes: int) -> int:
    """Return the size of the result of a get."""
    return len(encode_get_result(bytes(value_bytes)))


def get_many_result_of(keys: Sequence[bytes], value_bytes: int) -> bytes:
    """Return the result of a get-many of existing keys."""
    values = [value_of(key, value_bytes) for key in keys]
    return encode_get_many_result(keys, values, bytes_max=sum(map(len, (*keys, *values))))


def set_params_bytes(value_bytes: int) -> int:
    """Return the size of the parameters of a set with a value of this size."""
    return len(encode_set(bucket_of(value_bytes).encode(), key_of(0), bytes(value_bytes)))


class Frame(NamedTuple):
    """The constant parts of a call's first message.

    The message is `head`, the call's number, `middle`, the call's span if it is traced, and `tail`.
    """

    head: bytes
    middle: bytes
    tail: bytes


class Script:
    """The messages of a load's calls, and the expected answers. Calls are numbered from 0.

    :ivar later: the pieces of cut parameters after the first message, which are the same for every key
    """

    def __init__(self, load: Load, inbox: bytes, max_payload: int) -> None:
        self._load = load
        self._bucket = (load.bucket or bucket_of(load.value_bytes)).encode()
        self._names = names_of(load)
        self._sizes = result_sizes(load)
        self._block = header_block(load.headers)
        verb = b"HPUB" if self._block else b"PUB"
        self._heads = {
            name: b"%b %b %b." % (verb, invocation_subject(load.prefix, INSTANCES[name], name).encode(), inbox)
            for name in self._names
        }
        subject = invocation_subject(load.beside, INSTANCES["get"], "get").encode()
        self._head_beside = b"%b %b %b." % (verb, subject, inbox) if load.beside else b""
        # Leave room in the first message for its subjects and headers, as the clients in other languages do.
        room = max_payload - len(self._block) - max(map(len, self._heads.values())) - NUMBER_BYTES
        self._value = value_of(b"", load.value_bytes)
        first = encode_set(self._bucket, key_of(0), self._value) if "set" in self._names else b""
        self._room = room
        self.later = [first[at : at + max_payload] for at in range(room, len(first), max_payload)]
        self.trace = randbits(128)
        keys = load.keys_a_call
        self._picked = 0
        if not load.each_once and load.function != "list-keys":
            frame_bytes = 256 + min(room, len(first)) + (keys - 1) * (KEY_BYTES + load.value_bytes)
            self._picked = min(load.keys // keys, FRAMES_MAX, max(1, FRAMES_BYTES_MAX // frame_bytes))
        self._indices = spread_indices(load.keys, self._picked * keys)
        self._frames = [self._frame(number) for number in range(self._picked)]

    def frame(self, number: int) -> Frame:
        """Return the first message of a call."""
        frames = self._frames
        frame = frames[number % len(frames)] if frames else self._frame(number)
        return frame._replace(head=self._head_beside) if self._head_beside and number % 2 else frame

    def walk_frame(self, cursor: int | None) -> Frame:
        """Return the first message of a list-keys call."""
        return self._pack("list-keys", encode_list_keys(self._bucket, cursor))

    def span(self, number: int) -> bytes:
        """Return the trace id and span id for a call's traceparent. Each call has a new trace id."""
        return b"%032x-%016x" % ((self.trace + number) % 2**128 or 1, number + 1)

    def is_cut(self, number: int) -> bool:
        """Return True if a call's parameters do not fit in its first message."""
        return bool(self.later) and self._name(number) == "set"

    def result(self, number: int) -> bytes:
        """Return the expected result of a call."""
        name = self._name(number)
        load = self._load
        match name:
            case "get":
                return encode_get_result(value_of(self._key(number), load.value_bytes))
            case "get-many":
                return get_many_result_of(self._keys(number), load.value_bytes)
            case "increment":
                # NATS keeps the calls of one connection in order, and no other load uses the same keys.
                turns = number // (len(self._indices) or load.keys) + 1
                return encode_increment_result(load.counted + turns * load.delta)
            case "exists":
                return EXISTS_TRUE
        return SET_OK

    def result_size(self, number: int) -> int:
        """Return the expected size of a call's result, or 0 for list-keys, whose results vary in size."""
        return self._sizes[self._name(number)]

    def _name(self, number: int) -> str:
        if len(self._names) == 1:
            return self._names[0]
        if self._indices:
            number %= len(self._indices)
        return "set" if number % MIXED_SET_ONE_IN == MIXED_SET_ONE_IN - 1 else "get"

    def _key(self, number: int) -> bytes:
        index = self._indices[number % len(self._indices)] if self._indices else number % self._load.keys
        return key_of(self._load.first_key + index)

    def _keys(self, number: int) -> list[bytes]:
        """Return the keys of a batch."""
        first = number % self._picked * self._load.batch_keys
        indices = self._indices[first : first + self._load.batch_keys]
        return [key_of(self._load.first_key + index) for index in indices]

    def _frame(self, number: int) -> Frame:
        name = self._name(number)
        return self._pack(name, self._params(name, number)[: self._room])

    def _params(self, name: str, number: int) -> bytes:
        bucket, value = self._bucket, self._value
        if name in BATCHES:
            keys = self._keys(number)
            if name == "get-many":
                return encode_bucket_keys(bucket, keys)
            return encode_set_many(bucket, [(key, key + value[len(key) :]) for key in keys])
        key = self._key(number)
        if name == "increment":
            return encode_increment(bucket, key, self._load.delta)
        if name == "set":
            return encode_set(bucket, key, key + value[len(key) :])
        return encode_bucket_key(bucket, key)

    def _pack(self, name: str, params: bytes) -> Frame:
        block = self._block
        if not block:
            return Frame(self._heads[name], b" %d\r\n" % len(params), params + b"\r\n")
        sizes = b" %d %d\r\n" % (len(block), len(block) + len(params))
        before, zeros, behind = block.partition(NO_SPAN)
        if not zeros:
            return Frame(self._heads[name], sizes, b"%b%b\r\n" % (block, params))
        return Frame(self._heads[name], sizes + before, b"%b%b\r\n" % (behind, params))


#: The placeholder for the trace id and span id in a traceparent.
NO_SPAN = b"0" * 32 + b"-" + b"0" * 16
SPAN_BYTES = len(NO_SPAN)


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
