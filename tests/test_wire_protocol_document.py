"""docs/wire-protocol.md is true: its bytes against the codec, its conversations against server and client, its limits, its interface."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue import interface as keyvalue
from keyvalue_transport.keyvalue.atomics import (
    ATOMICS,
    decode_increment,
    decode_increment_result,
    encode_increment,
    encode_increment_result,
)
from keyvalue_transport.keyvalue.batch import (
    BATCH,
    batch_handlers,
    decode_delete_many,
    decode_get_many,
    decode_get_many_result,
    decode_set_many,
    encode_bucket_keys,
    encode_get_many_result,
    encode_set_many,
)
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import (
    ParameterLimits,
    decode_unit_result,
    encode_bucket_key,
    encode_error,
    encode_unit_result,
)
from keyvalue_transport.keyvalue.store import (
    STORE,
    KeyResponse,
    decode_delete,
    decode_exists,
    decode_get,
    decode_get_result,
    decode_key_response,
    decode_list_keys,
    decode_set,
    decode_truth_result,
    encode_get_result,
    encode_key_response,
    encode_list_keys,
    encode_set,
    encode_truth_result,
    store_handlers,
)
from keyvalue_transport.keyvalue.watcher import (
    WATCHER,
    decode_nothing,
    decode_on_delete,
    decode_on_set,
    encode_on_delete,
    encode_on_set,
)
from keyvalue_transport.nats import connection
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.subjects import invocation_subject, params_subject
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import InvocationEndedError
from keyvalue_transport.wrpc.handler import ANONYMOUS
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from keyvalue_transport.wrpc.values import (
    U64_MAX,
    read_bool,
    read_bytes,
    read_text,
    read_unsigned,
    write_length,
    write_unsigned,
)
from tests.invoking import invoke
from tests.transport.keyvalue.test_batch import PlainBatch

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "wire-protocol.md").read_text()
HEX = r"[0-9a-f]{2}(?: [0-9a-f]{2})*"
LIMITS = ParameterLimits()


def table(first_column: str, text: str = DOCUMENT) -> list[list[str]]:
    """The cells of the table whose first column has this name, without the head."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def blocks(text: str = DOCUMENT) -> list[str]:
    """The fenced blocks."""
    return re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def hex_bytes(cell: str) -> bytes:
    return bytes.fromhex(cell.strip("`"))


class Example(NamedTuple):
    """What the codec writes for a value, and how it reads it."""

    written: bytes
    value: object
    read: Callable[[bytes], tuple[object, int]]


def whole(
    read: Callable[..., tuple[Any, int]], *arguments: object, before: bytes = b"", behind: bytes = b""
) -> Callable[[bytes], tuple[object, int]]:
    """Reads a value between bytes that make it a whole parameter or result; the offset is the one in the value."""

    def read_all(written: bytes) -> tuple[object, int]:
        buffer = before + written + behind
        value, at = read(buffer, 0, len(buffer), *arguments)
        return value, at - len(before) - len(behind)

    return read_all


VALUES = {
    "300": Example(write_unsigned(300), 300, whole(read_unsigned, 64)),
    "18446744073709551615": Example(write_unsigned(U64_MAX), U64_MAX, whole(read_unsigned, 64)),
    "true": Example(encode_truth_result(True)[1:], True, whole(read_bool)),
    '"ключ"': Example(write_length(8) + "ключ".encode(), "ключ".encode(), whole(read_text, 64, "text")),
    "[255, 0]": Example(encode_get_result(b"\xff\x00")[2:], b"\xff\x00", whole(read_bytes, 64, "value")),
    '["a", "bc"]': Example(
        encode_key_response(KeyResponse([b"a", b"bc"], None))[1:-1],
        KeyResponse([b"a", b"bc"], None),
        whole(decode_key_response, before=b"\x00", behind=b"\x00"),
    ),
    "some(300)": Example(encode_list_keys(b"", 300)[1:], (b"", 300), whole(decode_list_keys, LIMITS, before=b"\x00")),
    '{keys: ["a"], cursor: none}': Example(
        encode_key_response(KeyResponse([b"a"], None))[1:],
        KeyResponse([b"a"], None),
        whole(decode_key_response, before=b"\x00"),
    ),
}
ERRORS = {
    "no-such-store": NoSuchStoreError(),
    "access-denied": AccessDeniedError(),
    'other("full")': OtherError("full"),
}
SKY = (b"colours", b"sky")
SEA = (b"colours", b"sea")
PARAMETERS = {
    'get("colours", "sky")': Example(encode_bucket_key(*SKY), SKY, whole(decode_get, LIMITS)),
    'get("colours", "sea")': Example(encode_bucket_key(*SEA), SEA, whole(decode_get, LIMITS)),
    'set("colours", "sea", "")': Example(encode_set(*SEA, b""), (*SEA, b""), whole(decode_set, LIMITS)),
    'set("colours", "sky", "blue")': Example(encode_set(*SKY, b"blue"), (*SKY, b"blue"), whole(decode_set, LIMITS)),
    'exists("colours", "sea")': Example(encode_bucket_key(*SEA), SEA, whole(decode_exists, LIMITS)),
    'delete("colours", "sea")': Example(encode_bucket_key(*SEA), SEA, whole(decode_delete, LIMITS)),
    'list-keys("colours", none)': Example(
        encode_list_keys(b"colours", None), (b"colours", None), whole(decode_list_keys, LIMITS)
    ),
    'list-keys("colours", some(300))': Example(
        encode_list_keys(b"colours", 300), (b"colours", 300), whole(decode_list_keys, LIMITS)
    ),
    'increment("colours", "seen", 300)': Example(
        encode_increment(b"colours", b"seen", 300), (b"colours", b"seen", 300), whole(decode_increment, LIMITS)
    ),
    'get-many("colours", ["sky", "sun"])': Example(
        encode_bucket_keys(b"colours", [b"sky", b"sun"]),
        (b"colours", [b"sky", b"sun"]),
        whole(decode_get_many, LIMITS),
    ),
    'set-many("colours", [("sky", "blue"), ("sea", "")])': Example(
        encode_set_many(b"colours", [(b"sky", b"blue"), (b"sea", b"")]),
        (b"colours", {b"sky": b"blue", b"sea": b""}),
        whole(decode_set_many, LIMITS),
    ),
    'delete-many("colours", ["sky"])': Example(
        encode_bucket_keys(b"colours", [b"sky"]), (b"colours", [b"sky"]), whole(decode_delete_many, LIMITS)
    ),
    'on-set("0", "sky", "blue")': Example(
        encode_on_set(b"0", b"sky", b"blue"), (b"0", b"sky", b"blue"), whole(decode_on_set, LIMITS)
    ),
    'on-delete("0", "sky")': Example(encode_on_delete(b"0", b"sky"), (b"0", b"sky"), whole(decode_on_delete, LIMITS)),
}
PAGE, LAST_PAGE = KeyResponse([b"sky"], 300), KeyResponse([], None)
RESULTS = {
    'ok(some("blue"))': Example(encode_get_result(b"blue"), b"blue", whole(decode_get_result)),
    'ok(some(""))': Example(encode_get_result(b""), b"", whole(decode_get_result)),
    "ok(none)": Example(encode_get_result(None), None, whole(decode_get_result)),
    "ok": Example(encode_unit_result(None), None, whole(decode_unit_result)),
    "ok(true)": Example(encode_truth_result(True), True, whole(decode_truth_result)),
    'ok({keys: ["sky"], cursor: some(300)})': Example(encode_key_response(PAGE), PAGE, whole(decode_key_response)),
    "ok({keys: [], cursor: none})": Example(encode_key_response(LAST_PAGE), LAST_PAGE, whole(decode_key_response)),
    "ok(300)": Example(encode_increment_result(300), 300, whole(decode_increment_result)),
    'ok([some(("sky", "blue")), none])': Example(
        encode_get_many_result([b"sky", b"sun"], [b"blue", None], 100),
        [(b"sky", b"blue"), None],
        whole(decode_get_many_result),
    ),
    "it has none": Example(b"", None, whole(decode_nothing)),
}


def check(example: Example, found: bytes) -> None:
    assert found.hex(" ") == example.written.hex(" ")
    assert example.read(found) == (example.value, len(found))


def check_error(label: str, found: bytes) -> None:
    """Compares a result that is an error, from its tag on."""
    error = ERRORS[label]
    assert found == encode_error(error)
    with pytest.raises(type(error), match=re.escape(str(error))):
        decode_unit_result(found, 0, len(found))


def test_values() -> None:
    rows = table("type")
    assert len(rows) == len(VALUES) + 1
    for _type, _wire, label, found in rows:
        if label.strip("`") in ERRORS:
            check_error(label.strip("`"), b"\x01" + hex_bytes(found))
        else:
            check(VALUES[label.strip("`")], hex_bytes(found))


def test_parameters_and_results() -> None:
    rows = table("call")
    assert {call.removesuffix(" after it").strip("`") for call, *_ in rows} == {
        "any",
        *PARAMETERS.keys() - {'set("colours", "sky", "blue")'},
    }
    labels = {result.strip("`") for _, _, result, _ in rows}
    assert labels == {*RESULTS, *(f"err({name})" for name in ERRORS)}
    for call, parameters, result, found in rows:
        if call == "any":
            check_error(result.strip("`").removeprefix("err(").removesuffix(")"), hex_bytes(found))
        else:
            check(PARAMETERS[call.removesuffix(" after it").strip("`")], hex_bytes(parameters))
            check(RESULTS[result.strip("`")], hex_bytes(found))


def test_the_parameters_that_are_explained() -> None:
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
    check(PARAMETERS[text], b"".join(written for _, written in explained))


def test_no_bytes_are_left_unchecked() -> None:
    """Bytes stand in the two tables, in the block that is explained and in conversations, and nowhere else."""
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
    """The blocks that draw messages."""
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
    """The payloads of parameters or of results, closing messages among them."""
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
    (sky,) = (example for label, example in PARAMETERS.items() if label == 'get("colours", "sky")')
    assert pieces(found[WHOLE], to_provider=True) == [sky.written, b""]
    assert pieces(found[CUT], to_provider=True) == [sky.written[:10], sky.written[10:], b""]
    assert pieces(found[WHOLE], to_provider=False) == [RESULTS['ok(some("blue"))'].written, b""]
    assert len(pieces(found[CUT], to_provider=False)) == 3
    assert pieces(found[FAILED], to_provider=True) == [encode_bucket_key(b"a\xff", b"sky"), b""]
    assert pieces(found[FAILED], to_provider=False) == [b""]


def test_limits() -> None:
    invocations, store = InvocationLimits(), StoreOptions()
    parameters = Service(Store()).parameter_limits
    rows = {name: default for name, default, _beyond in table("limit")}
    assert {name: int(default.replace(",", "")) for name, default in rows.items()} == {
        "bytes of a bucket's name": parameters.bucket_bytes_max,
        "bytes of a key": parameters.key_bytes_max,
        "bytes of a value": parameters.value_bytes_max,
        "keys of a batch": parameters.batch_keys_max,
        "bytes of the keys and values in an answer of `get-many`": parameters.answer_bytes_max,
        "half-open invocations": invocations.half_open_max,
        "bytes held for them": invocations.half_open_bytes_max,
        "seconds until the next piece of a half-open invocation": invocations.half_open_timeout_s,
        "seconds until all pieces of a half-open invocation": invocations.half_open_lifetime_s,
        "invocations that wait for an answer": invocations.waiting_max,
        "messages received but not handled, for each function (plain path; the direct path stops reading)": connection.PENDING_MESSAGES_MAX,
        "bytes of such messages": connection.PENDING_BYTES_MAX,
        "keys of a page of `list-keys`": store.page_keys_max,
        "bytes of a page of `list-keys`": store.page_bytes_max,
        "bytes of an error's message, in our client": keyvalue.MESSAGE_BYTES_MAX,
        "bytes of a result, in our client": inspect.signature(Call).parameters["result_bytes_max"].default,
    }


def test_a_length_beyond_its_limit_is_answered_before_its_bytes_come() -> None:
    handlers = store_handlers(Service(Store()), LIMITS)
    sent = encode_set(b"b", b"k", b"")[:-1] + write_length(LIMITS.value_bytes_max + 1)
    result = handlers["set"](ANONYMOUS, sent, 0, len(sent))
    assert result == encode_error(OtherError("value is 16777217 bytes; the limit is 16777216 (value_bytes_max)"))


def test_a_batch_beyond_its_limit_is_answered_before_its_keys_come() -> None:
    batch = PlainBatch()
    sent = b"\x01b" + write_length(LIMITS.batch_keys_max + 1)
    for name, handler in batch_handlers(batch, LIMITS).items():
        result = handler(ANONYMOUS, sent, 0, len(sent))
        assert result == encode_error(OtherError("the batch has 10001 keys; the limit is 10000 (batch_keys_max)")), name
    assert batch.callers == []


def test_an_answer_of_get_many_beyond_its_limit() -> None:
    with pytest.raises(OtherError, match=r"^the answer is at least 3 bytes; the limit is 2 \(answer_bytes_max\)$"):
        encode_get_many_result([b"k"], [b"vv"], 2)


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
    """WIT without comments, trailing commas and layout."""
    return " ".join(re.sub(r"///.*", "", text).split()).replace(", }", " }")


# The readers of the document can fail.


def test_a_changed_byte_is_found() -> None:
    with pytest.raises(AssertionError, match="assert 'ac 03' == 'ac 02'"):
        check(VALUES["300"], bytes.fromhex("ac 03"))
    with pytest.raises(AssertionError):
        check_error("no-such-store", b"\x01\x01")


def test_tables_and_blocks_are_read() -> None:
    text = "| a | b |\n|---|---|\n| 1 | `2` |\n\n```\nx\n```\n\n```wit\ny\nz\n```\n"
    assert table("a", text) == [["1", "`2`"]]
    assert blocks(text) == ["x\n", "y\nz\n"]
    assert normal_wit("a: b; /// why\n  c { d, }") == "a: b; c { d }"


def test_errors_of_the_table_are_all_there_are() -> None:
    assert {type(error) for error in ERRORS.values()} == {
        kind for kind in InterfaceError.__subclasses__() if kind.__module__ == "keyvalue_transport.keyvalue.errors"
    }
