"""Late import: a module's code runs when one of its attributes is first read, not at `import`.

This is for large modules of libraries that another module of the library imports, although this program rarely needs
them. `importlib.util.LazyLoader` does the work. The first `import a.b` gives a module that is complete as soon as it is
used. `from a.b import c` and a second import run the code at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import LazyLoader
from types import ModuleType

__all__ = ["import_late"]


def import_late(name: str) -> None:
    """Delay the code of a module that has not been imported yet. This holds for the whole process."""
    if name not in sys.modules:
        sys.meta_path.insert(0, _LateFinder(name))


class _LateFinder:
    """A finder that asks the other finders for one module, and then makes the module's loader lazy."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of the module, or None for all other modules. Called by `import`."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = LazyLoader(spec.loader)
                return spec
        return None
