"""`wit/` and the code agree: the interface's functions, the handlers, the client, the bytes, and the instances that the provider serves.

`differences` compares one interface. The tests below it alter copies of `wit/`, and the code, to prove that it finds
each kind of difference.
"""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import pytest

from keyvalue_transport.keyvalue import errors, store
from keyvalue_transport.keyvalue.atomics import ATOMICS, AtomicsInterface, atomics_handlers
from keyvalue_transport.keyvalue.batch import BATCH, BatchInterface, batch_handlers
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.keyvalue.interface import ParameterLimits, decode_unit_result, encode_error
from keyvalue_transport.keyvalue.store import STORE, KeyResponse, StoreInterface, store_handlers
from keyvalue_transport.keyvalue.watcher import WATCHER, WatcherInterface, watcher_handlers
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, Handler, HandlerResult, LargeResult, Pending
from tests.transport.keyvalue.functions import Noted

ROOT = Path(__file__).parent.parent
WASM_TOOLS = Path(sys.executable).with_name("wasm-tools")
WORLD = "provider-keyvalue-inmemory"


@dataclass(frozen=True)
class Form:
    """The form in which the code has a list, if it is not the sequence that `wit/` has.

    :param made: converts a sample of the sequence
    """

    name: str
    hint: Any
    made: Callable[[Any], Any]


@dataclass(frozen=True)
class Binding:
    """The code of one interface.

    :param client: None: another component serves it, and the provider is the caller
    :param forms: by "function parameter", and by "function" for results
    :param asked: for functions whose result repeats their last parameter: returns it from the result
    """

    instance: str
    protocol: type
    handlers: Callable[[Any, ParameterLimits], dict[str, Handler]]
    client: type | None = KeyValueClient
    forms: Mapping[str, Form] = field(default_factory=dict)
    asked: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


STORE_BINDING = Binding(STORE, StoreInterface, store_handlers)
ATOMICS_BINDING = Binding(ATOMICS, AtomicsInterface, atomics_handlers)
BATCH_BINDING = Binding(
    BATCH,
    BatchInterface,
    batch_handlers,
    forms={
        "get-many keys": Form("keys", list[bytes], list),
        "get-many": Form("", list[bytes | None], lambda pairs: [None if pair is None else pair[1] for pair in pairs]),
        "set-many key-values": Form("entries", dict[bytes, bytes], dict),
        "delete-many keys": Form("keys", list[bytes], list),
    },
    asked={"get-many": lambda pairs: [b"not there" if pair is None else pair[0] for pair in pairs]},
)
WATCHER_BINDING = Binding(WATCHER, WatcherInterface, watcher_handlers, client=None)
#: To serve another instance, add a line here, an export in wit/world.wit, and its `add` in provider/keyvalue_provider/process.py.
SERVED = (STORE_BINDING, ATOMICS_BINDING, BATCH_BINDING)
BINDINGS = (*SERVED, WATCHER_BINDING)


class Wit:
    """A directory of WIT, as wasm-tools resolves it.

    A type is the name of a primitive, or its index among the types.
    """

    def __init__(self, directory: Path) -> None:
        if not WASM_TOOLS.exists():
            pytest.fail(f"{WASM_TOOLS} is missing: scripts/setup installs wasm-tools")
        run = subprocess.run(
            [WASM_TOOLS, "component", "wit", directory, "--json"], capture_output=True, text=True, timeout=20
        )
        if run.returncode:
            pytest.fail(f"wasm-tools does not accept wit/:\n{run.stderr}")
        resolved = json.loads(run.stdout)
        self._types: list[dict[str, Any]] = resolved["types"]
        self._packages: list[dict[str, Any]] = resolved["packages"]
        self._interfaces: list[dict[str, Any]] = resolved["interfaces"]
        self._worlds: list[dict[str, Any]] = resolved["worlds"]
        #: Interfaces by the names of their instances: `namespace:package/interface@version`.
        self.instances = {self._instance(interface): interface for interface in self._interfaces}

    def exports(self, world: str) -> set[str]:
        """Return the instances that the world exports."""
        return self._edges(world, "exports")

    def imports(self, world: str) -> set[str]:
        """Return the instances that the world imports."""
        return self._edges(world, "imports")

    def _edges(self, world: str, way: str) -> set[str]:
        (found,) = (each for each in self._worlds if each["name"] == world)
        return {self._instance(self._interfaces[each["interface"]["id"]]) for each in found[way].values()}

    def kind(self, type_: str | int) -> Any:
        """Return the definition of a type, with aliases resolved."""
        while not isinstance(type_, str):
            match self._types[type_]["kind"]:
                case {"type": aliased}:
                    type_ = aliased
                case kind:
                    return kind
        return type_

    def annotation(self, type_: str | int | None) -> Any:
        """Return the annotation that the code has for the type.

        For a result, it is the ok type: the code raises errors.
        """
        if type_ is None:
            return type(None)
        match self.kind(type_):
            case "string" | {"list": "u8"}:
                return bytes
            case "u64":
                return int
            case "bool":
                return bool
            case {"list": element}:
                return Sequence[self.annotation(element)]  # type: ignore[misc] # made at run time
            case {"option": some}:
                return self.annotation(some) | None
            case {"result": {"ok": ok}}:
                return self.annotation(ok)
            case {"tuple": {"types": types}}:
                return tuple.__class_getitem__(tuple(map(self.annotation, types)))
            case {"record": _}:
                name = self._types[int(type_)]["name"]
                return getattr(store, "".join(map(str.capitalize, name.split("-"))), name)
            case kind:
                pytest.fail(f"no annotation is known for {kind}")

    def samples(self, type_: str | int | None) -> list[Any]:
        """Return values of the type, including those at its limits."""
        if type_ is None:
            return [None]
        match self.kind(type_):
            case "string":
                return [b"", "ведро".encode(), b"k" * 200]
            case {"list": "u8"}:
                return [b"", bytes(range(256))]
            case "u64":
                return [0, 127, 128, 2**64 - 1]
            case "bool":
                return [False, True]
            case {"list": element}:
                return [[], self.samples(element)]
            case {"option": some}:
                return [None, *self.samples(some)]
            case {"result": {"ok": ok}}:
                return self.samples(ok)
            case {"tuple": {"types": types}}:
                return list(self.rows(types))
            case {"record": {"fields": fields}}:
                return list(map(self.annotation(type_)._make, self.rows(field["type"] for field in fields)))
            case kind:
                pytest.fail(f"no samples are known for {kind}")

    def rows(self, types: Iterable[str | int]) -> Iterator[tuple[Any, ...]]:
        """Yield rows with one value of each type, until every sample of every type is used."""
        columns = list(map(self.samples, types))
        for index in range(max(map(len, columns))):
            yield tuple(column[index % len(column)] for column in columns)

    def encode(self, type_: str | int | None, value: Any) -> bytes:
        """Return the value on the wire, from its type only.

        This is a second implementation, independent of the codec. A result is ok.
        """
        if type_ is None:
            return b""
        match self.kind(type_):
            case "string" | {"list": "u8"}:
                return leb128(len(value)) + bytes(value)
            case "u64":
                return leb128(value)
            case "bool":
                return bytes([value])
            case {"list": element}:
                return leb128(len(value)) + b"".join(self.encode(element, each) for each in value)
            case {"option": some}:
                return b"\x00" if value is None else b"\x01" + self.encode(some, value)
            case {"result": {"ok": ok}}:
                return b"\x00" + self.encode(ok, value)
            case {"tuple": {"types": types}}:
                return b"".join(map(self.encode, types, value))
            case {"record": {"fields": fields}}:
                return b"".join(self.encode(field["type"], each) for field, each in zip(fields, value, strict=True))
            case kind:
                pytest.fail(f"no encoding is known for {kind}")

    def _instance(self, interface: dict[str, Any]) -> str:
        package, at, version = self._packages[interface["package"]]["name"].partition("@")
        return f"{package}/{interface['name']}{at}{version}"


def leb128(number: int) -> bytes:
    groups = [number & 127]
    while number := number >> 7:
        groups.append(number & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def differences(wit: Wit, binding: Binding) -> list[str]:
    """Return the differences between one interface of `wit/` and the code, one per line. Each names the function."""
    interface = wit.instances.get(binding.instance)
    if interface is None:
        return [f"the code serves {binding.instance}, wit/ has {', '.join(sorted(wit.instances))}"]
    functions = interface["functions"]
    backend = Noted()
    handlers = binding.handlers(backend, ParameterLimits())
    protocol = {
        name.replace("_", "-"): member for name, member in vars(binding.protocol).items() if not name.startswith("_")
    }
    found = _record_differences(wit, interface)
    for place, names in ((binding.protocol.__name__, protocol.keys()), ("the handlers", handlers.keys())):
        found += [f"{name}: in wit/, not in {place}" for name in functions if name not in names]
        found += [f"{name}: in {place}, not in wit/" for name in names if name not in functions]
    for name, function in functions.items():
        wrong = [] if binding.client is None else _client_differences(wit, binding, binding.client, name, function)
        if name in protocol:
            wrong += _signature_differences(wit, binding, name, function, protocol[name])
        if name in protocol and name in handlers and not wrong and not found:
            wrong += _byte_differences(wit, binding, name, function, handlers[name], backend)
        found += wrong
    return found + (_error_differences(interface, wit) if "error" in interface["types"] else [])


def _parameter(wit: Wit, binding: Binding, name: str, parameter: dict[str, Any]) -> tuple[str, str]:
    """Return name and type of a parameter in the code."""
    form = binding.forms.get(f"{name} {parameter['name']}")
    if form is None:
        return _snake(parameter["name"]), _text(wit.annotation(parameter["type"]))
    return form.name, _text(form.hint)


def _result(wit: Wit, binding: Binding, name: str, function: dict[str, Any]) -> Any:
    """Return the type of a function's result in the code."""
    form = binding.forms.get(name)
    return wit.annotation(function.get("result")) if form is None else form.hint


def _made(binding: Binding, what: str, sample: Any) -> Any:
    """Return a sample as the code has it."""
    form = binding.forms.get(what)
    return sample if form is None else form.made(sample)


def _record_differences(wit: Wit, interface: dict[str, Any]) -> list[str]:
    found = []
    for name, type_ in interface["types"].items():
        match wit.kind(type_):
            case {"record": {"fields": fields}}:
                record = wit.annotation(type_)
                if isinstance(record, str):
                    found.append(f"{name}: a record in wit/, no class of keyvalue_transport.keyvalue.store")
                    continue
                here = [(key, _text(hint)) for key, hint in get_type_hints(record).items()]
                there = [(_snake(field["name"]), _text(wit.annotation(field["type"]))) for field in fields]
                if here != there:
                    found.append(f"{name}: {record.__name__} has {_listed(here)}, wit/ has {_listed(there)}")
    return found


def _signature_differences(
    wit: Wit, binding: Binding, name: str, function: dict[str, Any], method: Callable[..., Any]
) -> list[str]:
    hints = get_type_hints(method)
    answer: Any = hints.pop("return")
    here = [(key, _text(hint)) for key, hint in hints.items()]
    there = [("caller", "Caller"), *(_parameter(wit, binding, name, each) for each in function["params"])]
    found = []
    if here != there:
        found.append(f"{name}: the Protocol takes {_listed(here)}, wit/ says {_listed(there)}")
    awaited = [get_args(each)[0] for each in get_args(answer) if get_origin(each) is Awaitable]
    result = _result(wit, binding, name, function)
    if awaited != [result]:
        found.append(
            f"{name}: the Protocol gives {', '.join(map(_text, awaited)) or answer}, wit/ says {_text(result)}"
        )
    return found


def _client_differences(wit: Wit, binding: Binding, client: type, name: str, function: dict[str, Any]) -> list[str]:
    method = getattr(client, _snake(name), None)
    if not inspect.iscoroutinefunction(method):
        return [f"{name}: {client.__name__} has no coroutine function {_snake(name)}"]
    found = []
    here = list(inspect.signature(method).parameters)[1:]
    there = [_parameter(wit, binding, name, each)[0] for each in function["params"]]
    if here != there:
        found.append(f"{name}: {client.__name__} takes ({', '.join(here)}), wit/ says ({', '.join(there)})")
    answer, result = get_type_hints(method)["return"], _result(wit, binding, name, function)
    if answer != result:
        found.append(f"{name}: {client.__name__} gives {_text(answer)}, wit/ says {_text(result)}")
    return found


def _byte_differences(
    wit: Wit, binding: Binding, name: str, function: dict[str, Any], handler: Handler, backend: Noted
) -> Iterator[str]:
    """Send samples of every type through the handler. Yield what is read or written differently."""
    names = [each["name"] for each in function["params"]]
    types = [each["type"] for each in function["params"]]
    result_type = function.get("result")
    answers = wit.samples(result_type)
    asked = binding.asked.get(name)

    def called(parameters: tuple[Any, ...], answer: Any) -> tuple[tuple[Any, ...], bytes, HandlerResult]:
        """Call the handler. Return the expected call, the bytes that were sent, and the answer."""
        if asked is not None:
            parameters = (*parameters[:-1], asked(answer))
        sent = b"".join(map(wit.encode, types, parameters))
        backend.answer = _made(binding, name, answer)
        read = [_made(binding, f"{name} {each}", value) for each, value in zip(names, parameters, strict=True)]
        result = handler(ANONYMOUS, sent, 0, len(sent))
        return (name, *read), sent, result.encode() if isinstance(result, LargeResult) else result

    for index, parameters in enumerate(wit.rows(types)):
        read, sent, _ = called(parameters, answers[index % len(answers)])
        function_read, _, *values = backend.calls.pop()
        if (function_read, *values) != read:
            yield f"{name}: {sent.hex()} was read as {function_read}{tuple(values)}, wit/ says {read[1:]}"
    for answer in answers:
        _, _, result = called(parameters, answer)
        expected = wit.encode(result_type, answer)
        if result != expected:
            yield f"{name}: {answer!r} was written as {_hex(result)}, wit/ says {expected.hex()}"


def _error_differences(interface: dict[str, Any], wit: Wit) -> list[str]:
    """Compare the cases of the variant `error`: classes, order, payloads, bytes both ways."""
    cases = wit.kind(interface["types"]["error"])["variant"]["cases"]
    here = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, InterfaceError) and kind is not InterfaceError
    }
    there = {"".join(map(str.capitalize, case["name"].split("-"))) + "Error": case for case in cases}
    if here.keys() != there.keys():
        names = ", ".join(case["name"] for case in cases)
        return [f"error: wit/ has the cases {names}, keyvalue_transport.keyvalue.errors has {', '.join(sorted(here))}"]
    found = []
    for number, (class_name, case) in enumerate(there.items()):
        message = None if case["type"] is None else "сбой".encode()
        error = here[class_name](*([] if message is None else [message.decode()]))
        written = encode_error(error)
        expected = b"\x01" + leb128(number) + wit.encode(case["type"], message)
        if written != expected:
            found.append(f"error: {case['name']} is written as {written.hex()}, wit/ says {expected.hex()}")
            continue
        with pytest.raises(InterfaceError) as raised:
            decode_unit_result(written, 0, len(written))
        if type(raised.value) is not type(error) or str(raised.value) != str(error):
            found.append(f"error: {written.hex()} is read as {raised.value!r}, wit/ says {case['name']}")
    return found


def served(source: str) -> set[str]:
    """Return the instances that a module adds to its server, by the names of constants in `server.add(CONSTANT, ...)`."""
    return {
        {"STORE": STORE, "ATOMICS": ATOMICS, "BATCH": BATCH}[instance]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "server.add"
        for instance in [ast.unparse(node.args[0])]
    }


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _text(hint: Any) -> str:
    return str(hint).replace("collections.abc.", "") if get_args(hint) else hint.__name__


def _listed(pairs: list[tuple[str, str]]) -> str:
    return "(" + ", ".join(f"{name}: {kind}" for name, kind in pairs) + ")"


def _hex(result: object) -> str:
    return result.hex() if isinstance(result, bytes) else repr(result)


@pytest.fixture(scope="module")
def wit() -> Wit:
    return Wit(ROOT / "wit")


@pytest.mark.parametrize("binding", BINDINGS, ids=lambda binding: binding.instance)
def test_the_code_agrees_with_wit(wit: Wit, binding: Binding) -> None:
    found = differences(wit, binding)
    assert not found, "\n".join(found)


def test_the_world_exports_what_the_provider_serves_and_imports_what_it_calls(wit: Wit) -> None:
    assert wit.imports(WORLD) == {WATCHER}
    assert wit.exports(WORLD) == {binding.instance for binding in SERVED}
    assert served((ROOT / "provider" / "keyvalue_provider" / "process.py").read_text()) == wit.exports(WORLD)


def test_the_package_has_all_four_interfaces(wit: Wit) -> None:
    assert set(wit.instances) == {
        f"wrpc:keyvalue/{interface}@0.2.0-draft" for interface in ("store", "atomics", "batch", "watcher")
    }


def test_wit_can_be_encoded_as_a_component(tmp_path: Path) -> None:
    path = tmp_path / "world.wasm"
    subprocess.run([WASM_TOOLS, "component", "wit", ROOT / "wit", "--wasm", "-o", path], check=True, timeout=20)
    assert path.read_bytes().startswith(b"\x00asm")


# The comparison can fail.


def altered(directory: Path, old: str, new: str) -> Wit:
    """Return `wit/` with one text replaced by another."""
    shutil.copytree(ROOT / "wit", directory, dirs_exist_ok=True)
    count = 0
    for path in directory.rglob("*.wit"):
        text = path.read_text()
        count += text.count(old)
        path.write_text(text.replace(old, new))
    assert count, f"{old!r} is not in wit/"
    return Wit(directory)


LIST_KEYS = "list-keys: func(bucket: string, cursor: option<u64>) -> result<key-response, error>;"


@pytest.mark.parametrize(
    ("binding", "old", "new", "found"),
    [
        pytest.param(
            STORE_BINDING,
            "  exists: func(bucket: string, key: string) -> result<bool, error>;",
            "",
            ["exists: in StoreInterface, not in wit/", "exists: in the handlers, not in wit/"],
            id="missing in wit",
        ),
        pytest.param(
            STORE_BINDING,
            LIST_KEYS,
            f"{LIST_KEYS}\n  touch: func(bucket: string) -> result<_, error>;",
            [
                "touch: in wit/, not in StoreInterface",
                "touch: in wit/, not in the handlers",
                "touch: KeyValueClient has no coroutine function touch",
            ],
            id="missing in the code",
        ),
        pytest.param(
            STORE_BINDING,
            "set: func(bucket: string, key: string, value: list<u8>)",
            "set: func(key: string, bucket: string, value: list<u8>)",
            [
                "set: KeyValueClient takes (bucket, key, value), wit/ says (key, bucket, value)",
                "set: the Protocol takes (caller: Caller, bucket: bytes, key: bytes, value: bytes), "
                "wit/ says (caller: Caller, key: bytes, bucket: bytes, value: bytes)",
            ],
            id="parameters in another order",
        ),
        pytest.param(
            STORE_BINDING,
            "result<option<list<u8>>, error>",
            "result<list<u8>, error>",
            [
                "get: KeyValueClient gives bytes | None, wit/ says bytes",
                "get: the Protocol gives bytes | None, wit/ says bytes",
            ],
            id="another result",
        ),
        pytest.param(
            STORE_BINDING,
            "cursor: option<u64>,",
            "cursor: u64,",
            [
                "key-response: KeyResponse has (keys: Sequence[bytes], cursor: int | None), "
                "wit/ has (keys: Sequence[bytes], cursor: int)"
            ],
            id="field of another type",
        ),
        pytest.param(
            STORE_BINDING,
            "other(string)",
            "failed(string)",
            [
                "error: wit/ has the cases no-such-store, access-denied, failed, "
                "keyvalue_transport.keyvalue.errors has AccessDeniedError, NoSuchStoreError, OtherError"
            ],
            id="another case of error",
        ),
        pytest.param(
            STORE_BINDING,
            "    access-denied,\n    /// Anything else, in words.\n    other(string),",
            "    other(string),\n    access-denied,",
            [
                "error: other is written as 010208d181d0b1d0bed0b9, wit/ says 010108d181d0b1d0bed0b9",
                "error: access-denied is written as 0101, wit/ says 0102",
            ],
            id="error's cases in another order",
        ),
        pytest.param(
            STORE_BINDING,
            "@0.2.0-draft",
            "@0.3.0",
            [
                f"the code serves {STORE}, wit/ has wrpc:keyvalue/atomics@0.3.0, wrpc:keyvalue/batch@0.3.0, "
                "wrpc:keyvalue/store@0.3.0, wrpc:keyvalue/watcher@0.3.0"
            ],
            id="another version",
        ),
        pytest.param(
            BATCH_BINDING,
            "result<list<option<tuple<string, list<u8>>>>, error>",
            "result<list<tuple<string, option<list<u8>>>>, error>",
            ["get-many: [(b'', None), (b'\\xd0\\xb2\\xd0\\xb5\\xd0\\xb4\\xd1\\x80\\xd0\\xbe', b''), "],
            id="an option in another place",
        ),
        pytest.param(
            WATCHER_BINDING,
            "on-delete: func(bucket: string, key: string);",
            "on-delete: func(bucket: string, key: string) -> bool;",
            ["on-delete: the Protocol gives NoneType, wit/ says bool"],
            id="a result that should be missing",
        ),
    ],
)
def test_a_difference_in_wit_is_named(tmp_path: Path, binding: Binding, old: str, new: str, found: list[str]) -> None:
    named = differences(altered(tmp_path, old, new), binding)
    assert len(named) == len(found)
    assert all(line.startswith(start) for line, start in zip(named, found, strict=True)), named


class WithoutExists(Protocol):
    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bytes | None]: ...
    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...
    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]: ...
    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Answer[KeyResponse]: ...


class ClientThatBlocks(KeyValueClient):
    def exists(self, bucket: str | bytes, key: str | bytes) -> bool:  # type: ignore[override] # that is the fault
        return False


def altered_handlers(
    change: Callable[[dict[str, Handler]], Mapping[str, Handler]],
    made: Callable[..., dict[str, Handler]] = store_handlers,
) -> Callable[[Any, ParameterLimits], dict[str, Handler]]:
    """Return the handlers of an interface, with some of them replaced."""

    def handlers(service: Any, limits: ParameterLimits) -> dict[str, Handler]:
        found = made(service, limits)
        return {**found, **change(found)}

    return handlers


def with_result(handler: Handler, change: Callable[[bytes], bytes]) -> Handler:
    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        result = handler(caller, buffer, start, end)
        if isinstance(result, LargeResult):
            result = result.encode()
        assert isinstance(result, bytes)
        return change(result)

    return handle


MIXED_UP = altered_handlers(lambda found: {"exists": found["delete"]})
WITHOUT_CURSOR = altered_handlers(lambda found: {"list-keys": with_result(found["list-keys"], lambda page: page[:-1])})
TOO_MUCH = altered_handlers(lambda found: {"on-set": with_result(found["on-set"], lambda _: b"\x00")}, watcher_handlers)


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        (replace(STORE_BINDING, protocol=WithoutExists), "exists: in wit/, not in WithoutExists"),
        (replace(STORE_BINDING, handlers=lambda *_: {}), "get: in wit/, not in the handlers"),
        (replace(STORE_BINDING, client=ClientThatBlocks), "exists: ClientThatBlocks has no coroutine function exists"),
        (
            replace(STORE_BINDING, handlers=MIXED_UP),
            "exists: 0000 was read as delete(b'', b''), wit/ says (b'', b'')",
        ),
        (
            replace(STORE_BINDING, handlers=WITHOUT_CURSOR),
            "list-keys: KeyResponse(keys=[], cursor=None) was written as 0000, wit/ says 000000",
        ),
        (replace(WATCHER_BINDING, handlers=TOO_MUCH), "on-set: None was written as 00, wit/ says "),
    ],
    ids=["Protocol", "handlers", "client", "another function's handler", "bytes", "a result that should be missing"],
)
def test_a_difference_in_the_code_is_named(wit: Wit, changed: Binding, first: str) -> None:
    assert differences(wit, changed)[0] == first


def test_another_world_is_noticed(tmp_path: Path) -> None:
    wit = altered(tmp_path, f"export {BATCH};", f"export {WATCHER};")
    assert wit.exports(WORLD) == {STORE, ATOMICS, WATCHER}
    assert altered(tmp_path, f"import {WATCHER};", f"import {STORE};").imports(WORLD) == {STORE}


def test_only_served_instances_are_found() -> None:
    assert served("server.add(STORE, handlers)\nserver.add(BATCH, handlers)\nnames.add(OTHER)") == {STORE, BATCH}
    assert served("server.start()") == set()


def test_malformed_wit_is_refused_with_the_message_of_wasm_tools(tmp_path: Path) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"wasm-tools does not accept wit/:\n(?s:.*)name `nobody` does not exist"
    ):
        altered(tmp_path, "result<bool, error>", "result<nobody, error>")


def test_a_missing_tool_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "WASM_TOOLS", tmp_path / "wasm-tools")
    with pytest.raises(pytest.fail.Exception, match="is missing: scripts/setup installs wasm-tools"):
        Wit(ROOT / "wit")
