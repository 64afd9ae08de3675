"""Parameters and results that were written by hand from the encoding's rules: by_hand.json, whose form README.md describes.

This module knows the file, and nothing of the code under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Failure", "Written", "load"]

PATH = Path(__file__).parent / "by_hand.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """A result that is an error: the case, and the message of `other`."""

    case: str
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A value that a function takes or returns, and its bytes.

    :param part: parameters | result
    :param read_only: a form that is read but never written
    :param value: parameters in a tuple; strings and list<u8> as bytes, a list of tuples as a list of lists; for a
      result, the ok value or a Failure
    """

    function: str
    part: str
    name: str
    read_only: bool
    value: Any = field(repr=False)
    encoded: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.function}, {self.part}: {self.name}"


def load(instance: str) -> list[Written]:
    """Return all vectors of one interface."""
    vectors = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
    return [_written(vector) for vector in vectors if vector["instance"] == instance]


def _written(vector: dict[str, Any]) -> Written:
    value = _value(vector["value"])
    return Written(
        function=vector["function"],
        part=vector["part"],
        name=vector["name"],
        read_only=vector.get("read_only", False),
        value=tuple(value) if vector["part"] == "parameters" else value,
        encoded=b"".join(
            bytes.fromhex(hexadecimal) * next(iter(times), 1) for hexadecimal, _, *times in vector["bytes"]
        ),
    )


def _value(raw: Any) -> Any:
    match raw:
        case {"hex": hexadecimal}:
            return bytes.fromhex(hexadecimal)
        case {"times": times, "of": one}:
            return _value(one) * times
        case {"ok": value}:
            return _value(value)
        case {"err": {"other": message}}:
            return Failure("other", message)
        case {"err": case}:
            return Failure(case)
        case str(text):
            return text.encode()
        case list(values):
            return list(map(_value, values))
    return raw
