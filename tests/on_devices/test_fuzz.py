"""libFuzzer looks for inputs that lead out of bounds, guided by what they reach."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_programs import HARNESSES, compiled, fuzzing

RUNS, SECONDS = 200_000, 30


def clang() -> str:
    """The newest that is installed."""
    found = [path for path in Path("/usr/bin").glob("clang++-*") if path.name[8:].isdigit()]
    assert found, "no clang: run make test-devices"
    return str(max(found, key=lambda path: int(path.name[8:])))


@pytest.mark.nightly
@pytest.mark.parametrize("harness", HARNESSES)
def test_guided_inputs_lead_nowhere_out_of_bounds(harness: str, tmp_path: Path) -> None:
    program = compiled(harness, fuzzing(clang()))
    limits = (f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-seed=1", "-timeout=60")
    command = [str(program), *limits, f"-artifact_prefix={tmp_path}/"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "INITED cov:" in ended.stderr and "Done " in ended.stderr
