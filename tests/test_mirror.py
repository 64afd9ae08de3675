"""The tests mirror the rooms: each module has a test module at the same place below tests/, or is listed with a reason.

`engine/keyvalue_engine/store.py` is tested by `tests/engine/test_store.py`, `bench/run/plan.py` by
`tests/bench/run/test_plan.py`. An error names the line that is missing, or that must be removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
#: The tests of each package.
PACKAGES = {
    "engine/keyvalue_engine": "tests/engine",
    "transport/keyvalue_transport": "tests/transport",
    "replica/keyvalue_replica": "tests/replica",
    "provider/keyvalue_provider": "tests/provider",
    "bench": "tests/bench",
}


class Elsewhere(NamedTuple):
    """The tests of a module that has no test module of its own, and the reason."""

    tests: str
    why: str


#: Modules whose tests are elsewhere, with the reason. Paths are below the package's tests, unless they begin with tests/.
REASONS = {
    "engine/keyvalue_engine": """
        bucket.py     test_store.py      a bucket is used through its store
        changes.py    test_observer.py   the events that an observer receives
        context.py    test_store.py      data that the parts of a store share, without behaviour
        counter.py    test_increment.py  it serves increments
        deadlines.py  test_expiry.py     they serve expiry
        errors.py     test_store.py      each is raised by a store
        evicting_shard.py  test_eviction.py  how a shard gives up keys
        filling.py    test_held_memory.py  a page, and how its work is bounded
        invariants.py  test_commit.py    they hold after each commit
        kept_orders.py  test_held_memory.py  it gives the memory of orders back
        ledger.py     test_memory.py     it counts memory
        locks.py      test_interrupt.py  an interrupt leaves no lock held
        options.py    test_store.py      each is an option of a store
        order.py      test_store.py      pages, and how many changes are kept
        room.py       tests/replica/test_core.py  a replica checks its limits with it
        shard.py      test_commit.py     all its writes go through the commit point
        table.py      test_walk.py       a walk crosses the shards of a table
        tables.py     test_store.py      a store is made of them
        updates.py    test_model.py      the model predicts each revision
        turns.py      test_eviction.py   the order of evictions over shards
        used_bucket.py  test_eviction.py  a read marks its key as used
    """,
    "transport/keyvalue_transport": """
        keyvalue/atomics.py       keyvalue/test_interface.py            its function follows the common rules, and has none of its own
        keyvalue/errors.py        keyvalue/test_interface.py            how the interface encodes each
        keyvalue/outcomes.py      keyvalue/test_interface.py            how the calls of all functions are counted
        nats/calls.py             nats/test_client.py                   the functions of the clients
        redis/answers.py          tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/connection_commands.py  tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/deadlines.py        tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/effects.py          tests/transport/redis/test_session.py  the order of calls
        redis/errors.py           tests/integration/test_redis.py       an address that is not available
        redis/keys.py             tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/limits.py           tests/integration/test_redis.py       each limit needs connections
        redis/listener.py         tests/integration/test_redis.py       it needs sockets
        redis/revisions.py        tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/server_commands.py  tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/strings.py          tests/integration/test_redis_beside_redis.py  the answers of a real server
        redis/surroundings.py     tests/integration/test_redis.py       what a session needs from a provider
        redis/tls_server.py       tests/integration/test_redis.py       handshakes need clients
        nats/connection_state.py  nats/test_connection.py               the states of a connection
        nats/requests.py          nats/test_connection.py               a request of a connection
        nats/waits.py             nats/test_server.py                   the calls of a server that wait
        nats/denials.py           tests/hostile/test_frames.py          what health and the log say of denied answers
        nats/subscriptions.py     nats/test_server.py                   the subscriptions of the server
        wrpc/errors.py            wrpc/test_invocation.py               each is raised by an invocation or a value
        wrpc/handler.py           wrpc/test_invocation.py               the contract of the handlers that an invocation calls
        nats/direct/answers.py    nats/test_replies.py                  it gives the same replies as the plain path
        nats/direct/path.py       nats/test_server.py                   a server is tested over both paths
        nats/direct/frames.py     nats/direct/test_protocol.py          a part of the protocol
        nats/direct/read_flow.py  nats/direct/test_protocol.py          a part of the protocol
        nats/direct/routes.py     nats/direct/test_protocol.py          a part of the protocol
        nats/direct/runs.py       nats/direct/test_alike.py             runs are groups with a shape
        nats/direct/transport.py  nats/direct/test_nats_py_contract.py  nats-py uses it as its transport
        nats/direct/window.py     nats/direct/test_delayed_output.py    it says when output must wait
        nats/direct/writing_protocol.py nats/direct/test_protocol.py    a part of the protocol
    """,
    "replica/keyvalue_replica": """
        answers.py        test_core.py                             reads of the model share barriers
        applier.py        test_core.py                             the core applies each message
        bucket.py         test_core.py                             the calls of the model are made through its handles
        catching_up.py    test_open_buckets.py                     its model refuses the barrier that would end it
        change_feed.py    tests/integration/test_replicated_watch.py  it needs a real server
        company.py        tests/integration/test_shared_buckets.py  what followers of real streams share
        errors.py         test_core.py                             each is the answer to a call
        importing.py      tests/integration/test_moving.py         it needs a real server
        kv_stores.py      tests/integration/test_shared_buckets.py  it joins stores that need a real server
        options.py        tests/integration/test_replicated.py     each changes how a bucket is opened
        outgoing.py       test_core.py                             each message of the model is one
        outside.py        test_core.py                             the model is one
        own_changes.py    test_core.py                             the model applies changes when they are acknowledged
        position.py       test_core.py                             the rule that the model checks
        promise.py        test_core.py                             each answer is one
        publications.py   test_core.py                             the model loses their acknowledgements
        rehearsal.py      test_open_buckets.py                     a refused write creates no KV bucket
        reservations.py   test_increments.py                       limits count what is in flight
        sequences.py      test_increments.py                       increments need them
        waiting_bucket.py  tests/integration/test_shared_buckets.py  it waits for a real server
        watched_bucket.py  tests/integration/test_plain_watch.py    it needs a real server
        wires.py          tests/integration/test_shared_buckets.py  its subscriptions need a real server
    """,
    "provider/keyvalue_provider": """
        __main__.py           tests/integration/test_standalone.py  it is the command
        health.py             observe/test_endpoint.py              it says what the endpoint answers
        optional_parts.py     tests/integration/test_metrics.py     it composes what options need
        config/watching_options.py  config/test_options.py          tables of options
        config/link_options.py  config/test_options.py              tables of options
        config/redis_plan.py  tests/integration/test_redis.py       what is refused at the start
        keyvalue/names.py     tests/integration/test_redis.py       keys that are not UTF-8
        outer_process.py      tests/test_build.py                   it needs the executable
        ancestor.py           tests/hostile/test_host.py            it needs processes
        client/functions.py   client/test_command.py                each is a command
        client/session.py     client/test_command.py                the connection of each command
        client/watch_link.py  client/test_watch.py                  the link of the command
        client/command_line.py  client/test_command.py              its arguments and errors
        client/transfer/formats.py    client/transfer/test_exporting.py  what is exported is imported again
        client/transfer/importing.py  client/transfer/test_exporting.py  what is exported is imported again
        client/transfer/position.py   client/transfer/test_exporting.py  the commands are interrupted
        client/transfer/progress.py   client/transfer/test_exporting.py  it needs a terminal
        client/transfer/sources.py    client/transfer/test_exporting.py  the files of an import
        launcher.py           tests/hostile/test_host.py            it needs processes
        moving.py             tests/integration/test_moving.py      its commands need a NATS server
        replicated.py         tests/integration/test_shared_buckets.py  its parts need a real server
        signals.py            tests/integration/test_signals.py     they need a process
        standard_streams.py   tests/integration/test_streams.py     closed streams need a process
        plain_import.py       tests/integration/test_moving.py      it needs JetStream
        snapshot_import.py    tests/integration/test_snapshot_import.py  it needs JetStream
        config/declaration.py  config/test_options.py              tables of options
        host/json_fields.py   host/test_links.py                    how links and host data are read
        host/lattice.py       tests/integration/test_lattice.py     it needs a NATS server
        host/nkey_text.py     host/test_xkeys.py                    the text of a key
        host/restart_mark.py  tests/hostile/test_host.py            it is set by one process for the next
        host/session.py       tests/integration/test_host.py        it needs a NATS server
        host/subjects.py      tests/integration/test_host.py        the subjects that a real host publishes to
        packaging/archive_command.py  packaging/test_archive.py     it makes and checks archives
        packaging/claims.py   packaging/test_archive.py             claims are part of the archive
        watching/watchers.py  tests/integration/test_watch.py       it needs links and a component
    """,
    "bench": """
        load/case.py          load/test_workload.py            the parameters of the calls
        load/responder.py     load/test_wire.py                it speaks NATS, without a socket
        run/processes.py      run/test_stage.py                the processes of a stage
        run/provenance.py     run/test_plan.py                 it is recorded with each run
        report/report_table.py  report/test_tables.py          the tables of a run
        run/scenarios.py      run/test_plan.py                 the choices of a plan
        run/subjects.py       run/test_plan.py                 the choices of a plan
    """,
}


def read(reasons: Mapping[str, str]) -> Iterator[tuple[str, Elsewhere]]:
    """Yield the entries of the table by the path of the module."""
    for package, rows in reasons.items():
        for module, tests, why in (row.split(maxsplit=2) for row in rows.strip().splitlines()):
            place = tests if tests.startswith("tests/") else f"{PACKAGES[package]}/{tests}"
            yield f"{package}/{module}", Elsewhere(place, why)


def modules(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each module and the place of its tests.

    `__init__` has nothing to test, and benchmarks under pytest are tests.
    """
    for package, tests in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            if path.stem not in ("__init__", "conftest") and not path.stem.startswith("test_"):
                folder = path.parent.relative_to(root / package)
                test = Path(tests) / folder / f"test_{path.stem.strip('_')}.py"
                yield path.relative_to(root).as_posix(), test.as_posix()


def faults(root: Path, elsewhere: Mapping[str, Elsewhere]) -> Iterator[str]:
    """Yield modules without tests, and entries of the list that are wrong."""
    places = dict(modules(root))
    for module, test in places.items():
        if (root / test).exists():
            if module in elsewhere:
                yield f"{module}: found {test}, so it needs no entry"
        elif module not in elsewhere:
            yield f"{module}: found no {test}, and no entry with the reason"
    for module, entry in elsewhere.items():
        if module not in places:
            yield f"{module}: found an entry, but no module"
        if not (root / entry.tests).exists():
            yield f"{module}: found no {entry.tests}, which its entry names"


def test_each_module_has_its_tests_or_a_reason() -> None:
    assert len(list(modules(ROOT))) > 80
    found = list(faults(ROOT, dict(read(REASONS))))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "test"),
    [
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
    assert list(faults(tmp_path, entry)) == [f"{module}: found an entry, but no module"]
