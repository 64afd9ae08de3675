"""Where things are: the repository, and the commands of the environment that runs."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["ROOT", "SCRIPTS"]

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
