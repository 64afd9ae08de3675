"""Rules of style that a test can check: sizes, words, and no notes to self."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "transport", "replica", "provider")
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
#: Rooms where functions must be shorter: the hot path, which is hard enough to follow.
SHORTER = {"transport/keyvalue_transport/nats/direct/": 60}
#: Names that Python's protocols prescribe.
OF_PYTHON = {("engine/keyvalue_engine/bucket.py", "items")}
#: Words without meaning. They are searched for in every word of a name, in singular and plural.
FORBIDDEN = frozenset({"item", "manager", "helper", "util"})
#: Without meaning if alone; `host_data` is fine.
FORBIDDEN_ALONE = "data"
NOTE = re.compile(r"\b(TODO|FIXME|XXX)\b")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def sources(root: Path, rooms: Iterable[str] = ROOMS) -> Iterator[tuple[str, str]]:
    """Yield all modules of the rooms: path below the root, and text."""
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_text()


def size_faults(path: str, source: str) -> Iterator[str]:
    """Find a module and functions that are too long."""
    lines = len(source.splitlines())
    if lines > MODULE_LINES_MAX:
        yield f"{path}: found {lines} lines, allowed {MODULE_LINES_MAX}"
    allowed = next((lines for room, lines in SHORTER.items() if path.startswith(room)), FUNCTION_LINES_MAX)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > allowed:
                yield f"{path}:{node.lineno}: {node.name}: found {lines} lines, allowed {allowed}"


def note_faults(path: str, source: str) -> Iterator[str]:
    """Find notes to self, which belong in an issue."""
    for number, line in enumerate(source.splitlines(), 1):
        if found := NOTE.search(line):
            yield f"{path}:{number}: found {found[0]}"


def word_faults(path: str, source: str) -> Iterator[str]:
    """Find forbidden words in the names that a module defines, and in its own name.

    Names that it only uses belong to others.
    """
    for line, name in [(1, Path(path).stem), *_defined(ast.parse(source))]:
        if (name.startswith("__") and name.endswith("__")) or (path, name) in OF_PYTHON:  # such as __getitem__
            continue
        words = {word.lower() for word in WORD.findall(name)}
        words |= {word.removesuffix("s") for word in words}
        if words & FORBIDDEN or name.strip("_").lower() == FORBIDDEN_ALONE:
            yield f"{path}:{line}: the name {name} says nothing"


def _defined(tree: ast.Module) -> Iterator[tuple[int, str]]:
    foreign = {
        method
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
        for method in node.body
    }
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name="data") if node in foreign:
                pass  # a Protocol describes another library's object: nats-py's messages have `data`
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)):
                yield node.lineno, name


CHECKS = (size_faults, note_faults, word_faults)


@pytest.mark.parametrize("check", CHECKS)
def test_the_code_has_no_fault(check: Callable[[str, str], Iterator[str]]) -> None:
    found = list(sources(ROOT))
    assert len(found) > 20
    faults = [fault for path, source in found for fault in check(path, source)]
    assert not faults, "\n".join(faults)


# Each check can fail.


def test_modules_and_functions_that_are_too_long_are_found() -> None:
    assert list(size_faults("a.py", "\n" * 500)) == []
    assert list(size_faults("a.py", "\n" * 501)) == ["a.py: found 501 lines, allowed 500"]
    for path, allowed in (("a.py", 70), ("transport/keyvalue_transport/nats/direct/a.py", 60)):
        source = "class A:\n    async def f(self):\n" + "        pass\n" * (allowed - 1)
        assert list(size_faults(path, source)) == []
        fault = f"{path}:2: f: found {allowed + 1} lines, allowed {allowed}"
        assert list(size_faults(path, source + "        pass\n")) == [fault]


@pytest.mark.parametrize("note", ["TODO", "FIXME", "XXX"])
def test_notes_are_found(note: str) -> None:
    assert list(note_faults("a.py", f"pass\npass  # {note}: later")) == [f"a.py:2: found {note}"]
    assert list(note_faults("a.py", f"A{note} = '{note}S'")) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("class KeyManager: ...", "KeyManager"),
        ("class HTTPUtil: ...", "HTTPUtil"),
        ("async def read_items(): ...", "read_items"),
        ("def f(*, helper): ...", "helper"),
        ("lambda data: 1", "data"),
        ("class A:\n    def data(self): ...", "data"),
        ("class A:\n    def f(self): self._data = 1", "_data"),
        ("a, *items = b", "items"),
        ("if (data := 1): ...", "data"),
        ("import a as utils", "utils"),
        ("match a:\n    case [item]: ...", "item"),
        ("class A(Protocol):\n    def item(self): ...", "item"),
    ],
)
def test_names_without_meaning_are_found(source: str, name: str) -> None:
    (found,) = word_faults("a.py", source)
    assert found.endswith(f": the name {name} says nothing")


def test_names_of_others_and_names_with_more_meaning_are_accepted() -> None:
    source = """
host_data = metadata = 1
class A:
    def __getitem__(self, key): ...
class Message(Protocol):
    @property
    def data(self): ...
for key, value in message.data.items(): ...
from inspect import utils
utility = utils.item
asyncio.TaskManager(data=1)
"""
    assert list(word_faults("a.py", source)) == []
    assert list(word_faults("engine/utils.py", "")) == ["engine/utils.py:1: the name utils says nothing"]


def test_all_rooms_are_read(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room / "deep").mkdir(parents=True)
        (tmp_path / room / "deep" / "a.py").write_text(room)
    assert list(sources(tmp_path)) == [(f"{room}/deep/a.py", room) for room in ROOMS]
