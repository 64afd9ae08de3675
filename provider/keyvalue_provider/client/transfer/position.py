"""Where an interrupted export or import continues: a small JSON file beside the file.

    keys.jsonl.exporting   belongs to an export to keys.jsonl
    keys.jsonl.importing   belongs to an import from keys.jsonl

The file exists only while the command runs, or after it was interrupted. It is replaced as a whole, so a killed command
leaves either the old position or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from keyvalue_provider.client.records import TransferError
from keyvalue_provider.client.streams import say

__all__ = ["PositionFile"]

#: Seconds between two times at which a running command notes its position.
INTERVAL_S = 0.25


class PositionFile:
    """The position of one export or import.

    :param about: the facts that must be the same when the command continues
    """

    def __init__(self, path: str, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = dict(about)
        self._noted_s = monotonic()
        self._is_usable = True

    def read(self) -> dict[str, Any] | None:
        """Return the noted position, or None.

        :raises TransferError: it belongs to another command, or it is malformed
        """
        try:
            with open(self.path, "rb") as file:
                noted = json.load(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise TransferError(f"{self.path}: {error}; --restart begins again") from None
        match noted:
            case {"about": dict(about), "position": dict(position)}:
                different = [name for name in {**about, **self._about} if about.get(name) != self._about.get(name)]
                if not different:
                    return position
                raise TransferError(
                    f"{self.path}: the interrupted command had another {' and '.join(different)}; --restart begins again"
                )
        raise TransferError(f"{self.path}: the file is not the position of a command; --restart begins again")

    def exists(self) -> bool:
        """Return True if a position is noted, by this command or an earlier one."""
        return os.path.exists(self.path)

    def is_due(self) -> bool:
        """Return True if the last note is old."""
        return monotonic() - self._noted_s >= INTERVAL_S

    def note(self, position: Mapping[str, Any]) -> None:
        """Replace the position. If this fails, say so once, and go on."""
        self._noted_s = monotonic()
        if not self._is_usable:
            return
        temporary = f"{self.path}.tmp"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"about": self._about, "position": position}, file)
            os.replace(temporary, self.path)
        except OSError as error:
            self._is_usable = False
            say(f"wrpc-kv: {self.path}: {error.strerror}; this command cannot continue after an interruption")

    def remove(self) -> None:
        """Remove the file, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
