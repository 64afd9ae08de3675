"""The declaration of options: an option is a field of a dataclass, and a table lists the options of one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar, overload

from keyvalue_provider.config.names import SortedNames, sort_names
from keyvalue_provider.config.values import OptionError, ValueType

__all__ = ["Option", "OptionTable", "option"]

#: A remark about unknown options shows at most this many characters of their names.
UNKNOWN_CHARACTERS_MAX = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of an option.

    :ivar default: the value if no source sets the option; None for no value
    :ivar help: a short description, for `--help` and for the documentation
    :ivar is_live: True if a change takes effect at once; False if it takes effect at the next start
    :ivar old_name: the option's previous name, which is still accepted
    :ivar needs: the option without which this one has no effect: its name, or NAME=VALUE
    """

    name: str
    value_type: ValueType[Any]
    default: Any
    help: str
    is_live: bool = False
    old_name: str | None = None
    needs: str | None = None

    def has_effect(self, options: object) -> bool:
        """Return True if the option that this one needs is set in `options`."""
        if self.needs is None:
            return True
        name, _, value = self.needs.partition("=")
        found = getattr(options, name)
        return bool(found == value) if value else found is not None

    def shown(self, value: Any) -> str:
        """Return a value of this option as text, without secrets."""
        return "none" if value is None else self.value_type.show(value)


@overload
def option(
    value_type: ValueType[T], help: str, *, default: T, live: bool = ..., old_name: str | None = ..., needs: str | None = ...
) -> T: ...  # fmt: skip


@overload
def option(
    value_type: ValueType[T], help: str, *, live: bool = ..., old_name: str | None = ..., needs: str | None = ...
) -> T | None: ...  # fmt: skip


def option(
    value_type: ValueType[T],
    help: str,
    *,
    default: T | None = None,
    live: bool = False,
    old_name: str | None = None,
    needs: str | None = None,
) -> T | None:
    """Declare an option as a field of a dataclass. `Option` describes the parameters."""
    declared = Option("", value_type, default, help, live, old_name, needs)
    return field(default=default, repr=not value_type.is_secret, metadata={"option": declared})


class OptionTable(dict[str, Option]):
    """The options of one place, by name.

    :param classes: the classes that declare the options
    :param kind: the word that remarks use for an option in this table
    :ivar old_names: the current name for each old name, unless the old name now belongs to another option
    :cvar known: the names, also the old ones, in all tables
    """

    known: ClassVar[set[str]] = set()

    def __init__(self, *classes: type, kind: str = "option") -> None:
        super().__init__(
            (declared.name, replace(declared.metadata["option"], name=declared.name))
            for place in classes
            for declared in fields(place)
        )
        self._kind = kind
        self.old_names = {
            option.old_name: option.name
            for option in self.values()
            if option.old_name is not None and option.old_name not in self
        }
        self.known.update(self, self.old_names)

    def sort_names(self, given: Iterable[str]) -> SortedNames:
        """Classify the names in a configuration, using this table's options."""
        return sort_names(given, self, self.old_names, OptionTable.known)

    def read(self, config: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Return the values in a link's configuration, by option, and remarks about ignored and deprecated names.

        :raises OptionError: a value is malformed, or a name is misspelt
        """
        names = self.sort_names(config)
        for fault in names.faults.values():
            raise OptionError(fault)
        read = {option: self[option].value_type.parse(name, config[name]) for name, option in names.options.items()}
        remarks = []
        if names.unknown:
            unknown = ", ".join(sorted(names.unknown))[:UNKNOWN_CHARACTERS_MAX]
            remarks.append(f"ignored, since no {self._kind} has this name: {unknown}")
        return read, [*remarks, *names.deprecated.values()]
