"""The paths of the repository and of the folder with the commands of this Python environment."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["ROOT", "SCRIPTS"]

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
