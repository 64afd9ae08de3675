"""The costs of a process, read from real processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bench.load.usage import children, cpu_ns, has_ended, peak_bytes, resident_bytes, restart_peak
from bench.run.stage import Stage
from bench.run.subjects import BARE
from tests.bench.loads import MIB


def test_the_cost_of_a_process_is_read(stage: Stage) -> None:
    pid = stage.nats.pid
    assert cpu_ns(pid) > 0
    restart_peak(pid)
    assert peak_bytes(pid) >= resident_bytes(pid) - MIB > 0


@pytest.mark.parametrize("read", [cpu_ns, peak_bytes, resident_bytes, restart_peak, children])
def test_a_missing_process_has_no_cost(stage: Stage, tmp_path: Path, read: object) -> None:
    with stage.launch(BARE) as provider:
        pass
    assert callable(read)
    with pytest.raises(OSError, match=r"No such (process|file or directory)"):
        read(provider.pid)


def test_a_process_that_has_ended_is_distinguished_from_one_that_runs() -> None:
    """Notice it at once, although its exit code has not been read."""
    popen = subprocess.Popen(("cat",), stdin=subprocess.PIPE)
    assert not has_ended(popen.pid)
    popen.kill()
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(popen.pid)
    popen.communicate()
    assert has_ended(popen.pid)
