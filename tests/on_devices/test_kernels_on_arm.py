"""Kernels for Arm, as they are shipped, equal their references on old and new processors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from native_programs import (
    EXECUTORCH_PROGRAMS,
    HARNESSES,
    UNDEFINED,
    Toolchain,
    arm,
    compiled,
    run_kernels_test,
)

# The first test compiles for both.
pytestmark = pytest.mark.xdist_group("kernels_on_arm")

# What compilers call the extensions that kernels are written for.
PROCESSORS = {"max": {"dotprod", "i8mm"}, "cortex-a76": {"dotprod"}, "cortex-a72": set[str]()}
# The emulator takes 10 to 20 times as long as this machine.
CASES, INPUTS = 40, 3000
SHIPPED = arm()
WATCHED = arm(*UNDEFINED)

Emulate = Callable[[str], list[str]]


def check(toolchain: Toolchain, cpu: str, emulate: Emulate) -> None:
    program = compiled("kernels_test", toolchain)
    command = [*emulate(cpu), str(program)]
    run_kernels_test(command, toolchain.target, CASES, PROCESSORS[cpu])


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_shipped_kernels_equal_their_references(cpu: str, emulate: Emulate) -> None:
    check(SHIPPED, cpu, emulate)


@pytest.mark.nightly
def test_nothing_in_them_is_undefined(emulate: Emulate) -> None:
    check(WATCHED, "max", emulate)


@pytest.mark.nightly
@pytest.mark.parametrize("harness", sorted({*HARNESSES} - {*EXECUTORCH_PROGRAMS}))
def test_no_input_leads_out_of_bounds_on_arm(harness: str, emulate: Emulate) -> None:
    program = compiled(harness, WATCHED)
    command = [*emulate("max"), str(program), str(INPUTS)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
