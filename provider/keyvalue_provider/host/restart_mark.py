"""The mark of a provider that has ended itself, so that its host starts it again. The mark prevents a loop.

A host passes no environment, and its data does not say that it has started the provider before. So the mark is an empty
file in the system's directory for temporary files. Its name depends on the host, the lattice and the provider.

    first process     secrets are missing   sets the mark, exits with EXIT_RESTART
    second process    nothing is missing    removes the mark
                      secrets are missing   finds the mark, and continues without the secrets

A process that removes the mark never sets it. So of two processes in a row, at most one ends itself.
"""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path

__all__ = ["EXIT_RESTART", "RestartMark"]

log = logging.getLogger(__name__)

#: The exit code of a provider that its host is to start again.
EXIT_RESTART = 3


class RestartMark:
    """The mark of one provider of one host."""

    def __init__(self, host_id: str, lattice: str, provider_key: str) -> None:
        self._names = "\0".join((host_id, lattice, provider_key)).encode("utf-8", "surrogatepass")

    @cached_property
    def path(self) -> Path:
        """Return the path of the file, which need not exist."""
        from hashlib import sha256  # an import above would slow down the start

        name = f"keyvalue-inmemory-{os.getuid()}-{sha256(self._names).hexdigest()[:32]}.restarted"
        return Path(os.environ.get("TMPDIR") or "/tmp", name)

    def set(self) -> bool:
        """Set the mark. Return False if it is set already, or if it cannot be set.

        Another user may have created the file, to prevent the restart. No file is followed or overwritten.
        """
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            log.warning("no restart for the secrets of links: there was one before (%s)", self.path)
            return False
        except OSError as error:
            log.warning("no restart for the secrets of links: %s: %s", self.path, error.strerror)
            return False
        return True

    def remove(self) -> None:
        """Remove the mark, if it is set."""
        if not os.path.lexists(self.path):  # a system that is read-only may refuse to remove even a missing file
            return
        try:
            self.path.unlink()
        except OSError as error:
            log.warning("%s: %s", self.path, error.strerror)
