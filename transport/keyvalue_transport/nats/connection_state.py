"""The states of a connection. `keyvalue_transport.nats.connection` shows the changes between them."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["ConnectionState"]


class ConnectionState(Enum):
    """The state of a connection."""

    NEW = auto()
    OPENING = auto()
    CONNECTED = auto()
    AWAY = auto()
    REOPENING = auto()
    CLOSED = auto()
