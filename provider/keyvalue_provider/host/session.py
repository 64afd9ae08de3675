"""A provider's life as its host directs it: health, links, configuration, shutdown. Knows nothing of what the provider does (`Capability`).

What the host says comes on the subjects of `keyvalue_provider.host.subjects`. A host puts a link once, also while the provider starts and
does not listen yet; so the session asks the lattice for links at the start, and whenever NATS was away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.json_fields import FieldError, Fields, text_map
from keyvalue_provider.host.lattice import lattice_links
from keyvalue_provider.host.links import LINKS_MAX, LinkDefinition, LinkKey, Links, key_of, parse_link
from keyvalue_provider.host.subjects import host_subjects
from keyvalue_transport.nats.connection import Connection, Message
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Capability", "HostSession"]

log = logging.getLogger(__name__)

#: When the lattice is asked for links. Hosts come back after a reconnect, as we do, and are not there at once.
AT_ONCE = (0.0,)
RECONNECTED = (0.0, 1.0, 3.0, 10.0)


class Capability(Protocol):
    """What a provider does with what its host says."""

    def ailments(self) -> list[str]:
        """Return what keeps the provider from serving well, a line each; none if it is healthy."""
        ...

    def configure(self, config: Mapping[str, str]) -> None:
        """Take the whole new configuration."""
        ...

    def refuse_configuration(self, reason: str) -> None:
        """Note that there is a new configuration that can't be read."""
        ...

    def links_changed(self) -> None:
        """Take the links as they are now: one was put, deleted, or replaced by what can't be used."""
        ...


class HostSession:
    """Listens to the host from `start` on. Sets `stop_requested` when it asks the provider to stop; then `acknowledge_stop`, last of all.

    :param links: those of the host data, to which those that come are added
    :param xkey: the provider's public one, if the host has given it keys
    """

    def __init__(
        self,
        connection: Connection,
        host_data: HostData,
        links: Links,
        xkey: str,
        capability: Capability,
        stop_requested: asyncio.Event,
    ) -> None:
        self._links = links
        self._stop_requested = stop_requested
        self._connection = connection
        self._host_id = host_data.host_id
        self._capability = capability
        self._lattice, self._provider_key = host_data.lattice_rpc_prefix, host_data.provider_key
        self._subjects = host_subjects(self._lattice, self._provider_key, host_data.link_name, xkey)
        self.asks_to_stop = False  # the host has asked
        self._stop_replies: list[str] = []
        self._asking: asyncio.Task[None] | None = None
        self._telling: asyncio.Handle | None = None  # while the capability does not know of the last changes
        self._deleted: set[LinkKey] = set()  # before the lattice was asked, and while it is

    def ailments(self) -> list[str]:
        """Return what keeps the session from listening well, a line each."""
        if self._asking is not None and self._asking.done() and not self._asking.cancelled():
            error = self._asking.exception()
            if error is not None:
                return [f"a background task died: {type(error).__name__}"]
        return []

    async def start(self) -> None:
        """Subscribe, and then begin to ask the lattice for links that were put before.

        :raises DisconnectedError: the connection is closed
        """
        subjects = self._subjects
        # A link that is put to key and xkey, deleted and put again at once must end as the host means it: in the order of all subjects.
        for subject, handle in (
            *((subject, self._on_link_put) for subject in subjects.link_puts),
            *((subject, self._on_link_delete) for subject in subjects.link_deletes),
            (subjects.config_update, self._on_config_update),
        ):
            await self._connection.subscribe_in_order(subject, handle)
        for subject, callback in (
            (subjects.health, self._on_health),
            (subjects.shutdown, self._on_shutdown),
        ):
            await self._connection.subscribe(subject, callback)
        self._ask(AT_ONCE)
        self._connection.on_reconnected = partial(self._ask, RECONNECTED)  # for what was put while NATS was away

    def stop(self) -> None:
        """Ask no more; what the host says is still heard."""
        self._connection.on_reconnected = None
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self, pauses_s: Sequence[float]) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.create_task(self._ask_lattice(pauses_s))

    async def acknowledge_stop(self) -> None:
        """Answer the host's request to stop, if it was one. The host ends the process when the answer has come."""
        for reply in self._stop_replies:
            await self._answer(reply, b"provider shutdown handled successfully")

    def _tell_soon(self) -> None:
        """Have the capability take the links as they are, before the next call is carried out.

        Once for all changes that come together: it is O(links), and they may come in thousands.
        """
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)
            self._connection.before_next_call(self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
            self._capability.links_changed()

    async def _on_health(self, message: Message) -> None:
        self._tell()  # what is wrong with links that came before the question stands in the answer
        ailments = [*self._capability.ailments(), *self.ailments(), *self._links.unusable]
        lines = [*(ailments or ["serving"]), *self._links.remarks]
        health = {"healthy": not ailments, "message": "; ".join(lines)}
        await self._answer(message.reply, json.dumps(health).encode())

    def _on_link_put(self, payload: bytes) -> None:
        changes = self._links.changes
        self._put(partial(self._links.put_json, payload), "put")
        if self._links.changes != changes:  # also where what can't be used was in place of what could
            self._tell_soon()

    def _on_link_delete(self, payload: bytes) -> None:
        try:
            value = parse_link(payload)
            key = key_of(value) or LinkDefinition.from_json(value).key
        except FieldError as error:
            log.warning("a link was not deleted: %s", error)
            return
        if (self._asking is None or not self._asking.done()) and len(self._deleted) < LINKS_MAX:
            self._deleted.add(key)
        if self._links.delete(key):
            log.info("link deleted: %s -> %s (%s)", *key)
            self._tell_soon()

    def _put(self, put: Callable[[], LinkDefinition | None], how: str) -> None:
        try:
            link = put()
        except FieldError as error:
            log.warning("a link can't be used: %s", error)
        else:
            if link is not None:
                log.info("link %s: %s", how, link)

    async def _ask_lattice(self, pauses_s: Sequence[float]) -> None:
        """Add the links that nobody has told us of: a host puts a link once, also while the provider starts and does not listen yet.

        :param pauses_s: before each time of asking, until there is an answer
        """
        found = None
        known = {link.key for link in self._links}
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            try:
                found = await lattice_links(self._connection, self._lattice, self._provider_key)
            except DisconnectedError as error:
                log.warning("the lattice was not asked for links: %s", error)
                return
            if found is not None:
                break
        else:
            return
        # Not deleted for that: who answers may not know of the newest yet.
        for source_id, target, name in known - {key for key, _, _ in found} - self._deleted:
            log.warning("link %s -> %s (%s): the lattice has none like it; it stays in force", source_id, target, name)
        changes = self._links.changes
        for key, value, unreadable in found:
            if self._links.knows(key) or key in self._deleted:  # the host knows better, and tells secrets
                continue
            if unreadable:
                log.warning("link %s -> %s (%s): all is denied: %s", *key, unreadable)
                self._links.put_unreadable(key, unreadable)
            else:
                self._put(partial(self._links.put_value, value), "found in the lattice")
        self._deleted.clear()
        if self._links.changes != changes:
            self._tell_soon()

    def _on_config_update(self, payload: bytes) -> None:
        try:
            config = text_map(json.loads(payload), "config")
        except FieldError as error:
            reason = str(error)
        except (ValueError, RecursionError):
            reason = f"found {len(payload)} bytes that are not JSON"
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
        self.asks_to_stop = True
        if message.reply:
            self._stop_replies.append(message.reply)
        self._stop_requested.set()

    async def _answer(self, reply: str, payload: bytes) -> None:
        if not reply:
            return
        try:
            await self._connection.publish(reply, payload)
        except DisconnectedError as error:
            log.warning("the host was not answered: %s", error)
