"""What a load is: the calls, the bytes that a client sends for them, and what is right as an answer. No I/O.

Keys are numbers of 12 digits. A value begins with its key, so an answer with another key's value is seen; it holds no '.' and no
white space, so nothing in it looks like a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from secrets import randbits
from typing import Literal, NamedTuple, get_args

from keyvalue_transport.keyvalue.atomics import ATOMICS, encode_increment, encode_increment_result
from keyvalue_transport.keyvalue.batch import BATCH, encode_bucket_keys, encode_get_many_result, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, encode_get_result, encode_list_keys, encode_set
from keyvalue_transport.nats.subjects import invocation_subject

__all__ = [
    "BATCHES",
    "COUNT_FROM",
    "INSTANCES",
    "KEY_BYTES",
    "NO_SPAN",
    "PAIR_RATE",
    "SPAN_BYTES",
    "Frame",
    "Function",
    "Headers",
    "Load",
    "Script",
    "bucket_of",
    "get_many_result_of",
    "get_result_bytes",
    "header_block",
    "key_of",
    "result_sizes",
    "set_params_bytes",
    "value_of",
]

Function = Literal["get", "set", "exists", "delete", "list-keys", "mixed", "get-many", "set-many", "increment"]
Headers = Literal["none", "host", "traced"]

#: The instance that serves a function, by the function's name on the wire.
INSTANCES: Mapping[str, str] = {
    **dict.fromkeys(("get", "set", "delete", "exists", "list-keys"), STORE),
    **dict.fromkeys(("get-many", "set-many"), BATCH),
    "increment": ATOMICS,
}
#: Functions of `batch_keys` keys a call.
BATCHES = frozenset(name for name, instance in INSTANCES.items() if instance == BATCH)

KEY_BYTES = 12
LINK_NAME = "default"
SOURCE_ID = "bench-component"
#: Calls a second of which two are due at one moment.
PAIR_RATE = 2_000.0
#: Of a mixed load, one call in so many is a set: 95 % reads.
MIXED_SET_ONE_IN = 20
#: Frames that are made beforehand; a larger key space is sampled evenly.
FRAMES_MAX = 20_000
FRAMES_BYTES_MAX = 128 * 1024 * 1024
#: 61 bytes, a prime number, so that pieces in a wrong order do not fit.
PATTERN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_+=/:;,!"

#: What counters hold before they are measured: neither the text of a sum nor an answer changes its size then, in any run.
COUNT_FROM = 1_000_000
#: Of a batch: parameters and answer fit into one message each, with its headers.
BATCH_BYTES_MAX = 512 * 1024
#: The tag of an option, and the lengths of a key and a value.
PAIR_OVERHEAD_BYTES = 8

#: Digits of a call's number, at the most.
NUMBER_BYTES = 20
SET_OK = b"\x00"
EXISTS_TRUE = b"\x00\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load. Closed loop: `in_flight` calls at any time; open loop: `rate` calls a second, however many are in flight.

    :ivar bucket: its name; empty: `bucket_of` the size of values
    :ivar calls: ends after so many calls, if not 0; else after `seconds`
    :ivar warm_calls: calls before the measurement; of a closed loop only
    :ivar keys: the key space, from `first_key` on
    :ivar each_once: calls go through the key space in order, once; else over and over, spread
    :ivar batch_keys: of one get-many or set-many; the batches share no key, until all keys had their turn
    :ivar counted: increment: what each counter of the key space holds before
    :ivar delta: increment: what a call adds
    :ivar beside: `{lattice}.{provider key}` of another provider, whose answers are right by their shape: every second call goes there, and is
        not measured but compared with
    :ivar closing: send the empty message that ends the parameters, as every client does
    :ivar exact: the answers are a store's; else only their shape is right
    :ivar watched: processes by a name, whose CPU time is to be measured
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
        for name, found, allowed in (
            ("function", self.function, get_args(Function)),
            ("headers", self.headers, get_args(Headers)),
        ):
            if found not in allowed:
                raise ValueError(f"{name}: found {found!r}, allowed {', '.join(allowed)}")
        if self.value_bytes < KEY_BYTES:
            raise ValueError(f"value_bytes: found {self.value_bytes}, allowed from {KEY_BYTES}: a value holds its key")
        if min(self.in_flight, self.keys, self.page_keys) < 1:
            raise ValueError(
                f"in_flight, keys, page_keys: found {self.in_flight}, {self.keys}, {self.page_keys}, allowed from 1"
            )
        if self.rate and self.function == "list-keys":
            raise ValueError("rate: found one with list-keys, allowed without: a walk waits for its cursor")
        if self.beside and (self.function != "get" or self.rate != PAIR_RATE):
            raise ValueError(
                f"beside: found it with {self.function} at {self.rate:g} calls/s, allowed with get at {PAIR_RATE:g}: "
                "two that are due at one moment are compared"
            )
        if self.rate and self.warm_calls:
            raise ValueError(f"warm_calls: found {self.warm_calls} with a rate, allowed 0")
        if self.each_once and self.calls > self.keys:
            raise ValueError(f"calls: found {self.calls} with each of {self.keys} keys once")
        if self.function in BATCHES:
            self._check_batch()

    def _check_batch(self) -> None:
        if self.each_once:
            raise ValueError(f"each_once: found it with {self.function}, allowed with functions of one key")
        keys_max = min(self.keys, BATCH_BYTES_MAX // (KEY_BYTES + self.value_bytes + PAIR_OVERHEAD_BYTES))
        if not 1 <= self.batch_keys <= keys_max:
            raise ValueError(
                f"batch_keys: found {self.batch_keys}, allowed 1 to {keys_max}: keys that there are, in one message"
            )

    @property
    def calls_max(self) -> int:
        """Calls after which no further one is made; 0: time ends it."""
        if self.calls:
            return self.warm_calls + self.calls
        return max(1, round(self.rate * self.seconds)) if self.rate else 0

    @property
    def keys_a_call(self) -> int:
        """Keys that a call reads or writes; 0 of list-keys, whose answers tell."""
        if self.function == "list-keys":
            return 0
        return self.batch_keys if self.function in BATCHES else 1


def result_sizes(load: Load) -> dict[str, int]:
    """Sizes of the right results of a load's functions; of list-keys none is known."""
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
    """The functions on the wire."""
    return ("get", "set") if load.function == "mixed" else (load.function,)


def bucket_of(value_bytes: int) -> str:
    """The bucket of values of this size; its name has one length, so that the bare responder knows how long parameters are.

    >>> bucket_of(64)
    'values-0000000064'
    """
    return f"values-{value_bytes:010}"


def key_of(index: int) -> bytes:
    """
    >>> key_of(17)
    b'000000000017'
    """
    return b"%0*d" % (KEY_BYTES, index)


def value_of(key: bytes, value_bytes: int) -> bytes:
    """The value of a key: it begins with the key."""
    return key + (PATTERN * (value_bytes // len(PATTERN) + 1))[len(key) : value_bytes]


def get_result_bytes(value_bytes: int) -> int:
    """Size of the result of a get."""
    return len(encode_get_result(bytes(value_bytes)))


def get_many_result_of(keys: Sequence[bytes], value_bytes: int) -> bytes:
    """The result of a get-many of keys that are there."""
    values = [value_of(key, value_bytes) for key in keys]
    return encode_get_many_result(keys, values, bytes_max=sum(map(len, (*keys, *values))))


def set_params_bytes(value_bytes: int) -> int:
    """Size of the parameters of a set, into `bucket_of` its size."""
    return len(encode_set(bucket_of(value_bytes).encode(), key_of(0), bytes(value_bytes)))


class Frame(NamedTuple):
    """The message that begins a call: `head`, the call's number, `middle`, its span where it is traced, `tail`."""

    head: bytes
    middle: bytes
    tail: bytes


class Script:
    """The messages of a load's calls, by their numbers from 0 on, and what is right as an answer.

    :ivar later: pieces of the parameters after the first message; the same for every key
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
        # A first message leaves room for its subjects and headers, as the clients in other languages do.
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
        """How a call begins."""
        frames = self._frames
        frame = frames[number % len(frames)] if frames else self._frame(number)
        return frame._replace(head=self._head_beside) if self._head_beside and number % 2 else frame

    def walk_frame(self, cursor: int | None) -> Frame:
        """How a call of list-keys begins."""
        return self._pack("list-keys", encode_list_keys(self._bucket, cursor))

    def span(self, number: int) -> bytes:
        """The middle of a traceparent: each call is a trace of its own."""
        return b"%032x-%016x" % ((self.trace + number) % 2**128 or 1, number + 1)

    def is_cut(self, number: int) -> bool:
        """Whether the parameters go on behind the first message."""
        return bool(self.later) and self._name(number) == "set"

    def result(self, number: int) -> bytes:
        """The right result of a call."""
        name = self._name(number)
        load = self._load
        match name:
            case "get":
                return encode_get_result(value_of(self._key(number), load.value_bytes))
            case "get-many":
                return get_many_result_of(self._keys(number), load.value_bytes)
            case "increment":
                # NATS keeps the order of one connection's calls, and no other load has these keys.
                turns = number // (len(self._indices) or load.keys) + 1
                return encode_increment_result(load.counted + turns * load.delta)
            case "exists":
                return EXISTS_TRUE
        return SET_OK

    def result_size(self, number: int) -> int:
        """The size of the right result of a call; of list-keys none is known."""
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
        """The keys of a batch."""
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


#: Trace and span of a traceparent, before they are put in.
NO_SPAN = b"0" * 32 + b"-" + b"0" * 16
SPAN_BYTES = len(NO_SPAN)


def header_block(headers: Headers) -> bytes:
    """The NATS headers of a call, as a wasmCloud host sends them."""
    if headers == "none":
        return b""
    traced = b"traceparent: 00-%b-01\r\ntracestate: \r\n" % NO_SPAN if headers == "traced" else b""
    names = f"link-name: {LINK_NAME}\r\nsource-id: {SOURCE_ID}\r\n".encode()
    return b"NATS/1.0\r\n%b%b\r\n" % (names, traced)


def spread_indices(keys: int, picked: int) -> list[int]:
    """Indices of `picked` of the keys, all over the key space, neighbours far apart; each once.

    >>> spread_indices(10, 5)
    [0, 6, 2, 8, 4]
    """
    step = round(picked * 0.618) or 1
    while gcd(step, picked) > 1:
        step += 1
    every = keys // picked if picked else 1
    return [number * step % picked * every for number in range(picked)]
