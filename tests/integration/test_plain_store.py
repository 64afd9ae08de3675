"""The behaviour of the store over the wire with `keys = plain`: the tests of test_store.py and test_links.py.

Names that NATS does not allow are replaced (`named`). test_shared_buckets.py tests that they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S, Launch, Naming, NatsServer, launching
from tests.integration.test_links import (  # noqa: F401 # fixtures and tests, as below
    connect,
    host,
    test_a_call_right_after_its_link_uses_it,
    test_a_link_can_be_required_and_links_of_host_data_are_in_force_from_the_start,
    test_a_link_that_is_replaced_by_a_malformed_one_denies_everything,
    test_limits_of_a_link,
    test_links_that_change_under_load,
    test_the_meaning_of_a_name_changes_with_the_link,
)
from tests.integration.test_replicated import jetstream
from tests.integration.test_shared_buckets import CREATING, provider  # noqa: F401 # a fixture
from tests.integration.test_store import (  # noqa: F401 # these are tests, which run with the fixtures of this module
    caller,
    test_a_first_message_that_a_host_has_filled,
    test_every_function,
    test_limits_refuse_a_write_and_leave_the_store_unchanged,
    test_one_client_makes_many_calls_at_once,
    test_pages,
    test_the_provider_answers_like_the_captured_one,
    test_values_of_every_size,
)
from tests.vectors import Vector, load

#: The largest value of the tests must fit into one message.
MAX_PAYLOAD = 8 * 1024 * 1024
#: On a busy machine, JetStream takes more than its default of 5 s to store the batches of many callers.
PATIENT = {"jetstream_timeout_ms": str(int(DEADLINE_S * 1000))}
UNFIT = re.compile(r"[^-a-zA-Z0-9]")


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream."""
    server = NatsServer(directory := tmp_path_factory.mktemp("nats"), jetstream(directory, MAX_PAYLOAD))
    yield server
    server.stop()


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    with launching(nats_server.url, tmp_path, options=CREATING | PATIENT) as launch:
        yield launch


@pytest.fixture(scope="session")
def named() -> Naming:
    """Return a function that replaces what NATS does not allow in the names of KV buckets. Keys may have more."""
    return lambda name: UNFIT.sub(lambda unfit: f"_{ord(unfit[0]):x}", name)


@pytest.fixture
def vectors(named: Naming) -> list[Vector]:
    """Return the captured invocations whose names NATS allows."""
    found = [
        vector for vector in load() if not vector.fixed and all(name and named(name) == name for name in names(vector))
    ]
    left_out = {vector.name for vector in load() if not vector.fixed} - {vector.name for vector in found}
    assert all("empty-bucket" in name or "unicode" in name for name in left_out), left_out
    return found


def names(vector: Vector) -> Iterator[str]:
    """Yield the names of the buckets and keys of a captured call."""
    yield from (name.decode() for name in vector.state)
    yield from (name.decode() for values in vector.state.values() for name in values)
    yield from (name.decode() for name in (vector.arguments or ())[:2] if isinstance(name, bytes))
