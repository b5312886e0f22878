"""Kernels equal their references and touch nothing else, nor do the delegates, under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_programs import (
    HARNESSES,
    Toolchain,
    compiled,
    host_compiler,
    race_detecting,
    run_kernels_test,
    sanitized,
)

CASES, INPUTS = 50, 10_000


@pytest.fixture(scope="module")
def compiler() -> str:
    found = host_compiler()
    if found is None:
        pytest.skip("no C++ compiler for this machine: apt-get install g++")
    return found


@pytest.fixture(scope="module")
def toolchain(compiler: str) -> Toolchain:
    return sanitized(compiler)


def _features() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    words = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    return {word.replace("_", "") for word in words}


def test_every_kernel_equals_its_reference_and_stays_in_its_buffers(toolchain: Toolchain) -> None:
    program = compiled("kernels_test", toolchain)
    run_kernels_test([str(program)], toolchain.target, CASES, _features())


@pytest.mark.nightly
@pytest.mark.parametrize("harness", HARNESSES)
def test_no_input_leads_out_of_bounds(harness: str, toolchain: Toolchain) -> None:
    program = compiled(harness, toolchain)
    ended = subprocess.run([str(program), str(INPUTS)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.nightly
def test_threads_that_share_regions_and_calls_do_not_race(compiler: str) -> None:
    program = compiled("threads", race_detecting(compiler))
    ended = subprocess.run([str(program)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
