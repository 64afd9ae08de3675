"""Where figures come from: this clone, this machine."""

from __future__ import annotations

import subprocess

from bench.run.paths import ROOT
from bench.run.provenance import UNKNOWN, about, load_average


def test_a_run_names_commit_versions_and_machine() -> None:
    found = about()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found["commit"]["id"] == head.stdout.strip()
    assert UNKNOWN not in found["versions"].values()
    assert found["versions"]["nats-server"].startswith("v2.")
    assert min(found["machine"]["cores"], found["machine"]["memory_bytes"]) > 0
    assert len(list(map(float, load_average().split()))) == 3
