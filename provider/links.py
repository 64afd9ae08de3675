"""Links: who may call the provider, and whom the provider may call. Knows the host's contract, and nothing of key-value."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from provider.json_fields import FieldError, Fields

__all__ = ["LinkDefinition", "LinkKey", "Links"]

#: Links that are kept, and of those that something is said about how many are told: whoever may publish can put links.
LINKS_MAX = 10_000
LINES_MAX = 8
#: Of each part of a link's key, so much is told.
NAME_CHARACTERS_MAX = 128
#: Source, target and name: a component may be linked to a provider more than once, under several names.
LinkKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class LinkDefinition:
    """A link, as the host defines it. Configurations may hold what is secret: only their names show in `str` and `repr`."""

    source_id: str
    target: str
    name: str
    wit_namespace: str = ""
    wit_package: str = ""
    interfaces: tuple[str, ...] = ()
    source_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    target_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    source_secrets: bytes | None = field(default=None, repr=False)
    target_secrets: bytes | None = field(default=None, repr=False)

    @property
    def key(self) -> LinkKey:
        """What tells this link from others."""
        return self.source_id, self.target, self.name

    def __str__(self) -> str:
        interfaces = ", ".join(self.interfaces) or "no interface"
        options = ", ".join(sorted({*self.source_config, *self.target_config})) or "none"
        return f"{self.source_id} -> {self.target} ({self.name}), {interfaces}; options set: {options}"

    @classmethod
    def from_json(cls, value: Any, what: str = "") -> LinkDefinition:
        """A link from its JSON object.

        :raises FieldError: a field is of the wrong type, or names nobody
        """
        fields = Fields(value, what)
        link = cls(
            source_id=fields.text("source_id"),
            target=fields.text("target"),
            name=fields.text("name", "default"),
            wit_namespace=fields.text("wit_namespace"),
            wit_package=fields.text("wit_package"),
            interfaces=fields.texts("interfaces"),
            source_config=fields.text_map("source_config"),
            target_config=fields.text_map("target_config"),
            source_secrets=fields.octets("source_secrets"),
            target_secrets=fields.octets("target_secrets"),
        )
        for name in ("source_id", "target"):
            if not getattr(link, name):
                raise FieldError(f"{what}{name}: found nothing, expected a name")
        return link


class Links:
    """The links of one provider: those it is the target or the source of, by source, target and name."""

    def __init__(self, provider_key: str) -> None:
        self._provider_key = provider_key
        self._links: dict[LinkKey, LinkDefinition] = {}
        self._unusable: dict[LinkKey, str] = {}
        self._remarks: dict[LinkKey, str] = {}
        #: How often they changed: whoever works something out of them compares.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[LinkDefinition]:
        return iter(list(self._links.values()))

    def find(self, source_id: str, name: str) -> LinkDefinition | None:
        """The link by which this source may call the provider."""
        return self._links.get((source_id, self._provider_key, name))

    def callers(self) -> list[LinkDefinition]:
        """The links by which somebody may call the provider."""
        return [link for link in self._links.values() if link.target == self._provider_key]

    def callees(self) -> list[LinkDefinition]:
        """The links by which the provider may call somebody."""
        return [link for link in self._links.values() if link.source_id == self._provider_key]

    def refused_callers(self) -> list[tuple[str, str]]:
        """Source id and name of the links by which somebody could call the provider if they could be read."""
        return [
            (source_id, name)
            for source_id, target, name in self._unusable.keys() - self._links.keys()
            if target == self._provider_key
        ]

    @property
    def unusable(self) -> list[str]:
        """Why links that were put can't be used: one line each."""
        return _first(self._unusable.values(), "links more can't be used")

    @property
    def remarks(self) -> list[str]:
        """What is odd about links that can be used: one line each."""
        return _first(self._remarks.values(), "remarks more on links")

    def refuse(self, link: LinkDefinition, reason: str) -> None:
        """Note in `unusable`, until the link changes or goes, that what it asks for can't be had. It stays among the links."""
        self._unusable[link.key] = f"{_named(link.key)}: {reason}"

    def remark(self, link: LinkDefinition, what: str) -> None:
        """Note something in `remarks`, until the link changes or goes."""
        self._remarks[link.key] = f"{_named(link.key)}: {what}"

    def put(self, link: LinkDefinition) -> bool:
        """Keep a link, in place of one of the same key; whether anything changed.

        :raises FieldError: the link has nothing to do with this provider
        """
        if self._provider_key not in (link.target, link.source_id):
            raise FieldError(
                f"found a link from {link.source_id} to {link.target}, expected {self._provider_key} as one of them"
            )
        if link.key not in self._links and len(self._links) >= LINKS_MAX:
            raise FieldError(f"links: found {LINKS_MAX + 1}, allowed {LINKS_MAX}")
        if self._links.get(link.key) == link:
            return False
        self._forget(link.key)
        self._links[link.key] = link
        return True

    def delete(self, key: LinkKey) -> bool:
        """Forget a link; whether it was known."""
        was_known = key in self._links or key in self._unusable
        if was_known:
            self._forget(key)
        return was_known

    def put_json(self, payload: bytes) -> LinkDefinition | None:
        """Keep the link of a `linkdefs.put`; the link, or None if it was known just so.

        One that can't be used is noted in `unusable` until a good one of its key comes, or it is deleted.

        :raises FieldError: the payload is no link
        """
        value = _parsed(payload)
        try:
            link = LinkDefinition.from_json(value)
            return link if self.put(link) else None
        except FieldError as error:
            key = _key_of(value)
            if key is not None and self._provider_key in key[:2]:
                self._forget(key)  # the old definition no longer holds
                if len(self._unusable) < LINKS_MAX:
                    self._unusable[key] = f"{_named(key)}: {error}"
            raise

    def delete_json(self, payload: bytes) -> LinkKey | None:
        """Forget the link of a `linkdefs.del`; its key, or None if it was not known.

        :raises FieldError: the payload is no link
        """
        key = LinkDefinition.from_json(_parsed(payload)).key
        return key if self.delete(key) else None

    def _forget(self, key: LinkKey) -> None:
        self.changes += 1
        self._links.pop(key, None)
        self._unusable.pop(key, None)
        self._remarks.pop(key, None)


def _named(key: LinkKey) -> str:
    source_id, target, name = (part[:NAME_CHARACTERS_MAX] for part in key)
    return f"link {source_id} -> {target} ({name})"


def _first(lines: Collection[str], more: str) -> list[str]:
    """The first of these, and how many there are besides."""
    first = list(islice(lines, LINES_MAX))
    if len(lines) > LINES_MAX:
        first.append(f"and {len(lines) - LINES_MAX} {more}")
    return first


def _parsed(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise FieldError(f"found {len(payload)} bytes that are not JSON, expected a link definition") from None


def _key_of(value: Any) -> LinkKey | None:
    """The key of a link whose other fields may be wrong."""
    if not isinstance(value, dict):
        return None
    names = (value.get("source_id"), value.get("target"), value.get("name") or "default")
    if not all(isinstance(name, str) and name for name in names):
        return None
    return names[0], names[1], names[2]  # type: ignore[return-value] # checked one by one
