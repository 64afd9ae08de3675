"""A short run of `scripts/torture redis`."""

from __future__ import annotations

import re

import pytest

from tests.torture import redis_inputs


def test_a_short_run_finds_that_each_refused_input_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert redis_inputs.main(["--inputs", "3000", "--seed", "22"]) == 0
    found = re.fullmatch(r"3,000 inputs in \d+ s: ([\d,]+) refused .*, 6 other calls .*\n", capsys.readouterr().out)
    assert found is not None
    assert int(found[1].replace(",", "")) > 300
