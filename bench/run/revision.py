"""An earlier revision of this provider, installed beside this one for a comparison.

The files of the revision go to `build/revisions/COMMIT`, where its own `scripts/setup` installs it with the Python and
the library versions of this environment. They stay there for the next run. The revision may have other package names:
only its command, and the options of the subject `direct`, must exist.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from shutil import rmtree

from bench.run import ROOT
from bench.run.processes import ProcessError
from bench.run.subjects import BEFORE, DIRECT, Subject

__all__ = ["commit_of", "install"]

FOLDER = ROOT / "build" / "revisions"


def commit_of(revision: str) -> str:
    """Return the id of a revision's commit.

    :raises ValueError: the repository does not have the revision
    """
    command = ("git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--against: found {revision}, which is no revision of this repository")
    return done.stdout.strip()


def install(commit: str) -> Subject:
    """Install a commit unless it is installed already, and return it as a subject.

    :raises ProcessError: its installation failed
    """
    folder = FOLDER / commit
    command = folder / ".venv" / "bin" / DIRECT.command[0].rpartition("/")[2]
    if not command.exists():
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        own = {known.name: known.version for known in distributions() if known.name != "keyvalue-inmemory"}
        constraints = FOLDER / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in own.items()))
        archive = subprocess.run(("git", "archive", commit), cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(("tar", "-x"), cwd=folder, input=archive, check=True)
        # A virtual environment made by another one would share its packages.
        python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
        constrain = {"PIP_CONSTRAINT": str(constraints), "UV_CONSTRAINT": str(constraints)}
        environment = {**os.environ, **constrain, "PYTHON": str(python)}
        environment.pop("VIRTUAL_ENV", None)
        done = subprocess.run((folder / "scripts" / "setup", "demo"), cwd=folder, env=environment)
        if done.returncode or not command.exists():
            raise ProcessError(f"{folder}: scripts/setup ended with exit status {done.returncode}")
    return Subject(BEFORE, (str(command),), DIRECT.config)
