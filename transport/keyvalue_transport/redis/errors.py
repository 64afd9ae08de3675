"""The error of a listener. It is apart from the listener, so that a start without one need not import it."""

from __future__ import annotations

__all__ = ["ListenError"]


class ListenError(Exception):
    """An address that cannot be listened on."""
