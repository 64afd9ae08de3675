"""Requests to the lattice for the provider's links. A host does not repeat links that the provider missed.

wasmbus.ctl.v1.{lattice}.link.get            -> {"success", "message", "response": [links]}
wasmbus.ctl.v1.{lattice}.config.get.{name}   -> {"success", "message", "response": {option: text}}

A link holds only the names of its configurations. If a name begins with SECRET, the configuration is a secret, and the
lattice does not return it. A link with a secret or with an unavailable configuration is unreadable, because the
provider cannot know what the link allows.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from keyvalue_provider.host.json_fields import FieldError, Fields
from keyvalue_provider.host.links import LINKS_MAX, LinkKey, key_of
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.subjects import check_subject

__all__ = ["LINKS_PER_STEP", "LatticeLink", "lattice_links"]

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 2.0
#: Number of links that are read, or added, in one step of the event loop. A step takes about 3 ms.
LINKS_PER_STEP = 50
#: An error shows at most this many characters of a configuration's name.
NAME_CHARACTERS_MAX = 64
#: An error shows at most this many characters of the lattice's message.
MESSAGE_CHARACTERS_MAX = 256
#: The limit for the length of a configuration's name. A NATS server closes the connection if a control line is longer
#: than 4 KiB.
NAME_BYTES_MAX = 1024
SECRET_PREFIX = "SECRET"
CONFIG_FIELDS = ("source_config", "target_config")


class LatticeLink(NamedTuple):
    """A link from the lattice.

    :param value: the link in the form of a `linkdefs.put` message
    :param unreadable: why the link is unreadable; empty if it is readable
    :param lacks_secrets: True if the link is unreadable because the lattice does not return its secrets
    :param lacks_answer: True if the link is unreadable because the lattice did not answer in time
    """

    key: LinkKey
    value: Mapping[str, Any]
    unreadable: str
    lacks_secrets: bool = False
    lacks_answer: bool = False


class NoSecretsError(FieldError):
    """The error for a configuration that is a secret, which the lattice does not return."""


class NoAnswerError(FieldError):
    """The error for a configuration that the lattice did not return in time."""


async def lattice_links(connection: Connection, lattice: str, provider_key: str) -> list[LatticeLink] | None:
    """Return this provider's links, or None if the lattice gives no usable answer.

    :raises DisconnectedError: NATS is not connected
    """
    prefix = f"wasmbus.ctl.v1.{lattice}"
    try:
        answer = await _asked(connection, f"{prefix}.link.get")
        fields = Fields(answer)
        if not fields.flag("success", True):
            raise FieldError(f"the request failed: {fields.text('message')[:MESSAGE_CHARACTERS_MAX]!r}")
        links = fields.array("response")
    except TimeoutError:
        log.debug("the lattice does not answer the request for links")
        return None
    except FieldError as error:
        log.warning("the links of the lattice: %s", error)
        return None
    mine = {key: link for link in links if (key := key_of(link)) is not None and provider_key in key[:2]}
    if len(mine) > LINKS_MAX:
        log.warning("the links of the lattice: %d links of this provider; the limit is %d", len(mine), LINKS_MAX)
        return None
    configs = Configs(connection, prefix)
    found = []
    for number, (key, link) in enumerate(mine.items(), 1):
        found.append(await _read(key, link, configs))
        if not number % LINKS_PER_STEP:
            await asyncio.sleep(0)  # `_read` need not wait for a configuration that is already known
    return found


class Configs:
    """The lattice's named configurations. Each is requested only once, and none is requested after a timeout."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self._found: dict[str, dict[str, str] | FieldError] = {}
        self._silent = False

    async def get(self, name: str) -> dict[str, str]:
        """Return the options in a configuration.

        :raises FieldError: the configuration is not available
        :raises DisconnectedError: NATS is not connected
        """
        if name not in self._found:
            try:
                self._found[name] = await self._ask(name)
            except FieldError as error:
                self._found[name] = type(error)(f"{name[:NAME_CHARACTERS_MAX]}: {error}")
        found = self._found[name]
        if isinstance(found, FieldError):
            raise found
        return found

    async def _ask(self, name: str) -> dict[str, str]:
        if name.startswith(SECRET_PREFIX):
            raise NoSecretsError(
                "the lattice does not return secrets; delete the link and put it again, or restart the provider"
            )
        try:
            check_subject(name, "name")
        except ValueError as error:
            raise FieldError(str(error)) from None
        if (name_bytes := len(name.encode())) > NAME_BYTES_MAX:
            raise FieldError(f"the name is {name_bytes} bytes; the limit is {NAME_BYTES_MAX}")
        try:
            if self._silent:
                raise TimeoutError
            fields = Fields(await _asked(self._connection, f"{self._prefix}.config.get.{name}"))
        except TimeoutError:
            self._silent = True
            raise NoAnswerError(f"the lattice has not answered within {REQUEST_TIMEOUT_S:g} s") from None
        if "response" not in fields:
            raise FieldError("the lattice has no such configuration")
        return fields.text_map("response")


async def _asked(connection: Connection, subject: str) -> Any:
    answer = await connection.request(subject, b"", REQUEST_TIMEOUT_S)
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise FieldError(f"found {len(answer)} bytes that are not JSON") from None


async def _read(key: LinkKey, link: Any, configs: Configs) -> LatticeLink:
    """Return a link that holds options instead of configuration names. Later configurations override earlier ones."""
    value: dict[str, Any] = {**link}
    try:
        fields = Fields(link)
        for field in CONFIG_FIELDS:
            options: dict[str, str] = {}
            for name in fields.texts(field):
                options |= await configs.get(name)
            value[field] = options
    except FieldError as error:
        lacks = isinstance(error, NoSecretsError), isinstance(error, NoAnswerError)
        return LatticeLink(key, value, f"configuration {error}", *lacks)
    return LatticeLink(key, value, "")
