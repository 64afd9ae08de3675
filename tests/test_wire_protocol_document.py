"""docs/wire-protocol.md is true: its bytes against the codec, its conversations against server and client, its limits, its interface."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue import interface as keyvalue
from keyvalue_transport.keyvalue.atomics import ATOMICS
from keyvalue_transport.keyvalue.batch import BATCH
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_bucket_key, encode_error
from keyvalue_transport.keyvalue.store import (
    STORE,
    KeyResponse,
    decode_get_result,
    encode_get_result,
    store_handlers,
)
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats import connection
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.subjects import invocation_subject, params_subject
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import InvocationEndedError
from keyvalue_transport.wrpc.handler import ANONYMOUS
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from keyvalue_transport.wrpc.queued_calls import CALL_BYTES, HOLDER_BYTES
from tests.invoking import invoke
from tests.transport.keyvalue.functions import FUNCTIONS

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "wire-protocol.md").read_text()
HEX = r"[0-9a-f]{2}(?: [0-9a-f]{2})*"
LIMITS = ParameterLimits()


def table(first_column: str, text: str = DOCUMENT) -> list[list[str]]:
    """Return the cells of the table whose first column has this name, without the head."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def blocks(text: str = DOCUMENT) -> list[str]:
    """Return the fenced blocks."""
    return re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def hex_bytes(cell: str) -> bytes:
    return bytes.fromhex(cell.strip("`"))


def value_of(label: str) -> Any:
    """Return the value that the document names, as the codec has it: b"blue" for `ok(some("blue"))`."""
    words: dict[str, Any] = {
        "none": None,
        "true": True,
        "ok": lambda value: value,
        "some": lambda value: value,
        "other": OtherError,
    }
    words |= {"err": lambda error: error, "no_such_store": NoSuchStoreError(), "access_denied": AccessDeniedError()}
    words |= {"keys": "keys", "cursor": "cursor"}
    return as_bytes(eval(label.replace("-", "_"), words))


def as_bytes(value: Any) -> Any:
    """Return a value with its texts as bytes, and its records unchanged."""
    match value:
        case str():
            return value.encode()
        case {"keys": keys, "cursor": cursor}:
            return KeyResponse(as_bytes(keys), cursor)
        case list() | tuple():
            return type(value)(map(as_bytes, value))
    return value


def call_of(label: str) -> tuple[str, tuple[Any, ...]]:
    """Return function and parameters of a call, as the codec has them."""
    name, _, parameters = label.partition("(")
    values = value_of(f"({parameters.removesuffix(')')},)")
    return name, (values[0], dict(values[1])) if name == "set-many" else values


def check(label: str, found: bytes) -> None:
    """Check the parameters of a call."""
    name, parameters = call_of(label)
    assert found.hex(" ") == FUNCTIONS[name].encode(*parameters).hex(" ")
    assert FUNCTIONS[name].decode(found, 0, len(found), LIMITS) == (parameters, len(found))


def check_result(name: str, label: str, found: bytes) -> None:
    """Check a result of a function. A function without a result has no bytes."""
    value = None if label in ("ok", "it has none") else value_of(label)
    if isinstance(value, InterfaceError):
        assert found.hex(" ") == encode_error(value).hex(" ")
        with pytest.raises(type(value), match=re.escape(str(value))):
            FUNCTIONS[name].decode_result(found, 0, len(found))
    else:
        assert found.hex(" ") == FUNCTIONS[name].encode_result(value).hex(" ")
        assert FUNCTIONS[name].decode_result(found, 0, len(found)) == (value, len(found))


#: A result or parameters that contain a value of each type: the bytes before it, and the bytes after it.
AROUND: dict[str, tuple[str, str, str]] = {
    "u64": ("increment", "00", ""),
    "bool": ("exists", "00", ""),
    "string": ("list-keys", "00 01", "00"),
    "list<u8>": ("get", "00 01", ""),
    "list<string>": ("list-keys", "00", "00"),
    "option<u64>": ("list-keys", "00 00", ""),
    "error": ("get", "01", ""),
    "key-response": ("list-keys", "00", ""),
}
#: The same in the document's words.
LABELS = {"string": "{{keys: [{}], cursor: none}}", "list<string>": "{{keys: {}, cursor: none}}"}
LABELS |= {"option<u64>": "{{keys: [], cursor: {}}}", "list<u8>": "bytes({})"}


def test_values() -> None:
    rows = table("type")
    shown = []
    for cell, _wire, label, found in rows:
        type_ = cell.split("`")[1]
        name, before, after = AROUND[type_]
        whole = bytes.fromhex(f"{before} {found.strip('`')} {after}")
        check_result(name, LABELS.get(type_, "{}").format(label.strip("`")), whole)
        shown.append(type_)
    assert set(shown) == set(AROUND)


def test_parameters_and_results() -> None:
    called, answered = set(), set()
    for call, parameters, result, found in table("call"):
        label = call.removesuffix(" after it").strip("`")
        name = "get" if label == "any" else call_of(label)[0]
        if label != "any":
            check(label, hex_bytes(parameters))
            called.add(name)
        check_result(name, result.strip("`"), hex_bytes(found))
        answered.add(result.strip("`"))
    assert called == set(FUNCTIONS)
    assert {"err(no-such-store)", "err(access-denied)", 'err(other("full"))'} < answered


def test_the_explained_parameters() -> None:
    (text,) = re.findall(r"`(set\(.*?\))`:\n\n```", DOCUMENT)
    (block,) = (block for block in blocks() if re.match(HEX, block))
    found = [re.fullmatch(rf"({HEX}) {{4,}}(\w+): (\d+) bytes, \"(.*)\"", line) for line in block.splitlines()]
    explained = []
    for line in found:
        assert line is not None
        written = bytes.fromhex(line[1])
        assert written == bytes([int(line[3])]) + line[4].encode()
        explained.append((line[2], written))
    assert [name for name, _ in explained] == ["bucket", "key", "value"]
    check(text, b"".join(written for _, written in explained))


def test_no_bytes_are_left_unchecked() -> None:
    """Bytes are only in the two tables, in the explained block and in conversations."""
    rows = [cell for row in (*table("type"), *table("call")) for cell in row]
    prose = re.sub(r"^```.*?^```$", "", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(rf"`({HEX})`", prose)
    assert len(spans) > 20
    assert spans == [cell.strip("`") for cell in rows if re.fullmatch(rf"`{HEX}`", cell)]
    others = [block for block in blocks() if not re.match(rf"client|{HEX}  ", block)]
    assert [block for block in others if re.search(r"\b[0-9a-f]{2} [0-9a-f]{2}\b", block)] == []


class Line(NamedTuple):
    """A message of a conversation."""

    to_provider: bool
    send: Send


def conversations() -> Iterator[list[Line]]:
    """Return the blocks that draw messages."""
    for block in blocks():
        if not block.startswith("client"):
            continue
        lines = []
        for text in block.splitlines():
            found = re.fullmatch(rf"client (──>|<──) (\S+) +(?:reply (\S+) +)?(empty|{HEX})", text)
            assert found is not None, text
            payload = b"" if found[4] == "empty" else bytes.fromhex(found[4])
            lines.append(Line(found[1] == "──>", Send(found[2], payload, found[3] or "")))
        yield lines


def pieces(lines: list[Line], to_provider: bool) -> list[bytes]:
    """Return the payloads of parameters or of results, including closing messages."""
    return [line.send.payload for line in lines if line.to_provider == to_provider and line.send.reply in ("", "R_c")]


#: The conversations, in the document's order.
WHOLE, CUT, FAILED = range(3)


@pytest.fixture(params=[WHOLE, CUT, FAILED], ids=["whole", "cut", "failed"])
def lines(request: pytest.FixtureRequest) -> list[Line]:
    found = list(conversations())
    assert len(found) == 3
    return found[request.param]


def test_conversations_at_the_provider(lines: list[Line]) -> None:
    store = Store()
    store.bucket(b"colours").set(b"sky", b"blue")
    handlers = store_handlers(Service(store), LIMITS)
    first, *_ = pieces(lines, to_provider=False)
    invocations = Invocations(
        SubjectReplies("inbox", "R_s", SimpleNamespace(max_payload=len(first) or 1)), lambda: "token"
    )
    sends: list[Send] = []
    for to_provider, send in lines:
        if not to_provider:
            sent = sends.pop(0)
            assert sent._replace(reply=sent.reply.replace("inbox.token", "R_s")) == send
        elif send.reply:
            assert send.subject == invocation_subject("default.kv", STORE, "get")
            sends += invoke(invocations, handlers["get"], send.reply, ANONYMOUS, send.payload, 0.0).sends
        else:
            assert send.subject == "R_s.params"
            sends += invocations.receive_params("token", send.payload, 0.0).sends
    assert sends == []
    assert invocations.half_open == invocations.counts.stray_pieces == 0


def test_conversations_at_the_client(lines: list[Line]) -> None:
    sent = pieces(lines, to_provider=True)
    call = Call(b"".join(sent), decode_get_result, len(sent[0]), len(sent[0]))
    subject = invocation_subject("default.kv", STORE, "get")
    assert Send(subject, call.start(), "R_c") == lines[0].send
    further = [Send(params_subject("R_s"), piece) for piece in call.accepted()]
    assert further == [line.send for line in lines[1:] if line.to_provider]
    for result in pieces(lines, to_provider=False):
        call.result(result)
    assert call.done
    if len(pieces(lines, to_provider=False)) > 1:
        assert call.value == b"blue"
    else:
        assert isinstance(call.error, InvocationEndedError)


def test_the_conversations_show_what_their_sections_say() -> None:
    found = list(conversations())
    sky = encode_bucket_key(b"colours", b"sky")
    assert pieces(found[WHOLE], to_provider=True) == [sky, b""]
    assert pieces(found[CUT], to_provider=True) == [sky[:10], sky[10:], b""]
    assert pieces(found[WHOLE], to_provider=False) == [encode_get_result(b"blue"), b""]
    assert len(pieces(found[CUT], to_provider=False)) == 3
    assert pieces(found[FAILED], to_provider=True) == [encode_bucket_key(b"a\xff", b"sky"), b""]
    assert pieces(found[FAILED], to_provider=False) == [b""]


def test_limits() -> None:
    invocations, store = InvocationLimits(), StoreOptions()
    parameters = Service(Store()).parameter_limits
    rows = {name: default for name, default, _beyond in table("limit")}
    assert {name: int(default.partition(";")[0].replace(",", "")) for name, default in rows.items()} == {
        "bytes of a bucket's name": parameters.bucket_bytes_max,
        "bytes of a key": parameters.key_bytes_max,
        "bytes of a value": parameters.value_bytes_max,
        "keys of a batch": parameters.batch_keys_max,
        "bytes of the keys and values in an answer of `get-many`": parameters.answer_bytes_max,
        "half-open invocations": invocations.half_open_max,
        "bytes held for them": invocations.half_open_bytes_max,
        "bytes that they still expect": invocations.expected_bytes_max,
        "seconds until the handshake, or the next piece, of a half-open invocation": invocations.half_open_timeout_s,
        "seconds until all pieces of a half-open invocation": invocations.half_open_lifetime_s,
        "invocations that wait for an answer": invocations.waiting_max,
        f"bytes held for calls that wait until their large result can be sent, and as much for calls that wait until NATS has read earlier answers; each call counts its parameters and {CALL_BYTES} bytes, each caller {HOLDER_BYTES:,} bytes, and a caller may hold a quarter (direct path)": invocations.queued_bytes_max,
        "seconds until the result of such a call can be sent": invocations.queued_timeout_s,
        "messages received but not handled, for each function (plain path; the direct path stops reading)": connection.PENDING_MESSAGES_MAX,
        "bytes of such messages": connection.PENDING_BYTES_MAX,
        "keys of a page of `list-keys`": store.page_keys_max,
        "bytes of a page of `list-keys`": store.page_bytes_max,
        "bytes of an error's message, in our client": keyvalue.MESSAGE_BYTES_MAX,
        "bytes of a result, in our client": inspect.signature(Call).parameters["result_bytes_max"].default,
    }


@pytest.mark.parametrize("instance", [STORE, ATOMICS, BATCH, WATCHER])
def test_the_interfaces_are_those_of_wit(instance: str) -> None:
    package = (ROOT / "wit" / "deps" / "wrpc-keyvalue-0.2.0-draft" / "package.wit").read_text()
    name = instance.partition("/")[2].partition("@")[0]
    (interface,) = re.findall(rf"^interface {name} \{{$(.*?)^\}}$", package, re.MULTILINE | re.DOTALL)
    said = re.search(
        rf"^(?:.* )?[Tt]he instance `{re.escape(instance)}`(, with the error of `store`)?:\n\n```wit\n(.*?)^```$",
        DOCUMENT,
        re.MULTILINE | re.DOTALL,
    )
    assert said is not None
    assert normal_wit(said[2]) == normal_wit(interface.replace("use store.{error};", ""))
    assert bool(said[1]) == ("use store.{error};" in interface)


def normal_wit(text: str) -> str:
    """Return WIT without comments, trailing commas and layout."""
    return " ".join(re.sub(r"///.*", "", text).split()).replace(", }", " }")


# The readers of the document can fail.


def test_a_changed_byte_is_found() -> None:
    for name, label, changed in (("increment", "ok(300)", "00 ac 03"), ("get", "err(no-such-store)", "01 01")):
        with pytest.raises(AssertionError, match=f"assert '{changed}' == "):
            check_result(name, label, bytes.fromhex(changed))
    with pytest.raises(AssertionError, match="assert '01 30 01 6c' == '01 30 01 6b'"):
        check('on-delete("0", "k")', bytes.fromhex("01 30 01 6c"))


def test_tables_and_blocks_are_read() -> None:
    text = "| a | b |\n|---|---|\n| 1 | `2` |\n\n```\nx\n```\n\n```wit\ny\nz\n```\n"
    assert table("a", text) == [["1", "`2`"]]
    assert blocks(text) == ["x\n", "y\nz\n"]
    assert normal_wit("a: b; /// why\n  c { d, }") == "a: b; c { d }"
