"""The names that `keyvalue_transport` offers to programs that call a provider.

Each is imported when it is first used.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import keyvalue_transport
from keyvalue_transport import (
    Connection,
    ConnectionOptions,
    InterfaceError,
    KeyValueClient,
    NoSuchStoreError,
    TlsOptions,
    TransportError,
)
from keyvalue_transport.keyvalue import errors as keyvalue_errors
from keyvalue_transport.nats import client, connection, tls
from keyvalue_transport.wrpc import errors as wrpc_errors

#: Names that no caller of a provider sees: a decoder needs more bytes, a server finds parameters over a limit, or too many
#: calls wait.
OF_SERVERS = {"Length", "LengthLimitError", "NeedMoreBytes", "NoPlaceError"}

LOADED = """
import importlib, json, pkgutil, sys
import keyvalue_transport
for room in ("wrpc", "keyvalue"):
    for module in pkgutil.iter_modules([f"{keyvalue_transport.__path__[0]}/{room}"]):
        importlib.import_module(f"keyvalue_transport.{room}.{module.name}")
ours = [name for name in sys.modules if name.startswith("keyvalue_transport.")]
before = [name for name in ("nats", "nkeys", "asyncio", "ssl") if name in sys.modules]
from keyvalue_transport import KeyValueClient
print(json.dumps([len(ours), before, "nats" in sys.modules]))
"""


def test_nats_py_is_loaded_when_it_is_first_needed() -> None:
    run = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, timeout=60)
    ours, before, after = json.loads(run.stdout)
    assert ours > 10
    assert before == []
    assert after is True


def test_all_names_can_be_imported() -> None:
    names: dict[str, object] = {}
    exec("from keyvalue_transport import *", names)
    assert set(keyvalue_transport.__all__) <= names.keys()
    assert set(keyvalue_transport.__all__) <= set(dir(keyvalue_transport))
    assert (KeyValueClient, Connection) == (client.KeyValueClient, connection.Connection)
    assert (ConnectionOptions, TlsOptions) == (connection.ConnectionOptions, tls.TlsOptions)
    assert issubclass(NoSuchStoreError, InterfaceError)
    assert not issubclass(InterfaceError, TransportError)


def test_all_errors_of_a_caller_are_exported() -> None:
    errors = {*keyvalue_errors.__all__, *wrpc_errors.__all__} - OF_SERVERS
    assert errors == {name for name in keyvalue_transport.__all__ if name.endswith("Error")}


def test_any_other_name_is_not_an_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'keyvalue_transport' has no attribute 'Store'"):
        _ = keyvalue_transport.Store  # type: ignore[attr-defined] # a type checker says so too
