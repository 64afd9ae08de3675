"""The bytes of a load: what a client sends for its calls, and which answers are right."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.case import Headers
from bench.load.workload import Script, key_of, spread_indices, value_of
from keyvalue_transport.keyvalue.batch import decode_get_many, decode_get_many_result, decode_set_many
from keyvalue_transport.keyvalue.store import decode_get
from tests.bench.load.sockets import INBOX, LIMITS, MAX_PAYLOAD, load_of


@given(keys=st.integers(1, 2_000), share=st.integers(1, 10))
def test_indices_are_spread_over_all_keys_once_each(keys: int, share: int) -> None:
    picked = max(1, keys // share)
    indices = spread_indices(keys, picked)
    assert len(set(indices)) == len(indices) == picked
    assert 0 <= min(indices) <= max(indices) < keys
    assert max(indices) >= keys - 2 * share - keys % picked


@pytest.mark.parametrize("value_bytes", [12, 64, 1000])
def test_values_have_their_size_and_begin_with_their_key(value_bytes: int) -> None:
    value = value_of(key_of(5), value_bytes)
    assert len(value) == value_bytes
    assert value.startswith(b"000000000005")
    assert not re.search(rb"[.\s]", value)


@pytest.mark.parametrize("value_bytes", [64, 2_000])  # 2,000 bytes do not fit into the first message
def test_a_script_after_one_for_another_provider_has_the_same_messages(value_bytes: int) -> None:
    fields = {"function": "mixed", "keys": 100, "value_bytes": value_bytes}
    first = Script(replace(load_of(**fields), prefix="default.first", exact=False), b"_INBOX.first", MAX_PAYLOAD)
    alone, after = (Script(load_of(**fields), INBOX, MAX_PAYLOAD, before) for before in (None, first))
    assert [after.frame(number) for number in range(200)] == [alone.frame(number) for number in range(200)]
    assert after.later == alone.later
    other = Script(load_of(**fields, headers="none"), INBOX, MAX_PAYLOAD, first)
    assert other.frame(0) == Script(load_of(**fields, headers="none"), INBOX, MAX_PAYLOAD).frame(0) != after.frame(0)


@pytest.mark.parametrize("headers", ["none", "host", "traced"])
def test_a_call_is_one_frame_with_the_headers_of_a_host(headers: Headers) -> None:
    script = Script(load_of(headers=headers, keys=3), INBOX, MAX_PAYLOAD)
    head, middle, tail = script.frame(1)
    frame = head + b"1" + middle + (script.span(1) if headers == "traced" else b"") + tail
    line, rest = frame.split(b"\r\n", 1)
    words = line.split(b" ")
    assert words[:3] == [
        b"PUB" if headers == "none" else b"HPUB",
        b"default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.get",
        b"_INBOX.client.1",
    ]
    total, block_size = int(words[-1]), 0 if headers == "none" else int(words[-2])
    assert len(rest) == total + 2
    (bucket, key), end = decode_get(rest, block_size, total, LIMITS)
    assert (bucket, end) == (b"values-0000000064", total)
    assert key in {key_of(index) for index in range(3)}
    block = rest[:block_size]
    assert (b"source-id: bench-component\r\n" in block) == (headers != "none")
    assert bool(re.search(rb"\r\ntraceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n", block)) == (headers == "traced")


def test_each_call_has_its_own_trace() -> None:
    script = Script(load_of(headers="traced"), INBOX, MAX_PAYLOAD)
    spans = {script.span(number) for number in range(100)}
    assert len({span[:32] for span in spans}) == len({span[33:] for span in spans}) == 100


def test_a_mixed_load_has_one_set_in_twenty() -> None:
    script = Script(load_of(function="mixed", keys=1_000), INBOX, MAX_PAYLOAD)
    assert sum(b".set " in script.frame(number).head for number in range(1_000)) == 50
    assert script.result(19) == b"\0"
    assert len(script.result(18)) == script.result_size(18) == 67


def test_batches_contain_all_keys_and_no_key_twice() -> None:
    """A batch sets the values that the same batch reads."""
    fields = {"headers": "none", "keys": 1_000, "batch_keys": 30, "first_key": 7}
    reads, writes = (Script(load_of(function=name, **fields), INBOX, 2**20) for name in ("get-many", "set-many"))
    seen: list[bytes] = []
    for number in range(33):
        assert b".wrpc:keyvalue/batch@0.2.0-draft.get-many " in reads.frame(number).head
        params, written = reads.frame(number).tail[:-2], writes.frame(number).tail[:-2]
        (bucket, keys), end = decode_get_many(params, 0, len(params), LIMITS)
        assert (bucket, len(keys), end) == (b"values-0000000064", 30, len(params))
        values = [(key, value_of(key, 64)) for key in keys]
        assert decode_set_many(written, 0, len(written), LIMITS) == ((bucket, dict(values)), len(written))
        result = reads.result(number)
        assert decode_get_many_result(result, 0, len(result)) == (values, reads.result_size(number))
        seen += keys
    assert len(set(seen)) == len(seen) == 990
    assert set(seen) < {key_of(index) for index in range(7, 1_007)}
    assert reads.frame(33).tail == reads.frame(0).tail
    assert reads.result(33) == reads.result(0)
    assert writes.result(0) == b"\0"
