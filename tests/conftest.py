"""What the tests share: a cache of their own, and the small model that most of them cut."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import console
from edgeprune.cache import cache_dir
from edgeprune.tasks.digits_vit import DigitsVit


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("EDGEPRUNE_CACHE", str(config.rootpath / ".pytest_cache" / "edgeprune"))
    # Started in the background by a shell, tests ignore Ctrl-C, and so would all they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test draws the same numbers whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _plain_console() -> None:
    """No test hears the --quiet or --json of the one before it."""
    console.configure()


@pytest.fixture(scope="session")
def digits() -> DigitsVit:
    """The digits-vit task, its network trained once for all workers and later sessions."""
    task = DigitsVit()
    lock = Path(cache_dir(), "digits-vit.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        task.model()
    return task


@pytest.fixture
def digits_model(digits: DigitsVit) -> nn.Module:
    """The trained network; each test gets its own to spoil."""
    return digits.model()
