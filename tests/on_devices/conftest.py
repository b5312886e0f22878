"""What tests for other processors share: the emulator, and that nothing is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from phone import Phone
from sshd import Sshd


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


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server, and ``HOME`` of a user whom it lets in."""
    # Below HOME else, and compiled again.
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache" / "zig"))
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    home, os.environ["HOME"] = os.environ["HOME"], str(server.home)
    yield server
    os.environ["HOME"] = home
    server.stop()


@pytest.fixture(scope="session")
def phone(devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A board with adb, the only one."""
    board = Phone(devices, tmp_path_factory.mktemp("phone"))
    yield board
    board.stop()
