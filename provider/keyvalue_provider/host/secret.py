"""Values that must not appear in logs or errors."""

from __future__ import annotations

from typing import Any

from keyvalue_provider.host.json_fields import FieldError, Fields

__all__ = ["Secret"]


class Secret:
    """A secret that is never shown when it is printed or formatted. An empty secret is false.

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
        """Parse a secret from a host's JSON object.

        The object is `{"kind": "String", "value": text}` or `{"kind": "Bytes", "value": [numbers]}`.

        :param what: the secret's name in errors, for example `secrets.password.`
        :raises FieldError: the object is malformed; the message does not show the secret
        """
        fields = Fields(value, what)
        match fields.text("kind"):
            case "String":
                return cls(fields.text("value"))
            case "Bytes":
                return cls(fields.octets("value") or b"")
        raise FieldError(f"{what}kind: expected String or Bytes")

    def reveal(self) -> str:
        """Return the secret as text.

        Bytes are decoded as UTF-8. Invalid bytes become lone surrogates, which only paths may contain.
        """
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
        raise TypeError("a secret cannot be pickled or copied")
