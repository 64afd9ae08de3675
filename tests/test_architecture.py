"""The rooms: which folder may import what, which parts of the transport are without I/O, and what an import must not start.

No modules import each other in a circle, not even for their types.

bytes → transport → provider → engine → back. docs/architecture.md has the table below.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Room:
    """The imports that the modules of a room may have, besides the standard library and the room itself.

    :ivar rooms: other rooms of ours, or single modules of them
    :ivar libraries: None: all that pyproject declares for running, except nats-py
    :ivar without_io: the modules take and return bytes: no I/O, clock, thread or log
    """

    rooms: frozenset[str]
    libraries: frozenset[str] | None
    never: frozenset[str]
    without_io: bool


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def room(rooms: str = "", libraries: str | None = "", *, never: str = "", without_io: bool = False) -> Room:
    """Return a room, from names separated by spaces."""
    return Room(words(rooms), None if libraries is None else words(libraries), words(never), without_io)


E, T, R, P = "keyvalue_engine", "keyvalue_transport", "keyvalue_replica", "keyvalue_provider"
#: The folder of each package.
PACKAGES = {E: "engine", T: "transport", R: "replica", P: "provider", "bench": ""}
#: A module belongs to the room with the longest name that is a prefix of its own.
ROOMS = {
    E: room("", "msgpack siphashc sortedcontainers xxhash", never="asyncio"),
    # The package's own module lists the names for callers of a provider, and imports each when it is first used.
    T: room(f"{T}.keyvalue.errors {T}.keyvalue.store {T}.wrpc.errors {T}.nats.client {T}.nats.connection {T}.nats.tls"),
    f"{T}.wrpc": room(without_io=True),
    f"{T}.keyvalue": room(f"{T}.wrpc", without_io=True),
    f"{T}.redis": room(f"{T}.wrpc.handler {T}.keyvalue", "hiredis", without_io=True),
    # The only modules of the room that have sockets.
    f"{T}.redis.listener": room(f"{T}.redis {T}.redis.sockets {T}.redis.tls_server"),
    f"{T}.redis.sockets": room(),
    f"{T}.redis.tls_server": room(),
    f"{T}.nats": room(f"{T}.wrpc {T}.nats"),
    # The functions of the clients are the only module of the room that knows the interface.
    f"{T}.nats.calls": room(f"{T}.wrpc {T}.keyvalue {T}.nats"),
    # The modules that know nats-py.
    f"{T}.nats.connection": room(f"{T}.wrpc {T}.nats", "nats"),
    f"{T}.nats.opening": room(f"{T}.wrpc {T}.nats", "nats nkeys"),
    f"{T}.nats.frame_parser": room(f"{T}.nats", "nats"),
    f"{T}.nats.nats_py_errors": room(f"{T}.nats", "nats"),
    f"{T}.nats.direct.transport": room(f"{T}.nats", "nats"),
    # The follower, the feed and the import are the only modules that speak to NATS. Nothing here knows wRPC or a host.
    R: room(f"{E} {R}", without_io=True),
    f"{R}.follower": room(f"{E} {R} {T}.nats.connection {T}.wrpc.errors"),
    f"{R}.importing": room(f"{E} {R} {T}.nats.connection {T}.wrpc.errors"),
    f"{R}.change_feed": room(f"{E} {R} {T}.nats.connection {T}.wrpc.errors"),
    f"{R}.pulse": room(f"{R} {T}.wrpc.errors"),
    f"{R}.wires": room(f"{R} {T}.nats.connection"),
    f"{R}.catching_up": room(R),
    f"{R}.company": room(f"{E} {R}", without_io=True),
    f"{R}.open_bucket": room(f"{E} {R}"),
    f"{R}.open_buckets": room(f"{E} {R} {T}.nats.connection {T}.wrpc.errors"),
    f"{R}.old_barriers": room(R),
    f"{R}.reading_order": room(),
    f"{R}.shared_quick": room(R),
    f"{R}.headed": room(R),
    f"{R}.promise": room(),
    f"{R}.clock": room(),
    f"{R}.quick": room(f"{R}"),
    f"{P}.host": room(f"{P}.health {T}.nats.connection {T}.nats.subjects {T}.wrpc.errors", "nacl"),
    f"{P}.config": room(f"{E} {T} {R}.options {P}.host {P}.observe.log"),
    f"{P}.keyvalue": room(f"{E} {R}.options {T}.wrpc {T}.keyvalue {P}.config.options {P}.host.links"),
    f"{P}.watching": room(f"{E} {T} {P}.config.options {P}.host.links {P}.keyvalue.names"),
    f"{P}.watching.durable_delivery": room(f"{E} {T} {R}.change_feed {P}.watching {P}.keyvalue.names"),
    f"{P}.watching.replicated_watchers": room(f"{E} {T} {R} {P}.config.options {P}.host.links {P}.watching"),
    f"{P}.observe": room(f"{E} {T} {P}.health {P}.host {P}.observe.otlp {P}.watching", "prometheus_client"),
    # The only module that knows OpenTelemetry, which is optional.
    f"{P}.observe.otlp": room(f"{T}.keyvalue {T}.nats.tracing {P}.observe", "opentelemetry grpc requests"),
    f"{P}.packaging": room(f"{P}.host", "nacl"),
    # The root composes everything.
    P: room(f"{E} {T} {R} {P}", None, never="nats opentelemetry"),
    "bench.load": room(f"{T}.wrpc {T}.keyvalue {T}.nats.subjects {P}.host.host_data", "uvloop"),
    "bench.run": room(f"bench.load {T}", "pytest pytest_benchmark"),
    "bench.report": room("bench.run", "matplotlib"),
    "bench.micro": room(f"bench.load bench.report.figures bench.report.report_table {E} {T} {P}", None),
    # The commands.
    "bench": room("bench", "pytest"),
}
#: Everything of ours that can be imported.
OURS = frozenset({*PACKAGES, "tests"})
#: Modules of the standard library that a room without I/O must not import.
IO = words("asyncio logging select selectors signal socket ssl subprocess threading time")
#: Calls that open or start something, by the last part of their name.
OPENING = words(
    """
    open socket connect create_connection Popen Thread Timer start ThreadPoolExecutor ProcessPoolExecutor Lock RLock
    Event Queue basicConfig signal run run_forever create_task ensure_future get_event_loop new_event_loop Store
    Connection Server Invoker KeyValueClient Service HostSession RunningProvider Provider
    """
)


class Module(NamedTuple):
    """A parsed module."""

    name: str
    package: str
    tree: ast.Module


class Edge(NamedTuple):
    """An imported module, and the line of the import."""

    target: str
    line: int


@cache
def modules(root: Path) -> list[Module]:
    """Return all modules of the packages below `root`, in order."""
    found = []
    for package, folder in PACKAGES.items():
        base = root / folder
        for path in sorted((base / package).rglob("*.py")):
            parts = list(path.relative_to(base).with_suffix("").parts)
            inside = ".".join(parts[:-1])
            if parts[-1] == "__init__":
                parts.pop()
            found.append(Module(".".join(parts), inside, ast.parse(path.read_text(), str(path))))
    return found


def room_of(module: str) -> str:
    """Return the name of the room that a module belongs to."""
    return max((room for room in ROOMS if is_within(module, room)), key=len, default="tests")


def is_within(module: str, place: str) -> bool:
    """Return True if a module is `place`, or inside it."""
    return f"{module}.".startswith(f"{place}.")


def edges(module: Module, known: frozenset[str] = frozenset()) -> Iterator[Edge]:
    """Yield everything that a module imports, anywhere in it.

    `from a import b` is a.b if that is a module of ours (`known`).
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Edge(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = module.package.split(".")[: len(module.package.split(".")) + 1 - node.level]
            origin = ".".join([*package, node.module or ""] if node.level else [node.module or ""]).strip(".")
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield Edge(name if name in known else origin, node.lineno)


def import_faults(root: Path, declared: dict[str, frozenset[str]]) -> list[str]:
    """Return the imports that are not in the table.

    :param declared: the libraries that each room may use by pyproject
    """
    found = modules(root)
    known = frozenset(module.name for module in found)
    faults = []
    for module in found:
        for edge in edges(module, known):
            reason = _fault(module.name, edge.target, declared)
            if reason:
                faults.append(f"{module.name}:{edge.line}: imports {edge.target}: {reason}")
    return faults


def import_cycle(root: Path) -> str:
    """Return modules that import each other in a circle, as "a -> b -> a"; "" if none do. Imports under TYPE_CHECKING count."""
    found = modules(root)
    known = frozenset(module.name for module in found)
    graph = {module.name: {edge.target for edge in edges(module, known)} & known for module in found}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))  # it names the imported module first
    return ""


def _fault(importer: str, target: str, declared: dict[str, frozenset[str]]) -> str | None:
    name, top = room_of(importer), target.partition(".")[0]
    own = ROOMS[name]
    if top in own.never:
        return f"{name} must not know it"
    if own.without_io and top in IO:
        return f"{name} is without I/O"
    if top in sys.stdlib_module_names:
        return None
    if top in OURS:
        if room_of(target) == name or any(is_within(target, place) for place in own.rooms):
            return None
        return f"{name} imports of ours only {', '.join(sorted({name, *own.rooms}))}"
    if own.libraries is not None and top not in own.libraries:
        return f"{name} imports of libraries only {', '.join(sorted(own.libraries)) or 'none'}"
    if top not in declared[importer.partition(".")[0]]:
        return "pyproject.toml does not declare it"
    return None


@cache
def declared_libraries(pyproject: Path) -> dict[str, frozenset[str]]:
    """Return the modules that each room may import by pyproject.toml.

    Only `bench` may use the extras, except that the provider may use `otel`.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    run = _distributions(project["dependencies"])
    extras = project["optional-dependencies"]
    more = {"bench": _distributions(chain(*extras.values())), P: _distributions(extras.get("otel", ()))}
    modules_of = {module: {_normal(name) for name in names} for module, names in packages_distributions().items()}
    return {
        package: frozenset(name for name, by in modules_of.items() if by & (run | more.get(package, set())))
        for package in PACKAGES
    }


def _distributions(requirements: Iterable[str]) -> set[str]:
    return {_normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def opened_at_import(module: Module) -> Iterator[str]:
    """Yield the calls that open or start something as soon as the module is imported."""
    waiting: list[ast.AST] = list(module.tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            waiting += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in OPENING:
                yield f"{module.name}:{node.lineno}: calls {ast.unparse(node.func)} when it is imported"
            waiting += ast.iter_child_nodes(node)


def shared_class_names(found: Iterable[Module]) -> dict[str, list[str]]:
    """Return the modules of each class name that is used more than once."""
    places: dict[str, list[str]] = {}
    for module in found:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module.name)
    return {name: at for name, at in places.items() if len(at) > 1}


def test_imports_are_those_of_the_table() -> None:
    faults = import_faults(ROOT, declared_libraries(ROOT / "pyproject.toml"))
    assert not faults, "\n".join(faults)


def test_the_transport_knows_no_program() -> None:
    paths = [*(ROOT / "transport").rglob("*.py")]
    assert paths
    assert not [path for path in paths if "keyvalue-inmemory" in path.read_text()]


def test_no_two_classes_share_a_name() -> None:
    assert shared_class_names(modules(ROOT)) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert import_cycle(ROOT) == ""


def test_the_engine_loads_no_other_room_no_library_of_theirs_and_no_event_loop() -> None:
    """Use a fresh interpreter. The engine's own libraries may load modules that nothing else uses."""
    code = "import sys; before = {*sys.modules}; import keyvalue_engine.snapshot; print(*{*sys.modules} - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    tops = {name.partition(".")[0] for name in loaded}
    own = {E, *(ROOMS[E].libraries or ())}
    assert own <= tops
    assert tops.isdisjoint((OURS | declared_libraries(ROOT / "pyproject.toml")[P]) - own | {"asyncio"})


def test_nothing_is_opened_or_started_by_an_import() -> None:
    faults = [fault for module in modules(ROOT) for fault in opened_at_import(module)]
    assert not faults, "\n".join(faults)


def test_the_rules_name_existing_modules() -> None:
    """A renamed module would otherwise escape its rule."""
    names = {module.name for module in modules(ROOT)}
    for name, own in ROOMS.items():
        assert {name, *own.rooms} <= names


def test_the_libraries_of_the_table_are_declared() -> None:
    declared = declared_libraries(ROOT / "pyproject.toml")
    for name, own in ROOMS.items():
        assert (own.libraries or frozenset()) <= declared[name.partition(".")[0]]
    assert "pytest" in declared["bench"]
    assert "pytest" not in declared[P]


# Each rule can fail.

DECLARED = {
    E: words("msgpack siphashc sortedcontainers xxhash"),
    T: words("nats nkeys"),
    P: words("nats nacl msgpack prometheus_client uvloop"),
    "bench": words("nats msgpack pytest matplotlib uvloop"),
}


def path_of(module: str) -> str:
    """Return the path of a module's file."""
    return str(Path(PACKAGES[module.partition(".")[0]], f"{module.replace('.', '/')}.py"))


def project(root: Path, module: str, source: str) -> Path:
    """Return a directory with one module, next to empty ones that it may import."""
    paths = [path_of(f"{name}.a") for name in (*ROOMS, f"{P}.keyvalue", f"{T}.nats.direct")]
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
        (root / path).with_name("__init__.py").touch()
    (root / path_of(module)).write_text(source)
    return root


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        (f"{E}.a", "import asyncio.locks", f"imports asyncio.locks: {E} must not know it"),
        (f"{E}.a", "import uvloop", f"imports uvloop: {E} imports of libraries only "),
        (f"{E}.a", f"def f():\n    from {P}.keyvalue.a import Service", f"imports {P}.keyvalue.a: {E} imports"),
        (f"{E}.a", "import tests", f"imports tests: {E} imports of ours only {E}"),
        (f"{T}.a", f"import {T}.nats.a", f"imports {T}.nats.a: {T} imports of ours only"),
        (f"{T}.wrpc.a", "def f():\n    from time import monotonic", f"imports time: {T}.wrpc is without I/O"),
        (f"{T}.wrpc.a", "import nats", f"imports nats: {T}.wrpc imports of libraries only none"),
        (f"{T}.wrpc.a", "from ..keyvalue import a", f"imports {T}.keyvalue.a: {T}.wrpc imports of ours only"),
        (f"{T}.keyvalue.a", "from socket import socket", f"imports socket: {T}.keyvalue is without I/O"),
        (f"{T}.nats.a", "from nats.aio.client import Client", f"imports nats.aio.client: {T}.nats imports of libr"),
        (f"{T}.nats.direct.a", "import nats", f"imports nats: {T}.nats imports of libraries only"),
        (f"{P}.host.a", f"from {T}.keyvalue import a", f"imports {T}.keyvalue.a: {P}.host imports of ours only"),
        (f"{P}.a", "import nats.errors", f"imports nats.errors: {P} must not know it"),
        (f"{P}.a", "try:\n    import pytest\nexcept ImportError: ...", "imports pytest: pyproject.toml does not"),
        (f"{P}.a", "import bench.load", f"imports bench.load: {P} imports of ours only"),
        ("bench.a", "import tests.test_wit", "imports tests.test_wit: bench imports of ours only"),
        ("bench.micro.a", "import numpy", "imports numpy: pyproject.toml does not declare it"),
    ],
)
def test_an_import_that_the_table_lacks_is_found(tmp_path: Path, module: str, source: str, fault: str) -> None:
    (found,) = import_faults(project(tmp_path, module, source), DECLARED)
    assert found.startswith(f"{module}:{len(source.splitlines()) - ('try' in source)}: {fault}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (f"{E}.a", f"import os, xxhash\nfrom {E}.store import Store\nfrom . import store"),
        (f"{T}.nats.connection", "import asyncio, nats.errors"),
        (f"{T}.nats.calls", f"from {T}.keyvalue.a import encode\nfrom . import connection"),
        (f"{P}.a", f"import asyncio, uvloop, {E}\nfrom {T}.nats.a import Server\nfrom {P}.host import a"),
        ("bench.micro.a", f"import nats, pytest, {E}, {P}.keyvalue.a"),
    ],
)
def test_imports_of_the_table_are_accepted(tmp_path: Path, module: str, source: str) -> None:
    assert import_faults(project(tmp_path, module, source), DECLARED) == []


def test_a_name_that_two_classes_share_is_found(tmp_path: Path) -> None:
    project(tmp_path, f"{P}.a", "class Frame: ...\nclass _Own: ...")
    project(tmp_path, "bench.a", "def f():\n    class Frame: ...")
    project(tmp_path, f"{E}.a", "class Own(_Own): ...\nclass _Own: ...")
    assert shared_class_names(modules(tmp_path)) == {"Frame": [f"{P}.a", "bench.a"], "_Own": [f"{E}.a", f"{P}.a"]}


@pytest.mark.parametrize(
    ("module", "source", "cycle"),
    [
        (f"{E}.a", "from . import b", f"{E}.a -> {E}.b -> {E}.a"),
        (f"{E}.a", f"def f():\n    import {E}.b", f"{E}.a -> {E}.b -> {E}.a"),
        (f"{E}.a", f"if TYPE_CHECKING:\n    from {E}.b import B", f"{E}.a -> {E}.b -> {E}.a"),
        (f"{E}.a", f"import {E}.a", f"{E}.a -> {E}.a"),
        (f"{P}.a", f"from {E} import b", ""),
    ],
)
def test_modules_that_import_each_other_are_found(tmp_path: Path, module: str, source: str, cycle: str) -> None:
    root = project(tmp_path, module, source)
    (root / path_of(f"{E}.b")).write_text(f"from {E} import a")
    assert import_cycle(root) in {cycle, " -> ".join([*cycle.split(" -> ")[1:], *cycle.split(" -> ")[1:2]])}


def test_a_library_is_declared_by_its_distribution(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["Nats.py[nkeys] >=2; python_version > \'3\'"]\noptional-dependencies = {dev = ["pytest>8"]}\n')  # fmt: skip
    declared = declared_libraries(path)
    assert "nats" in declared[P]
    assert "pytest" not in declared[P]
    assert {"nats", "pytest"} <= declared["bench"]
    assert "xxhash" not in declared["bench"]


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("import socket\nclass A:\n    peer = socket.socket()", ["socket.socket"]),
        ("def f(lock=Lock()): ...", ["Lock"]),
        ("Thread(target=print).start()", ["Thread(target=print).start", "Thread"]),
        ("if __name__ == '__main__':\n    pass\nelse:\n    run()", ["run"]),
        ("import re, logging\nlog = logging.getLogger()\nA = re.compile('a')\nB = frozenset({1})", []),
        ("def f():\n    return open('log')\nasync def g():\n    run()\nh = lambda: open('log')", []),
    ],
)
def test_opening_calls_at_import_are_found(tmp_path: Path, source: str, calls: list[str]) -> None:
    name = f"{P}.a"
    (module,) = (each for each in modules(project(tmp_path, name, source)) if each.name == name)
    found = [fault.split("calls ")[1] for fault in opened_at_import(module)]
    assert found == [f"{call} when it is imported" for call in calls]
