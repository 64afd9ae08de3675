"""Short calls: whole reads, some of which are short calls, get the same answers as the same bytes one by one."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_provider.host.secret import Secret
from keyvalue_transport.redis.short_calls import MIDDLES, REST_BYTES_MAX
from tests.integration.redis_server import encode_request
from tests.transport.redis.side import compare

keys = st.sampled_from([b"k", b"", b"\r\n$1\r\n", b"x" * 9, b"x" * 10, b"x" * 99, b"x" * 100, b"long" * 40])
#: With the end of its request, this value looks like a short call.
CALL = encode_request([b"GET", b"k"]).removesuffix(b"\r\n")
values = st.sampled_from([CALL, b"", b"v", b"\r\n", b"1" * 9, b"1" * 10, b"1" * 99, b"1" * 498, b"1" * 540, b"1" * 600])
gets = st.tuples(st.sampled_from([b"GET", b"get"]), keys)
sets = st.tuples(st.sampled_from([b"SET", b"set"]), keys, values)
others = st.sampled_from(
    [
        *((b"PING",), (b"Get", b"k"), (b"GET",), (b"SET", b"k", b"v", b"NX"), (b"SELECT", b"1"), (b"HELLO", b"3")),
        *((b"AUTH", b"default", b"x"), (b"AUTH", b"default", b"secret"), (b"RESET",), (b"QUIT",)),
    ]
)
#: A byte that is replaced, or added: its place, the byte, and True if it is added.
faults = st.none() | st.tuples(st.floats(0, 0.99), st.sampled_from(b"*$123\r\nGk+>"), st.booleans())
#: A request, its fault, and a gap: none, a read that ends in its middle, or after it, also with time after the read.
steps = st.tuples(
    gets | sets | st.just((b"KEYS", b"k")) | others,
    faults,
    st.sampled_from(["", "middle", "end", "middle, time", "end, time"]),
)


def reads_of(requests: list[tuple[tuple[bytes, ...], Any, str]]) -> list[bytes]:
    """Return the reads, with an empty one where time passes."""
    reads, read = [], b""
    for request, fault, gap in requests:
        part = encode_request(request)
        if fault is not None:
            at = int(fault[0] * len(part))
            part = part[:at] + bytes([fault[1]]) + part[at + (not fault[2]) :]
        at = (part.find(CALL) if CALL in part else len(part) // 2) if "middle" in gap else len(part)
        read += part[:at]
        if gap:
            reads += [read, b""] if "time" in gap else [read]
            read = part[at:]
    return [*reads, read]


@settings(max_examples=300)
@given(
    requests=st.lists(steps, max_size=12),
    options=st.sampled_from([{}, {"redis_request_bytes_max": 150}, {"redis_password": Secret("secret")}]),
)
def test_short_calls_get_the_answers_of_other_reads(requests: list[Any], options: dict[str, Any]) -> None:
    asyncio.run(compare(reads_of(requests), **options))


def test_the_rest_of_a_set_has_the_length_of_its_value() -> None:
    """Each length of a rest belongs to one length of a value, or to none."""
    found = {size: middle for size, (middle, _) in enumerate(MIDDLES) if middle != b"none"}
    for length in range(REST_BYTES_MAX):
        rest = encode_request([b"k", bytes(length)])[len(b"*2\r\n$1\r\nk") :]
        if len(rest) < REST_BYTES_MAX:
            assert rest.startswith(found.pop(len(rest)))
    assert not found
