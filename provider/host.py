"""The host's side of a provider's life: its subjects, and what is said on them. Knows nothing of key-value.

wasmbus.rpc.{lattice}.{provider}.health                  answered with {"healthy", "message"}
wasmbus.rpc.{lattice}.{provider}.linkdefs.put|del        a link definition; no answer
wasmbus.rpc.{lattice}.{provider}.config.update           the whole configuration; no answer
wasmbus.rpc.{lattice}.{provider}.{link name}.shutdown    for the host that started us: answered last of all
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from provider.host_data import HostData
from provider.json_fields import FieldError, Fields, text_map
from provider.links import Links
from transport.connection import Connection, Message
from transport.errors import DisconnectedError

__all__ = ["Capability", "Host", "HostSubjects", "host_subjects"]

log = logging.getLogger(__name__)


class HostSubjects(NamedTuple):
    """The subjects on which a host speaks to a provider."""

    health: str
    link_put: str
    link_delete: str
    config_update: str
    shutdown: str


def host_subjects(lattice: str, provider_key: str, link_name: str) -> HostSubjects:
    """Subjects from what the host data says.

    >>> host_subjects("default", "kv", "default").shutdown
    'wasmbus.rpc.default.kv.default.shutdown'
    """
    prefix = f"wasmbus.rpc.{lattice}.{provider_key}"
    return HostSubjects(
        health=f"{prefix}.health",
        link_put=f"{prefix}.linkdefs.put",
        link_delete=f"{prefix}.linkdefs.del",
        config_update=f"{prefix}.config.update",
        shutdown=f"{prefix}.{link_name}.shutdown",
    )


class Capability(Protocol):
    """What a provider does with what its host says."""

    def ailments(self) -> list[str]:
        """What keeps the provider from serving well, a line each; none if it is healthy."""
        ...

    def configure(self, config: Mapping[str, str]) -> None:
        """Take the whole new configuration."""
        ...

    def refuse_configuration(self, reason: str) -> None:
        """Know that there is a new configuration that can't be read."""
        ...

    def links_changed(self) -> None:
        """Take the links as they are now: one was put, deleted, or replaced by what can't be used."""
        ...


class Host:
    """Listens to the host. Sets `stop_requested` when it asks the provider to stop; then `acknowledge_stop`, last of all."""

    def __init__(
        self, connection: Connection, host_data: HostData, capability: Capability, stop_requested: asyncio.Event
    ) -> None:
        self.links = Links(host_data.provider_key)
        for link in host_data.link_definitions:
            try:
                self.links.put(link)
            except FieldError as error:
                log.warning("a link of the host data is ignored: %s", error)
        self._stop_requested = stop_requested
        self.connection = connection
        self._host_id = host_data.host_id
        self._capability = capability
        self._subjects = host_subjects(host_data.lattice_rpc_prefix, host_data.provider_key, host_data.link_name)
        self._stop_replies: list[str] = []

    async def start(self) -> None:
        """Subscribe.

        :raises DisconnectedError: the connection is closed
        """
        subjects = self._subjects
        for subject, callback in (
            (subjects.link_put, self._on_link_put),
            (subjects.link_delete, self._on_link_delete),
            (subjects.config_update, self._on_config_update),
            (subjects.health, self._on_health),
            (subjects.shutdown, self._on_shutdown),
        ):
            await self.connection.subscribe(subject, callback)

    async def acknowledge_stop(self) -> None:
        """Answer the host's request to stop, if it was one. The host ends the process when the answer has come."""
        for reply in self._stop_replies:
            await self._answer(reply, b"provider shutdown handled successfully")

    async def _on_health(self, message: Message) -> None:
        ailments = [*self._capability.ailments(), *self.links.unusable]
        lines = [*(ailments or ["serving"]), *self.links.remarks]
        health = {"healthy": not ailments, "message": "; ".join(lines)}
        await self._answer(message.reply, json.dumps(health).encode())

    async def _on_link_put(self, message: Message) -> None:
        changes = self.links.changes
        try:
            link = self.links.put_json(message.data)
        except FieldError as error:
            log.warning("a link can't be used: %s", error)
        else:
            if link is not None:
                log.info("link put: %s", link)
        if self.links.changes != changes:  # also where what can't be used was in place of what could
            self._capability.links_changed()

    async def _on_link_delete(self, message: Message) -> None:
        try:
            key = self.links.delete_json(message.data)
        except FieldError as error:
            log.warning("a link was not deleted: %s", error)
            return
        if key is not None:
            log.info("link deleted: %s -> %s (%s)", *key)
            self._capability.links_changed()

    async def _on_config_update(self, message: Message) -> None:
        try:
            config = text_map(json.loads(message.data), "config")
        except FieldError as error:
            reason = str(error)
        except (ValueError, RecursionError):
            reason = f"found {len(message.data)} bytes that are not JSON"
        else:
            self._capability.configure(config)
            return
        log.warning("a configuration was not taken: %s", reason)
        self._capability.refuse_configuration(reason)

    async def _on_shutdown(self, message: Message) -> None:
        try:
            host_id = Fields(json.loads(message.data)).text("host_id")
        except (ValueError, RecursionError):
            log.warning("a request to stop was ignored: expected a JSON object with the host_id")
            return
        if self._host_id and host_id != self._host_id:
            log.debug("a request to stop for another host was ignored")
            return
        log.info("the host asks to stop")
        if message.reply:
            self._stop_replies.append(message.reply)
        self._stop_requested.set()

    async def _answer(self, reply: str, payload: bytes) -> None:
        if not reply:
            return
        try:
            await self.connection.publish(reply, payload)
        except DisconnectedError as error:
            log.warning("the host was not answered: %s", error)
