"""Stages of a build: announced, timed, and kept under a content hash so that a build resumes."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgeprune import console, files
from edgeprune.errors import InputError
from edgeprune.versions import versions

Result = TypeVar("Result")

# Folders of a search's lowered plans, in the stages' folder; gone when it ends.
CANDIDATES = "candidates-"


@dataclass
class StageTime:
    """How long a stage took; ``resumed`` when its result was there already."""

    name: str
    seconds: float = 0.0
    resumed: bool = False


class Stages:
    """The stages of one build folder.

    Args:
        out: the build folder; made if missing.
        names: of all stages, in order.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, out: Path, names: tuple[str, ...]) -> None:
        self.folder = out / "stages"
        self.names = names
        self.times: list[StageTime] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{out}: cannot be written to ({error.strerror}). Give another --out folder."
            ) from error

    def __enter__(self) -> Stages:
        """Take the folder for this build alone.

        Raises:
            InputError: another build is at work in it.
        """
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise InputError(
                f"{self.folder.parent}: another build is at work in this folder. Wait for it, or "
                "give another --out folder."
            ) from error
        for left in self.folder.glob(f"{CANDIDATES}*"):  # by a build that was killed
            shutil.rmtree(left)
        return self

    def __exit__(self, *reason: object) -> None:
        os.close(self._lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        console.stage(self.names.index(name) + 1, len(self.names), name)
        self.times.append(StageTime(name))
        started = time.monotonic()
        yield
        self.times[-1].seconds = time.monotonic() - started

    def path(self, name: str, *key: object, suffix: str) -> Path:
        """Where a result lies that depends on nothing but ``key`` and the versions at work."""
        return self.folder / f"{name}-{files.content_hash(*key, versions())}{suffix}"

    def keep(
        self,
        path: Path,
        make: Callable[[], Result],
        save: Callable[[Result, Path], object],
        load: Callable[[Path], Result],
    ) -> Result:
        """The result at ``path``: loaded if it is there, else made and saved."""
        if path.exists():
            self.times[-1].resumed = True
            console.say(f"  resumed from {path.name}")
            return load(path)
        result = make()
        save(result, path)
        return result
