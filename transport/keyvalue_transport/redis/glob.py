r"""Patterns of keys, as in SCAN MATCH and KEYS.

    *  any bytes      ?  one byte      [abc] [a-z] [^a]  one of some bytes      \x  the byte x itself

A pattern becomes a regular expression that never goes back (`(?>...)`), so matching takes O(key * pattern).
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["PATTERN_BYTES_MAX", "matcher"]

#: A longer pattern is refused. A regular expression takes some hundred times the memory of its text.
PATTERN_BYTES_MAX = 4096


def matcher(pattern: bytes) -> Callable[[bytes], object] | None:
    r"""Return a function that is true for a key that matches, or None if every key does.

    >>> bool(matcher(b"a*c")(b"abc")), bool(matcher(b"[^a]")(b"a")), bool(matcher(b"\\*")(b"*"))
    (True, False, True)
    """
    parts = pattern.split(b"*")
    if not any(parts):
        return None if len(parts) > 1 else re.compile(b"").fullmatch
    if not re.search(rb"[?\[\\]", pattern):
        if len(parts) == 1:
            return pattern.__eq__
        if len(parts) == 2 and not parts[1]:
            prefix = parts[0]
            return lambda key: key.startswith(prefix)
    return re.compile(_expression(pattern), re.DOTALL).fullmatch


def _expression(pattern: bytes) -> bytes:
    """Return the regular expression for a whole key."""
    runs: list[list[bytes]] = [[]]  # the parts between stars
    at, end = 0, len(pattern)
    while at < end:
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            runs.append([])
            continue
        if char == b"?":
            part = b"."
        elif char == b"[":
            part, at = _one_of(pattern, at)
        else:
            if char == b"\\" and at < end:
                char = pattern[at : at + 1]
                at += 1
            part = re.escape(char)
        runs[-1].append(part)
    first, *rest = [b"".join(run) for run in runs]
    if not rest:
        return first
    # The first place where a run between two stars fits is as good as any later one.
    between = b"".join(b"(?>.*?%b)" % run for run in rest[:-1] if run)
    return first + between + b".*" + rest[-1]


def _one_of(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Return the expression for a set of bytes, and the offset after it. A set without an end lasts to the end."""
    end = len(pattern)
    is_negated = pattern[at : at + 1] == b"^"
    at += is_negated
    allowed: set[int] = set()
    while at < end and pattern[at] != ord("]"):
        if pattern[at] == ord("\\") and at + 1 < end:
            allowed.add(pattern[at + 1])
            at += 2
        elif at + 2 < end and pattern[at + 1] == ord("-"):
            low, high = sorted((_signed(pattern[at]), _signed(pattern[at + 2])))
            allowed.update(byte & 255 for byte in range(low, high + 1))
            at += 3
        else:
            allowed.add(pattern[at])
            at += 1
    if is_negated:
        allowed = set(range(256)) - allowed
    if not allowed:
        return b"(?!)", at + 1
    return b"[%b]" % b"".join(rb"\x%02x" % byte for byte in sorted(allowed)), at + 1


def _signed(byte: int) -> int:
    """Return a byte as C's char, in whose order Redis compares the ends of a range."""
    return byte - 256 if byte > 127 else byte
