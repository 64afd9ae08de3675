"""The tests mirror the rooms: each module has its test module at the same place below tests/, or stands in a list with the reason.

`engine/keyvalue_engine/store.py` is tested by `tests/engine/test_store.py`, `bench/run/plan.py` by `tests/bench/run/test_plan.py`.
A fault names the line that is missing, or that must go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
#: Where the tests of each package are.
PACKAGES = {
    "engine/keyvalue_engine": "tests/engine",
    "transport/keyvalue_transport": "tests/transport",
    "provider/keyvalue_provider": "tests/provider",
    "bench": "tests/bench",
}


class Elsewhere(NamedTuple):
    """The tests of a module that has no test module of its own, and why it has none."""

    tests: str
    why: str


ELSEWHERE: Mapping[str, Elsewhere] = {
    "engine/keyvalue_engine/bucket.py": Elsewhere("tests/engine/test_store.py", "a bucket is used through its store"),
    "engine/keyvalue_engine/changes.py": Elsewhere("tests/engine/test_observer.py", "what an observer is told"),
    "engine/keyvalue_engine/context.py": Elsewhere(
        "tests/engine/test_store.py", "what the parts of a store share, without behaviour"
    ),
    "engine/keyvalue_engine/counter.py": Elsewhere("tests/engine/test_increment.py", "by what it is for"),
    "engine/keyvalue_engine/deadlines.py": Elsewhere("tests/engine/test_expiry.py", "by what they are for"),
    "engine/keyvalue_engine/errors.py": Elsewhere("tests/engine/test_store.py", "each is raised by a store"),
    "engine/keyvalue_engine/ledger.py": Elsewhere("tests/engine/test_memory.py", "by what it is for"),
    "engine/keyvalue_engine/options.py": Elsewhere("tests/engine/test_store.py", "each is an option of a store"),
    "engine/keyvalue_engine/order.py": Elsewhere("tests/engine/test_store.py", "pages, and how many changes are kept"),
    "engine/keyvalue_engine/shard.py": Elsewhere("tests/engine/test_commit.py", "by what all its writes go through"),
    "engine/keyvalue_engine/table.py": Elsewhere("tests/engine/test_walk.py", "a walk crosses the shards of a table"),
    "engine/keyvalue_engine/tables.py": Elsewhere("tests/engine/test_store.py", "a store is made of them"),
    "transport/keyvalue_transport/keyvalue/atomics.py": Elsewhere(
        "tests/transport/keyvalue/test_interface.py", "its function keeps the rules of all, and has none of its own"
    ),
    "transport/keyvalue_transport/keyvalue/errors.py": Elsewhere(
        "tests/transport/keyvalue/test_interface.py", "how the interface writes each"
    ),
    "transport/keyvalue_transport/keyvalue/outcomes.py": Elsewhere(
        "tests/transport/keyvalue/test_interface.py", "how the calls of all functions are counted"
    ),
    "transport/keyvalue_transport/nats/subscriptions.py": Elsewhere(
        "tests/transport/nats/test_server.py", "the server's"
    ),
    "transport/keyvalue_transport/wrpc/errors.py": Elsewhere(
        "tests/transport/wrpc/test_invocation.py", "each is raised by an invocation or a value"
    ),
    "transport/keyvalue_transport/wrpc/handler.py": Elsewhere(
        "tests/transport/wrpc/test_invocation.py", "the contract of what an invocation calls"
    ),
    "transport/keyvalue_transport/nats/direct/answers.py": Elsewhere(
        "tests/transport/nats/test_replies.py", "it says the same as the replies of the plain path"
    ),
    "transport/keyvalue_transport/nats/direct/path.py": Elsewhere(
        "tests/transport/nats/test_server.py", "a server is tested over both paths"
    ),
    "transport/keyvalue_transport/nats/direct/frames.py": Elsewhere(
        "tests/transport/nats/direct/test_protocol.py", "a part of the protocol"
    ),
    "transport/keyvalue_transport/nats/direct/read_flow.py": Elsewhere(
        "tests/transport/nats/direct/test_protocol.py", "a part of the protocol"
    ),
    "transport/keyvalue_transport/nats/direct/routes.py": Elsewhere(
        "tests/transport/nats/direct/test_protocol.py", "a part of the protocol"
    ),
    "transport/keyvalue_transport/nats/direct/transport.py": Elsewhere(
        "tests/transport/nats/direct/test_nats_py_contract.py", "it is what nats-py is given"
    ),
    "provider/keyvalue_provider/__main__.py": Elsewhere("tests/integration/test_standalone.py", "it is the command"),
    "provider/keyvalue_provider/outer_process.py": Elsewhere("tests/test_build.py", "it needs the executable"),
    "provider/keyvalue_provider/stop_signals.py": Elsewhere("tests/integration/test_host.py", "it needs a process"),
    "provider/keyvalue_provider/host/json_fields.py": Elsewhere(
        "tests/provider/host/test_links.py", "how links and host data are read"
    ),
    "provider/keyvalue_provider/host/lattice.py": Elsewhere(
        "tests/integration/test_lattice.py", "it needs a NATS server"
    ),
    "provider/keyvalue_provider/host/nkey_text.py": Elsewhere("tests/provider/host/test_xkeys.py", "the text of a key"),
    "provider/keyvalue_provider/host/session.py": Elsewhere("tests/integration/test_host.py", "it needs a NATS server"),
    "provider/keyvalue_provider/host/subjects.py": Elsewhere(
        "tests/integration/test_host.py", "what a real host publishes to"
    ),
    "provider/keyvalue_provider/packaging/claims.py": Elsewhere(
        "tests/provider/packaging/test_archive.py", "claims are a part of the archive"
    ),
    "provider/keyvalue_provider/watching/watchers.py": Elsewhere(
        "tests/integration/test_watch.py", "it needs links and a component"
    ),
    "bench/micro/locked_dict.py": Elsewhere(
        "tests/bench/micro/test_store_beside_dict.py", "what the store is measured against"
    ),
    "bench/micro/stores.py": Elsewhere(
        "tests/bench/micro/test_turns.py", "fixtures of the micro benchmarks, which a test would repeat"
    ),
    "bench/run/paths.py": Elsewhere("tests/bench/run/test_provenance.py", "two constants"),
    "bench/run/rows.py": Elsewhere("tests/bench/test_endtoend.py", "what a run gives"),
}


def modules(root: Path) -> Iterator[tuple[str, str]]:
    """Each module, and the place of its tests. `__init__` has nothing to test, and benchmarks under pytest are tests."""
    for package, tests in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            if path.stem not in ("__init__", "conftest") and not path.stem.startswith("test_"):
                folder = path.parent.relative_to(root / package)
                test = Path(tests) / folder / f"test_{path.stem.strip('_')}.py"
                yield path.relative_to(root).as_posix(), test.as_posix()


def faults(root: Path, elsewhere: Mapping[str, Elsewhere]) -> Iterator[str]:
    """Modules without tests, and entries of the list that say nothing true."""
    places = dict(modules(root))
    for module, test in places.items():
        if (root / test).exists():
            if module in elsewhere:
                yield f"{module}: found {test}, so it needs no entry"
        elif module not in elsewhere:
            yield f"{module}: found no {test}, and no entry with the reason"
    for module, entry in elsewhere.items():
        if module not in places:
            yield f"{module}: found an entry, and no module"
        if not (root / entry.tests).exists():
            yield f"{module}: found no {entry.tests}, which its entry names"


def test_each_module_has_its_tests_or_a_reason() -> None:
    assert len(list(modules(ROOT))) > 80
    found = list(faults(ROOT, ELSEWHERE))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("engine/keyvalue_engine/store.py", "tests/engine/test_store.py"),
        ("transport/keyvalue_transport/nats/direct/frames.py", "tests/transport/nats/direct/test_frames.py"),
        ("provider/keyvalue_provider/__main__.py", "tests/provider/test_main.py"),
        ("bench/run/plan.py", "tests/bench/run/test_plan.py"),
    ],
)
def test_each_kind_of_fault_is_found(tmp_path: Path, module: str, test: str) -> None:
    for path in (module, test):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / module).touch()
    entry = {module: Elsewhere("tests/test_all.py", "it is small")}
    assert list(faults(tmp_path, {})) == [f"{module}: found no {test}, and no entry with the reason"]
    assert list(faults(tmp_path, entry)) == [f"{module}: found no tests/test_all.py, which its entry names"]
    (tmp_path / "tests" / "test_all.py").touch()
    assert list(faults(tmp_path, entry)) == []
    (tmp_path / test).touch()
    assert list(faults(tmp_path, {})) == []
    assert list(faults(tmp_path, entry)) == [f"{module}: found {test}, so it needs no entry"]
    (tmp_path / module).unlink()
    assert list(faults(tmp_path, entry)) == [f"{module}: found an entry, and no module"]
