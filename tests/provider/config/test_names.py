"""Names: which are misspelt, by how many edits, and which belong to other programs."""

from __future__ import annotations

import doctest
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.config import names
from keyvalue_provider.config.declaration import OptionTable
from keyvalue_provider.config.names import OF_OTHERS, edits_between, nearest_names, sort_names
from keyvalue_provider.config.options import LINK_OPTIONS, OPTIONS, SERVE_OPTIONS, WATCHING_LINK_OPTIONS

TABLES = {
    "link": LINK_OPTIONS,
    "provider": OPTIONS,
    "serve": SERVE_OPTIONS,
    "watching link": WATCHING_LINK_OPTIONS,
}
CHARACTERS = string.ascii_lowercase + string.digits + "_"


@pytest.mark.parametrize(
    ("place", "name", "meant"),
    [
        ("link", "ACCESS", "access"),
        ("link", "ACESS", "access"),
        ("link", "pageKeys", "page_keys"),
        ("link", "key-byte-max", "key_bytes_max"),
        ("link", "bucket2", "bucket or buckets"),
        ("link", "key_max", "quota_keys"),  # an old name suggests the present one
        ("provider", "byte_max", "quota_bytes"),
        ("provider", "key_max", "keys_max"),
        ("serve", "nkeys", "nkey or keys"),
        ("watching link", "watches", "watch"),
    ],
)
def test_misspellings(place: str, name: str, meant: str) -> None:
    found = TABLES[place].sort_names([name])
    assert found.faults == {name: f"{name}: no option has this name; did you mean {meant}?"}
    assert (found.options, found.unknown, found.deprecated) == ({}, [], {})


#: Names that configurations of other providers have, and names that Kubernetes gives to a service called keyvalue.
FOREIGN = [
    *("URL", "url", "uri", "urls", "cluster_uri", "cluster_uris", "nats_url", "redis_url", "addr", "host", "port"),
    *("user", "username", "password", "token", "auth", "secret", "client_jwt", "client_seed", "mount"),
    *("tls_cert", "tls_ca_file", "ca_cert", "certificate", "timeout", "timeout_ms", "ttl", "db", "database", "table"),
    *("cluster", "region", "endpoint", "path", "key", "name", "max_keys", "max_bytes", "pool_max", "pool_size", "size"),
    *("bucket_name", "bucketName", "storage_account", "container", "namespace", "config"),
    *("service_host", "service_port", "port_4222_tcp", "port_4222_tcp_addr", "", " ", "\ud800", "x" * 10_000),
]


@pytest.mark.parametrize("place", ["link", "provider", "watching link"])
def test_names_of_other_providers_are_unknown(place: str) -> None:
    found = TABLES[place].sort_names(FOREIGN)
    assert found.unknown == FOREIGN
    assert not found.faults


@pytest.mark.parametrize("place", TABLES)
def test_no_option_of_one_place_resembles_one_of_another(place: str) -> None:
    """An option that is set in the wrong place is then unknown there, and never a misspelling."""
    others = {name for table in TABLES.values() for name in (*table, *table.old_names)}
    own = {*TABLES[place], *TABLES[place].old_names}
    assert not TABLES[place].sort_names(others - own).faults


def test_old_names() -> None:
    assert LINK_OPTIONS.old_names == {"keys_max": "quota_keys", "bytes_max": "quota_bytes"}
    assert OPTIONS.old_names == SERVE_OPTIONS.old_names == {"bytes_max": "quota_bytes"}  # keys_max is another option
    found = LINK_OPTIONS.sort_names(["keys_max", "bytes_max", "quota_bytes"])
    assert found.options == {"keys_max": "quota_keys", "quota_bytes": "quota_bytes"}
    assert found.deprecated == {"keys_max": "keys_max is deprecated (use quota_keys)"}
    assert found.faults == {
        "bytes_max": "bytes_max: this is the old name of quota_bytes, which is set too; set only quota_bytes"
    }


def test_characters_that_cannot_be_printed_are_escaped() -> None:
    (fault,) = sort_names(["acc\x1bess"], ["access"], {}).faults.values()
    assert fault == "'acc\\x1bess': no option has this name; did you mean access?"


@st.composite
def single_edits(draw: st.DrawFn) -> tuple[OptionTable, str, str]:
    """Draw a table, a name in it, and the name after one edit."""
    table = draw(st.sampled_from([LINK_OPTIONS, SERVE_OPTIONS, WATCHING_LINK_OPTIONS]))
    name = draw(st.sampled_from([*table, *table.old_names]))
    at, character = draw(st.integers(0, len(name) - 1)), draw(st.sampled_from(CHARACTERS))
    edited = draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],
                name[:at] + character + name[at:],
                name[:at] + character + name[at + 1 :],
                name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
            ]
        )
    )
    return table, name, edited


@given(single_edits())
def test_any_single_edit_of_a_name_is_a_fault_that_names_it(edit: tuple[OptionTable, str, str]) -> None:
    table, name, edited = edit
    found = table.sort_names([edited])
    if edited in (*table, *table.old_names):
        assert list(found.options) == [edited]
    elif edited in OptionTable.known | OF_OTHERS:  # an option at another place: `batch` is one edit away from `watch`
        assert found.unknown == [edited]
    else:
        meant = found.faults[edited].partition("did you mean ")[2].rstrip("?").split(" or ")
        assert table.old_names.get(name, name) in meant


def edits_by_table(one: str, other: str) -> int:
    """Count edits by the textbook algorithm, optimal string alignment."""
    table = [[row + column for column in range(len(other) + 1)] for row in range(len(one) + 1)]
    for row in range(1, len(one) + 1):
        for column in range(1, len(other) + 1):
            best = min(
                table[row - 1][column] + 1,
                table[row][column - 1] + 1,
                table[row - 1][column - 1] + (one[row - 1] != other[column - 1]),
            )
            if row > 1 and column > 1 and one[row - 2 : row] == other[column - 2 : column][::-1]:
                best = min(best, table[row - 2][column - 2] + 1)
            table[row][column] = best
    return table[-1][-1]


WORDS = st.text("abc", max_size=8)


@given(WORDS, WORDS, st.integers(0, 3))
def test_edits_agree_with_the_textbook_algorithm(one: str, other: str, edits_max: int) -> None:
    edits = edits_by_table(one, other)
    assert min(edits_between(one, other, edits_max), edits_max + 1) == min(edits, edits_max + 1)
    allowed = 2 if min(len(one), len(other)) >= 5 else 1
    assert nearest_names(one, [other]) == ([other] if edits <= allowed else [])


def test_the_examples() -> None:
    assert doctest.testmod(names).failed == 0
