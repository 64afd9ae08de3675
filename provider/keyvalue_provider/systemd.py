"""Tells systemd when the provider serves and when it stops, as `Type=notify` needs.

systemd names a socket in NOTIFY_SOCKET and reads datagrams from it. Nothing is sent without this variable.
"""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["READY", "STOPPING", "tell_systemd"]

READY, STOPPING = "READY=1", "STOPPING=1"

log = logging.getLogger("keyvalue_provider")


def tell_systemd(state: str) -> None:
    """Send a state to systemd, if it listens. Log a warning if the state cannot be sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux' abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("systemd was not told %s: %s", state, error.strerror or error)
