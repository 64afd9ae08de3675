"""Values that must not be seen."""

from __future__ import annotations

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

    def reveal(self) -> str:
        """The secret as text; bytes are read as UTF-8."""
        return self._value if isinstance(self._value, str) else self._value.decode()

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
