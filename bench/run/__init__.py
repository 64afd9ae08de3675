"""A run: what it measures (plan, scenarios, experiments, subjects), its processes (stage), and its results (rows).

`ROOT` is the folder of the repository, and `SCRIPTS` the folder with the commands of this Python environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
