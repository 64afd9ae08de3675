"""Names on the wire of NATS: a key must be UTF-8. Redis clients may store other keys."""

from __future__ import annotations

__all__ = ["is_utf8"]


def is_utf8(key: bytes) -> bool:
    """Return True if a key can be named over NATS."""
    if key.isascii():
        return True
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
