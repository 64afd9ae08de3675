"""Host data: every field and its default, what is refused and with which message, and reading it from a pipe that may stay open."""

from __future__ import annotations

import base64
import json
import os
import textwrap
from codecs import BOM_UTF8
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.host import host_data as host_data_module
from keyvalue_provider.host.host_data import HostData, HostDataError, parse_host_data, read_host_data
from keyvalue_provider.host.secret import Secret
from tests.conftest import HOST_CAPTURE

HUSH = "hush-hush"
FIELDS = {field.name: field.type for field in fields(HostData) if field.name != "given"}
TEXTS = [name for name, kind in FIELDS.items() if kind in ("str", "Secret")]
MAPPINGS = [name for name, kind in FIELDS.items() if str(kind).startswith("Mapping")]
ARRAYS = [name for name, kind in FIELDS.items() if str(kind).startswith("tuple")]


def encoded(value: object) -> bytes:
    return base64.b64encode(json.dumps(value).encode())


def parsed(**fields: object) -> HostData:
    return parse_host_data(encoded(fields))


def refusal(value: object) -> str:
    with pytest.raises(HostDataError) as caught:
        parse_host_data(encoded(value))
    return str(caught.value)


# Fields


def test_missing_null_empty_and_new_fields_leave_the_defaults() -> None:
    assert parsed() == HostData()
    assert parsed(new_field=[1], another={"a": None}) == HostData()
    for name in FIELDS:
        assert parsed(**{name: None}) == HostData(), name
    for name in ("lattice_rpc_prefix", "lattice_rpc_url", "provider_key", "link_name", "log_level"):
        assert parsed(**{name: ""}) == HostData(), name


def test_the_host_data_of_the_capture() -> None:
    sent: dict[str, Any] = HOST_CAPTURE["host_data"]
    host_data = parse_host_data(HOST_CAPTURE["stdin_line"].encode() + b"\r\n")
    assert host_data == parse_host_data(encoded(sent))
    secret = {"lattice_rpc_user_jwt", "lattice_rpc_user_seed", "provider_xkey_private_key"}
    for name in sent.keys() - secret - {"link_definitions", "cluster_issuers", "secrets"}:
        assert getattr(host_data, name) == sent[name], name
    for name in secret:
        assert getattr(host_data, name).reveal() == sent[name]
    (link,) = host_data.link_definitions
    assert link == sent["link_definitions"][0]
    assert host_data.cluster_issuers == ()
    assert host_data.secrets == {}
    assert sent.keys() == FIELDS.keys()
    assert FIELDS.keys() - {*TEXTS, *MAPPINGS, *ARRAYS} == {"default_rpc_timeout_ms", "structured_logging"}


def test_secrets_are_text_or_bytes() -> None:
    host_data = parsed(
        secrets={
            "text": {"kind": "String", "value": HUSH},
            "bytes": {"kind": "Bytes", "value": list(HUSH.encode())},
            "empty": {"kind": "Bytes", "value": None},
        }
    )
    assert host_data.secrets == {"text": Secret(HUSH), "bytes": Secret(HUSH.encode()), "empty": Secret(b"")}


def test_no_secret_is_shown() -> None:
    host_data = parsed(
        lattice_rpc_url=f"nats://user:{HUSH}@host",
        lattice_rpc_user_jwt=HUSH,
        lattice_rpc_user_seed=HUSH,
        provider_xkey_private_key=HUSH,
        config={"a": HUSH},
        env_values={"a": HUSH},
        otel_config={"a": HUSH},
        secrets={"a": {"kind": "String", "value": HUSH}},
        link_definitions=[
            {"source_id": "a", "target": "b", "source_config": {"a": HUSH}, "target_config": {"a": HUSH}}
        ],
    )
    assert HUSH not in repr(host_data)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, [HUSH], f"{name}: found an array, expected a string") for name in TEXTS),
        *((name, [HUSH], f"{name}: found an array, expected an object") for name in MAPPINGS),
        *((name, {HUSH: HUSH}, f"{name}: found an object, expected an array") for name in ARRAYS),
        ("default_rpc_timeout_ms", HUSH, "default_rpc_timeout_ms: found a string, expected a whole number"),
        ("default_rpc_timeout_ms", -1, "default_rpc_timeout_ms: found a number, expected a whole number from 0"),
        ("default_rpc_timeout_ms", True, "default_rpc_timeout_ms: found a boolean, expected a whole number from 0"),
        ("structured_logging", 1, "structured_logging: found a number, expected a boolean"),
        ("cluster_issuers", ["C", 1], "cluster_issuers[1]: found a number, expected a string"),
        ("config", {"a": 1}, "config.a: found a number, expected a string"),
        ("env_values", {"a": [HUSH]}, "env_values.a: found an array, expected a string"),
        ("link_definitions", [HUSH], "link_definitions[0]: found a string, expected an object"),
        ("link_definitions", [{}], "link_definitions[0].source_id: found nothing, expected a name"),
        ("secrets", {"a": HUSH}, "secrets.a: found a string, expected an object"),
        ("secrets", {"a": {"kind": HUSH}}, "secrets.a.kind: expected String or Bytes"),
        ("secrets", {"a": {"kind": "String", "value": [1]}}, "secrets.a.value: found an array, expected a string"),
        ("secrets", {"a": {"kind": "Bytes", "value": HUSH}}, "secrets.a.value: found a string, expected an array"),
    ],
)
def test_a_field_of_the_wrong_type(name: str, value: object, message: str) -> None:
    told = refusal({name: value})
    assert told == f"host data: {message}"
    assert HUSH not in told


@pytest.mark.parametrize("name", ["lattice_rpc_prefix", "provider_key", "link_name"])
@pytest.mark.parametrize("text", ["a b", "a\n", "a.*", ">", ".", "a..b", "a.", "\ud800"])
def test_a_field_that_becomes_a_subject_must_be_one(name: str, text: str) -> None:
    told = refusal({name: text})
    assert told.startswith(f"host data: {name}: found {text!r}, allowed printable tokens without white space")


@pytest.mark.parametrize("value", [[], HUSH, 1, True, None])
def test_host_data_must_be_an_object(value: object) -> None:
    told = refusal(value)
    assert told.startswith("host data: top level: found ")
    assert told.endswith(", expected an object")
    assert HUSH not in told


# Text


def test_base64_may_be_wrapped() -> None:
    text = encoded(HOST_CAPTURE["host_data"]).decode()
    for wrapped in ("\n".join(textwrap.wrap(text, 76)), "\r\n".join(textwrap.wrap(text, 64)), f"  {text}\n\n"):
        assert parse_host_data(wrapped.encode()) == parse_host_data(text.encode())


@pytest.mark.parametrize("text", [b"", b"\n", b" \r\n\t"])
def test_nothing(text: bytes) -> None:
    with pytest.raises(
        HostDataError, match=r"^found nothing on standard input, expected host data: one line of base64"
    ):
        parse_host_data(text)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_give_host_data_or_its_error(text: bytes) -> None:
    for candidate in (text, base64.b64encode(text)):
        try:
            parse_host_data(candidate)
        except HostDataError as error:
            assert "expected" in str(error) or "allowed" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(FIELDS)), JSON))
def test_any_fields_give_host_data_or_its_error(host_data: dict[str, object]) -> None:
    try:
        found = parse_host_data(encoded(host_data))
    except HostDataError as error:
        assert str(error).startswith("host data: ")
    else:
        for name in ("lattice_rpc_prefix", "provider_key", "link_name"):
            getattr(found, name).encode()  # it becomes a subject


# Reading


@pytest.fixture
def pipe() -> Any:
    """Yield both ends of a pipe: read, write."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", 0) as reader, os.fdopen(write, "wb", 0) as writer:
        yield reader, writer


LINE = encoded({"provider_key": "from-a-pipe"})
#: A test that waits this long fails by its own timeout.
NEVER_S = 3600.0


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_is_enough_if_the_pipe_stays_open(pipe: Any, end: bytes) -> None:
    reader, writer = pipe
    writer.write(LINE + end)
    assert read_host_data(reader.fileno(), NEVER_S).provider_key == "from-a-pipe"


@pytest.mark.parametrize("text", [LINE, LINE + b"\n", LINE[:20] + b"\n" + LINE[20:]])
def test_the_end_is_enough_too(pipe: Any, text: bytes) -> None:
    reader, writer = pipe
    writer.write(text)
    writer.close()
    assert read_host_data(reader.fileno(), NEVER_S).provider_key == "from-a-pipe"


def test_it_may_arrive_in_pieces(pipe: Any) -> None:
    """Send more than a pipe holds, so that the later lines are written while the first are read."""
    reader, writer = pipe
    lines = encoded({"provider_key": "from-a-pipe", "instance_id": "x" * 300_000})
    thread = Thread(
        target=lambda: [writer.write(line.encode() + b"\n") for line in textwrap.wrap(lines.decode(), 7_600)]
    )
    thread.start()
    assert read_host_data(reader.fileno(), NEVER_S).provider_key == "from-a-pipe"
    thread.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINE, None),  # a line without its end
        (LINE[:20] + b"\n", r"^found base64 of 15 bytes that are not JSON, expected host data"),
        (b"", r"^found nothing on standard input within 0\.05 s, expected host data"),
        (b"  \n", r"^found nothing on standard input within 0\.05 s, expected host data"),
    ],
)
def test_at_the_timeout_it_is_read_as_it_is(pipe: Any, text: bytes, message: str | None) -> None:
    reader, writer = pipe
    writer.write(text)
    if message is None:
        assert read_host_data(reader.fileno(), 0.05).provider_key == "from-a-pipe"
    else:
        with pytest.raises(HostDataError, match=message):
            read_host_data(reader.fileno(), 0.05)


@pytest.mark.parametrize("text", [LINE, b'{\n  "provider_key": "from-a-pipe",\n  "config": {}\n}\n'])
def test_base64_and_plain_json_with_a_byte_order_mark_are_read_without_the_end_of_the_pipe(
    pipe: Any, text: bytes
) -> None:
    reader, writer = pipe
    for piece in (BOM_UTF8 + text).splitlines(keepends=True):
        writer.write(piece if piece.endswith(b"\n") else piece + b"\n")
    assert read_host_data(reader.fileno(), NEVER_S, accepts_json=True).provider_key == "from-a-pipe"


def test_incomplete_json_is_refused_at_the_timeout(pipe: Any) -> None:
    reader, writer = pipe
    writer.write(b'{"provider_key":\n')
    with pytest.raises(HostDataError, match=r"^found text of 17 bytes that are not JSON, expected host data"):
        read_host_data(reader.fileno(), 0.05, accepts_json=True)


def test_text_that_can_never_be_base64_is_refused_at_once(pipe: Any) -> None:
    reader, writer = pipe
    writer.write(b'{"provider_key": "of JSON itself"}\n')
    with pytest.raises(HostDataError, match="characters on standard input that are not base64"):
        read_host_data(reader.fileno(), NEVER_S)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_data_module, "HOST_DATA_BYTES_MAX", 100_000)
    path = tmp_path / "host_data"
    path.write_bytes(LINE.ljust(100_000))
    with path.open("rb", 0) as file:
        assert read_host_data(file.fileno(), NEVER_S).provider_key == "from-a-pipe"
    path.write_bytes(LINE.ljust(100_001))
    with (
        path.open("rb", 0) as file,
        pytest.raises(HostDataError, match="found more than 100000 bytes on standard input"),
    ):
        read_host_data(file.fileno(), NEVER_S)
