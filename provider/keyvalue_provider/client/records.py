"""A key and its value as JSON: in the answers of `wrpc-kv --json`, and as the lines of an export.

{"key": "hello", "value": "world"}     a value that is UTF-8
{"key": "cat", "base64": "iVBORw0K"}   any other value
{"key": "none", "value": null}         a missing key, in answers only
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64

from keyvalue_provider.client.streams import json_text

__all__ = ["MalformedFileError", "TransferError", "json_line", "json_value", "read_json_line"]


class TransferError(Exception):
    """The error for a file that cannot be exported to or imported from."""


class MalformedFileError(TransferError):
    """The error for a file that must be corrected before it can be imported."""


def json_value(value: bytes | None) -> dict[str, str | None]:
    r"""Return the fields of a value.

    >>> json_value(b"a"), json_value(b"\xff")
    ({'value': 'a'}, {'base64': '/w=='})
    """
    if value is None:
        return {"value": None}
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"base64": b2a_base64(value, newline=False).decode()}


def json_line(key: bytes, value: bytes) -> bytes:
    """Return the line of a key in an export, with its line feed."""
    fields = {"key": key.decode()} | json_value(value)
    return json_text(fields) + b"\n"


def read_json_line(line: bytes) -> tuple[bytes, bytes]:
    """Return the key and the value in a line.

    :raises MalformedFileError: the line is malformed; the error does not contain the line
    """
    try:
        fields = json.loads(line.decode())
        if isinstance(fields, dict) and len(fields) == 2 and isinstance(key := fields.get("key"), str):
            if isinstance(text := fields.get("value"), str):
                return key.encode(), text.encode()
            if isinstance(encoded := fields.get("base64"), str):
                return key.encode(), a2b_base64(encoded, strict_mode=True)
    except UnicodeEncodeError:
        raise MalformedFileError("found half of a surrogate pair, which is not UTF-8") from None
    except (ValueError, RecursionError):
        raise MalformedFileError("found malformed JSON or base64") from None
    raise MalformedFileError('expected {"key": text, "value": text} or {"key": text, "base64": text}')
