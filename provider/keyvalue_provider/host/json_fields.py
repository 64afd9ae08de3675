"""Typed access to the fields of a JSON object. Errors name the field, but never its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FieldError", "Fields", "shown_name"]

#: An error shows at most this many characters of a name, because a name can have any length.
NAME_CHARACTERS_MAX = 128

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class FieldError(ValueError):
    """The error for a field of the wrong type. The message names the field, the type found and the type expected."""


class Fields:
    """The fields of one JSON object. A missing or null field has its default value. Unknown fields are ignored.

    :param what: the object's name in errors, for example `link_definitions[2].`
    """

    __slots__ = ("_fields", "_what")

    def __init__(self, fields: Any, what: str = "") -> None:
        if not isinstance(fields, dict):
            raise FieldError(f"{what.rstrip('.') or 'top level'}: found {_name(fields)}, expected an object")
        self._fields: dict[str, Any] = fields
        self._what = what

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """Return a string. An empty string counts as missing."""
        value: str = self._take(name, str, "a string", default)
        return value or default

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean."""
        value: bool = self._take(name, bool, "a boolean", default)
        return value

    def number(self, name: str, default: int) -> int:
        """Return a non-negative integer."""
        value: int = self._take(name, int, "a whole number", default)
        if isinstance(value, bool) or value < 0:
            raise self._error(name, value, "a whole number from 0")
        return value

    def array(self, name: str) -> list[Any]:
        """Return an array. Its elements are not checked."""
        value: list[Any] = self._take(name, list, "an array", [])
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return an array of strings."""
        values = self.array(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self._error(f"{name}[{index}]", value, "a string")
        return tuple(values)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object. Its values are not checked."""
        value: dict[str, Any] = self._take(name, dict, "an object", {})
        return value

    def text_map(self, name: str) -> dict[str, str]:
        """Return an object whose values are strings."""
        return text_map(self.mapping(name), f"{self._what}{name}")

    def octets(self, name: str) -> bytes | None:
        """Return an array of numbers as bytes, or None if the field is missing."""
        if name not in self:
            return None
        numbers = self.array(name)
        try:
            return bytes(numbers)
        except (TypeError, ValueError):
            raise FieldError(f"{self._what}{name}: expected an array of numbers from 0 to 255") from None

    def _take(self, name: str, kind: type, expected: str, default: Any) -> Any:
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self._error(name, value, expected)
        return value

    def _error(self, name: str, value: Any, expected: str) -> FieldError:
        return FieldError(f"{self._what}{name}: found {_name(value)}, expected {expected}")


def text_map(value: Any, what: str) -> dict[str, str]:
    """Check that a JSON value is an object of strings, and return a copy.

    :raises FieldError: `value` is not an object, or one of its values is not a string
    """
    if not isinstance(value, Mapping):
        raise FieldError(f"{what}: found {_name(value)}, expected an object of strings")
    for name, text in value.items():
        if not isinstance(text, str):
            raise FieldError(f"{what}.{shown_name(name)}: found {_name(text)}, expected a string")
    return dict(value)


def shown_name(name: str) -> str:
    """Return a name, shortened for an error message."""
    return name[:NAME_CHARACTERS_MAX]


def _name(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)
