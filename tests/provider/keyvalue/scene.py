"""A scene that the tests of policy and handles share: a provider's links and service without its host, over a real store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from keyvalue_engine import Store
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.host.links import LinkDefinition, Links
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.wrpc.handler import Answer, Caller
from tests.conftest import options_of
from tests.engine.clock import Clock

KEY = "kv"
LINKED = Caller("component", "default")
OTHER = Caller("other", "default")
STRANGER = Caller("stranger", "default")
SECRET = "hush-Xq9"
Call = Callable[[Service, Caller, bytes], object]

READS: dict[str, Call] = {
    "get": lambda kv, caller, bucket: kv.get(caller, bucket, b"k"),
    "exists": lambda kv, caller, bucket: kv.exists(caller, bucket, b"k"),
    "list-keys": lambda kv, caller, bucket: kv.list_keys(caller, bucket, None),
    "get-many": lambda kv, caller, bucket: kv.get_many(caller, bucket, [b"k"]),
}
WRITES: dict[str, Call] = {
    "set": lambda kv, caller, bucket: kv.set(caller, bucket, b"k", b"1"),
    "increment": lambda kv, caller, bucket: kv.increment(caller, bucket, b"k", 1),
    "set-many": lambda kv, caller, bucket: kv.set_many(caller, bucket, {b"k": b"1"}),
    "set-many of nothing": lambda kv, caller, bucket: kv.set_many(caller, bucket, {}),
    "delete-many": lambda kv, caller, bucket: kv.delete_many(caller, bucket, [b"k"]),
    "delete": lambda kv, caller, bucket: kv.delete(caller, bucket, b"k"),
}
CALLS = READS | WRITES

T = TypeVar("T")


def at_once(answer: Answer[T]) -> T:
    """Return an answer that is ready without waiting."""
    assert not isinstance(answer, Awaitable)
    return answer


class Scene:
    """A provider's links and service, without its host.

    Keywords are options of the provider, named as in its configuration.
    """

    def __init__(self, **config: str) -> None:
        options = options_of(config)
        self.clock = Clock()
        self.store = Store(options.store_options(), clock=self.clock)
        self.links = Links(KEY)
        self.policy = Policy(self.store.options, self.links, options)
        self.service = Service(self.store, self.policy)

    def put(self, caller: Caller = LINKED, /, **target_config: str) -> None:
        """Put the link of a caller."""
        assert caller.source_id is not None
        assert caller.link_name is not None
        if self.links.put(LinkDefinition(caller.source_id, KEY, caller.link_name, target_config=target_config)):
            self.links_changed()

    def delete(self, caller: Caller = LINKED) -> None:
        """Delete that link."""
        assert self.links.delete((caller.source_id or "", KEY, caller.link_name or ""))
        self.links_changed()

    def links_changed(self) -> None:
        """Update the service, as the provider does after the host has put or deleted links."""
        self.service.policy_changed(self.policy.links_changed(self.links.take_changed()))

    def configure(self, options: ProviderOptions) -> None:
        """Take a new configuration, as the provider does."""
        if self.policy.configure(options):
            self.service.policy_changed()

    @property
    def quotas(self) -> int:
        """Return the number of quotas that the store keeps."""
        return len(self.service._handles._quotas)

    @property
    def counted_reaches(self) -> int:
        """Return the number of reaches whose keys and memory the store counts."""
        return len([*self.store._tables.ledger.usages])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
