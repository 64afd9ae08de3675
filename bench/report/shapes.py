"""The expected shape of run.json, and a function that checks a JSON value against a shape.

A shape is one of:

- a Python type;
- {name: shape} for an object with these fields; a field is optional if its name ends in '?';
- (shape,) for an object whose fields have any names, and values of this shape;
- [shape] for a list whose elements have this shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["RUN", "faults"]

Shape = Any
NUMBER = int | float
NAMES: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    NUMBER: "a number",
    dict: "an object",
    list: "a list",
}
RUN: Shape = {
    "format": int,
    "about": {
        "when": str,
        "commit": {"id": str, "changed": bool},
        "versions": (str,),
        "machine": {"processor": str, "architecture": str, "cores": int, "memory_bytes": int, "system": str},
        "settings": {"rounds": int, "seconds": NUMBER, "subjects": dict},
        "load_average_before": str,
        "failed?": [{"subject": str, "case": str, "round": int, "why": str, "is_gone": bool}],
    },
    "rows": [
        {
            "scenario": str,
            "case": str,
            "fields": dict,
            "subject": str,
            "round": int,
            "figures": (NUMBER,),
            "latencies?": str,
        }
    ],
    "void": [str],
}


def faults(found: object, shape: Shape, where: str = "") -> Iterator[str]:
    """Yield a message for each part of a JSON value that does not match the shape.

    :param where: path of `found` in the whole JSON value, for the messages

    >>> list(faults({"a": [1, "2"]}, {"a": [int], "b": str, "c?": str}))
    ["a[1]: found '2', expected a whole number", 'b is missing, expected text']
    """
    kind = kind_of(shape)
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        text = repr(found)
        yield f"{where or 'all'}: found {text if len(text) <= 60 else text[:57] + '...'}, expected {NAMES[kind]}"
    elif isinstance(shape, list):
        for index, value in enumerate(found):
            yield from faults(value, shape[0], f"{where}[{index}]")
    elif isinstance(shape, tuple):
        for name, value in found.items():
            yield from faults(value, shape[0], f"{where}.{name}")
    elif isinstance(shape, dict):
        for name, part in shape.items():
            bare_name = name.removesuffix("?")
            path = f"{where}.{bare_name}".lstrip(".")
            if bare_name in found:
                yield from faults(found[bare_name], part, path)
            elif bare_name == name:
                yield f"{path} is missing, expected {NAMES[kind_of(part)]}"


def kind_of(shape: Shape) -> Any:
    """Return the Python type of a JSON value with this shape."""
    if isinstance(shape, dict | tuple):
        return dict
    return list if isinstance(shape, list) else shape
