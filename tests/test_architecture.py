"""The rooms: which folder may import what, which parts of the transport are without I/O, and what an import may not start.

bytes → transport → provider → engine → back. `provider` is the only room that knows both others; nats-py is known to one module.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Room:
    """What the modules of a folder may import besides the standard library. `libraries` None: all that pyproject declares."""

    rooms: frozenset[str]
    libraries: frozenset[str] | None
    #: Of the standard library, or of the declared libraries.
    never: frozenset[str] = frozenset()


#: All that is ours and can be imported.
OURS = frozenset({"engine", "transport", "provider", "bench", "tests"})
ROOMS = {
    "engine": Room(frozenset({"engine"}), frozenset({"msgpack", "sortedcontainers", "xxhash"}), frozenset({"asyncio"})),
    "transport": Room(frozenset({"transport"}), frozenset({"nats", "nkeys"})),
    "provider": Room(frozenset({"engine", "transport", "provider"}), None, frozenset({"nats"})),
    "bench": Room(frozenset({"engine", "transport", "provider", "bench"}), None),
}
#: Of the transport, the only modules that import nats-py.
NATS_MODULES = frozenset({"transport.connection", "transport.nats_transport"})
#: Modules that take and return bytes. They import each other, and nothing of the rest of the transport.
SANS_IO = frozenset(
    f"transport.{name}"
    for name in (
        *("values", "keyvalue", "store", "atomics", "batch", "watcher", "subjects", "handler"),
        *("callers", "frames", "invocation", "call", "errors"),
    )
)
#: What they must not import of the standard library: I/O, clocks, threads, the log.
IO = frozenset(
    {"asyncio", "logging", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time"}
)
#: Calls that open or start something, by the last part of their name.
OPENING = frozenset(
    {
        *("open", "socket", "connect", "create_connection", "Popen", "Thread", "Timer", "start"),
        *("ThreadPoolExecutor", "ProcessPoolExecutor", "Lock", "RLock", "Event", "Queue", "basicConfig", "signal"),
        *("run", "run_forever", "create_task", "ensure_future", "get_event_loop", "new_event_loop"),
        *("Store", "Connection", "Server", "Invoker", "KeyValueClient", "Service", "Host", "Provider"),
    }
)


class Module(NamedTuple):
    """A module, parsed."""

    name: str
    package: str
    tree: ast.Module


class Edge(NamedTuple):
    """A module that is imported, and the line that does."""

    target: str
    line: int


def modules(root: Path) -> Iterator[Module]:
    """All modules of the rooms below `root`, in order."""
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            package = ".".join(parts[:-1])
            if parts[-1] == "__init__":
                parts.pop()
            yield Module(".".join(parts), package, ast.parse(path.read_text(), str(path)))


def edges(module: Module, known: frozenset[str] = frozenset()) -> Iterator[Edge]:
    """Everything that a module imports, anywhere in it. `from a import b` is a.b where that is a module of ours (`known`)."""
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
    """Import edges that the table does not have. `declared`: the libraries that each room may use by pyproject."""
    found = list(modules(root))
    known = frozenset(module.name for module in found)
    faults = []
    for module in found:
        for edge in edges(module, known):
            reason = _fault(module.name, edge.target, declared)
            if reason:
                faults.append(f"{module.name}:{edge.line}: imports {edge.target}: {reason}")
    return faults


def _fault(importer: str, target: str, declared: dict[str, frozenset[str]]) -> str | None:
    room_name, top = importer.partition(".")[0], target.partition(".")[0]
    room = ROOMS[room_name]
    if top in room.never:
        return f"{room_name} must not know it"
    if importer in SANS_IO:
        if top in IO | {"nats"}:
            return "this module is without I/O"
        if top in OURS and target not in SANS_IO:
            return "this module is without I/O, and that one is not"
    if top in sys.stdlib_module_names:
        return None
    if top in OURS:
        return None if top in room.rooms else f"{room_name} imports of ours only {', '.join(sorted(room.rooms))}"
    if room.libraries is not None and top not in room.libraries:
        return f"{room_name} imports of libraries only {', '.join(sorted(room.libraries))}"
    if top == "nats" and importer not in NATS_MODULES and room_name == "transport":
        return f"only {', '.join(sorted(NATS_MODULES))} does"
    if top not in declared[room_name]:
        return "pyproject.toml does not declare it"
    return None


@cache
def declared_libraries(pyproject: Path) -> dict[str, frozenset[str]]:
    """What each room may import by pyproject.toml, as names of modules. Only `bench` may use what the extras bring."""
    project = tomllib.loads(pyproject.read_text())["project"]
    run = _distributions(project["dependencies"])
    extra = _distributions(requirement for group in project["optional-dependencies"].values() for requirement in group)
    modules_of = {module: {_normal(name) for name in names} for module, names in packages_distributions().items()}
    return {
        room: frozenset(name for name, by in modules_of.items() if by & (run | extra if room == "bench" else run))
        for room in ROOMS
    }


def _distributions(requirements: Iterable[str]) -> set[str]:
    return {_normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def opened_at_import(module: Module) -> Iterator[str]:
    """Calls that open or start something as soon as the module is imported."""
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


def test_imports_are_those_of_the_table() -> None:
    faults = import_faults(ROOT, declared_libraries(ROOT / "pyproject.toml"))
    assert not faults, "\n".join(faults)


def test_nothing_is_opened_or_started_by_an_import() -> None:
    faults = [fault for module in modules(ROOT) for fault in opened_at_import(module)]
    assert not faults, "\n".join(faults)


def test_the_rules_name_modules_that_are_there() -> None:
    """A module that was renamed would otherwise slip out of its rule."""
    names = {module.name for module in modules(ROOT)}
    assert names >= SANS_IO | NATS_MODULES
    assert {"engine", "transport", "provider"} <= names


def test_the_libraries_of_the_table_are_declared() -> None:
    declared = declared_libraries(ROOT / "pyproject.toml")
    for name, room in ROOMS.items():
        assert (room.libraries or frozenset()) <= declared[name]
    assert "pytest" in declared["bench"]
    assert "pytest" not in declared["provider"]


# Each rule can fail.

DECLARED = {
    "engine": frozenset({"msgpack", "sortedcontainers", "xxhash"}),
    "transport": frozenset({"nats"}),
    "provider": frozenset({"nats", "msgpack", "uvloop"}),
    "bench": frozenset({"nats", "msgpack", "pytest"}),
}


def project(root: Path, path: str, source: str) -> Path:
    """A directory with one module, beside empty ones that it may name."""
    for name in (
        "engine/store.py",
        "transport/values.py",
        "transport/server.py",
        "provider/service.py",
        "bench/load.py",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
    return root


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("engine/a.py", "import asyncio", "engine.a:1: imports asyncio: engine must not know it"),
        ("engine/a.py", "import asyncio.locks", "engine.a:1: imports asyncio.locks: engine must not know it"),
        ("engine/a.py", "import nats", "engine.a:1: imports nats: engine imports of libraries only "),
        ("engine/a.py", "import uvloop", "engine.a:1: imports uvloop: engine imports of libraries only "),
        ("engine/a.py", "from transport import values", "engine.a:1: imports transport.values: engine imports of ours only engine"),
        ("engine/a.py", "from provider.service import Service", "engine.a:1: imports provider.service: engine imports of ours only engine"),
        ("engine/deep/a.py", "import transport", "engine.deep.a:1: imports transport: engine imports of ours only engine"),
        ("engine/deep/a.py", "from ...transport import values", "engine.deep.a:1: imports transport.values: engine imports of ours only engine"),
        ("engine/a.py", "from ..transport.values import read_bool", "engine.a:1: imports transport.values: engine imports of ours only engine"),
        ("transport/a.py", "from engine import Store", "transport.a:1: imports engine: transport imports of ours only transport"),
        ("transport/a.py", "import provider.service", "transport.a:1: imports provider.service: transport imports of ours only transport"),
        ("transport/a.py", "import msgpack", "transport.a:1: imports msgpack: transport imports of libraries only nats"),
        ("transport/a.py", "from nats.aio.client import Client", "transport.a:1: imports nats.aio.client: only transport.connection, transport.nats_transport does"),
        ("transport/call.py", "def f():\n    import nats", "transport.call:2: imports nats: this module is without I/O"),
        ("transport/call.py", "import asyncio", "transport.call:1: imports asyncio: this module is without I/O"),
        ("transport/values.py", "from socket import socket", "transport.values:1: imports socket: this module is without I/O"),
        ("transport/keyvalue.py", "from time import monotonic", "transport.keyvalue:1: imports time: this module is without I/O"),
        ("transport/invocation.py", "import logging", "transport.invocation:1: imports logging: this module is without I/O"),
        ("transport/errors.py", "from . import server", "transport.errors:1: imports transport.server: this module is without I/O, and that one is not"),
        ("transport/subjects.py", "import transport", "transport.subjects:1: imports transport: this module is without I/O, and that one is not"),
        ("provider/a.py", "import nats.errors", "provider.a:1: imports nats.errors: provider must not know it"),
        ("provider/a.py", "import requests", "provider.a:1: imports requests: pyproject.toml does not declare it"),
        ("provider/a.py", "try:\n    import pytest\nexcept ImportError: ...", "provider.a:2: imports pytest: pyproject.toml does not declare it"),
        ("provider/a.py", "import bench.load", "provider.a:1: imports bench.load: provider imports of ours only "),
        ("provider/a.py", "from tests import test_wit", "provider.a:1: imports tests: provider imports of ours only "),
        ("transport/a.py", "import bench", "transport.a:1: imports bench: transport imports of ours only transport"),
        ("engine/a.py", "import tests", "engine.a:1: imports tests: engine imports of ours only engine"),
        ("bench/a.py", "import tests.test_wit", "bench.a:1: imports tests.test_wit: bench imports of ours only "),
        ("bench/a.py", "import numpy", "bench.a:1: imports numpy: pyproject.toml does not declare it"),
    ],
)  # fmt: skip
def test_an_edge_too_many_is_found(tmp_path: Path, path: str, source: str, fault: str) -> None:
    (found,) = import_faults(project(tmp_path, path, source), DECLARED)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/a.py", "import os, xxhash\nfrom engine.store import Store\nfrom . import store"),
        ("transport/connection.py", "import asyncio, nats.errors"),
        ("transport/server.py", "import asyncio\nfrom transport.values import read_bool"),
        ("transport/call.py", "import re\nfrom transport.values import read_bool\nfrom . import values"),
        ("provider/a.py", "import asyncio, uvloop, engine\nfrom transport.server import Server"),
        ("bench/a.py", "import nats, pytest, engine, provider.service, bench.load"),
    ],
)
def test_edges_of_the_table_are_taken(tmp_path: Path, path: str, source: str) -> None:
    assert import_faults(project(tmp_path, path, source), DECLARED) == []


def test_a_library_is_declared_by_its_distribution(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["Nats.py[nkeys] >=2; python_version > \'3\'"]\noptional-dependencies = {dev = ["pytest>8"]}\n')  # fmt: skip
    declared = declared_libraries(path)
    assert "nats" in declared["provider"]
    assert "pytest" not in declared["provider"]
    assert {"nats", "pytest"} <= declared["bench"]
    assert "xxhash" not in declared["bench"]


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("log = open('log')", ["open"]),
        ("import socket\nclass A:\n    peer = socket.socket()", ["socket.socket"]),
        ("if True:\n    store = Store()", ["Store"]),
        ("def f(lock=Lock()): ...", ["Lock"]),
        ("async def f(): ...\nasyncio.run(f())", ["asyncio.run"]),
        ("Thread(target=print).start()", ["Thread(target=print).start", "Thread"]),
        ("if __name__ == '__main__':\n    pass\nelse:\n    run()", ["run"]),
        ("import re, logging\nlog = logging.getLogger()\nA = re.compile('a')\nB = frozenset({1})", []),
        ("def f():\n    return open('log')\nasync def g():\n    run()\nh = lambda: open('log')", []),
        ("if __name__ == '__main__':\n    run()", []),
    ],
)
def test_what_is_opened_by_an_import_is_found(tmp_path: Path, source: str, calls: list[str]) -> None:
    (module,) = (each for each in modules(project(tmp_path, "provider/a.py", source)) if each.name == "provider.a")
    found = [fault.split("calls ")[1] for fault in opened_at_import(module)]
    assert found == [f"{call} when it is imported" for call in calls]
