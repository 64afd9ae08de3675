"""A key and its value as a line of JSON, in both directions."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.client.records import TransferError, json_line, read_json_line


@given(st.text(st.characters(codec="utf-8")), st.binary() | st.text(st.characters(codec="utf-8")).map(str.encode))
def test_a_line_gives_back_its_key_and_value(key: str, value: bytes) -> None:
    line = json_line(key.encode(), value)
    assert line.count(b"\n") == 1
    assert not any(byte < 32 or byte == 127 for byte in line[:-1])
    assert read_json_line(line) == (key.encode(), value)
    assert json.loads(line).keys() == {"key", "value" if value.decode(errors="replace").encode() == value else "base64"}


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "[]", '{"key": "k"}', '{"key": 1, "value": "v"}', '{"key": "k", "value": null}', "{",
        '{"key": "k", "value": "v", "ttl": 1}', '{"key": "k", "value": "v", "base64": ""}',
        '{"key": "k", "base64": "*"}', '{"key": "k", "base64": "YQ"}', '{"key": "\\ud800", "value": ""}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_line(line: str) -> None:
    with pytest.raises(TransferError) as caught:
        read_json_line(line.encode())
    assert len(str(caught.value)) < 100


@given(st.binary())
def test_any_bytes_give_a_record_or_an_error(line: bytes) -> None:
    with suppress(TransferError):
        read_json_line(line)
