"""Values that must not be seen."""

from __future__ import annotations

from typing import Any

from keyvalue_provider.host.json_fields import FieldError, Fields

__all__ = ["Secret"]


class Secret:
    """Holds a secret; prints, formats and compares without showing it. False when empty.

    >>> Secret("hush")
    <redacted>
    >>> f"{Secret('hush')}"
    '<redacted>'
    """

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value

    @classmethod
    def from_json(cls, value: Any, what: str) -> Secret:
        """A secret as a host writes it: `{"kind": "String", "value": text}` or `{"kind": "Bytes", "value": [numbers]}`.

        :param what: its name in errors, as `secrets.password.`
        :raises FieldError: it is none; the message does not show its value
        """
        fields = Fields(value, what)
        match fields.text("kind"):
            case "String":
                return cls(fields.text("value"))
            case "Bytes":
                return cls(fields.octets("value") or b"")
        raise FieldError(f"{what}kind: expected String or Bytes")

    def reveal(self) -> str:
        """The secret as text. Bytes are read as UTF-8; what is none comes as half surrogate pairs, which no option takes."""
        return self._value if isinstance(self._value, str) else self._value.decode(errors="surrogateescape")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "<redacted>"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")
