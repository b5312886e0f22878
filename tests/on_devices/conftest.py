"""What tests for other processors share: the emulator, and that nothing is skipped."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip here is a failure: these tests are run where all they need was installed."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def devices(pytestconfig: pytest.Config) -> Path:
    """What install.sh installed."""
    folder = pytestconfig.rootpath / "build" / "devices"
    assert (folder / "host" / "qemu-aarch64").is_file(), "run: make test-devices"
    return folder


@pytest.fixture(scope="session")
def emulate(devices: Path) -> Callable[[str], list[str]]:
    """``emulate(cpu)``: the words to put before a program for that 64-bit Arm processor."""

    def command(cpu: str) -> list[str]:
        return [str(devices / "host" / "qemu-aarch64"), "-cpu", cpu, "-L", str(devices / "arm64")]

    return command
