"""Applies changes of ours when they are acknowledged, because all messages before them are applied.

The delivery of such a change then has nothing to do. A change that is not applied here is applied when it is delivered.
"""

from __future__ import annotations

from keyvalue_replica.applier import Applier
from keyvalue_replica.layout import Layout
from keyvalue_replica.position import Position
from keyvalue_replica.publications import Publication
from keyvalue_replica.sequences import Sequences
from keyvalue_replica.set_runs import SetRun

__all__ = ["OwnChanges"]


class OwnChanges:
    """Applies messages of ours that follow the position, and moves the position."""

    def __init__(self, applier: Applier, layout: Layout, sequences: Sequences, position: Position) -> None:
        self._applier = applier
        self._layout = layout
        self._sequences = sequences
        self._position = position

    def apply(self, publication: Publication, sequence: int) -> None:
        """Apply a message."""
        change = publication.change
        if self._applier.batch or (change is None and not publication.is_barrier):
            return
        if change is not None:
            handle, key, value = change
            if value is not None:
                if self._layout.max_age_ns:  # the deadline depends on the timestamp, which the delivery tells
                    return
                handle.set(key, value)
            else:
                handle.delete(key)
                if self._applier.deletes is not None:
                    self._applier.deletes.note_delete(self._layout.subject(handle.name, key), sequence)
            if self._sequences.by_subject:
                self._sequences.note(self._layout.subject(handle.name, key), sequence)
        self._position.applied = sequence

    def apply_run(self, run: SetRun, start: int, stop: int, sequence: int) -> None:
        """Apply sets of a run.

        :param start: the index of the first one, whose sequence is `sequence`
        :param stop: the index after the last one
        """
        if self._applier.batch or self._layout.max_age_ns:  # as above
            return
        keys, values = run.keys[start:stop], run.values[start:stop]
        set_value = run.handle.set
        for key, value in zip(keys, values, strict=True):
            set_value(key, value)
        if self._sequences.by_subject:
            for number, key in enumerate(keys, sequence):
                self._sequences.note(self._layout.subject(run.handle.name, key), number)
        self._position.applied = sequence + len(keys) - 1
