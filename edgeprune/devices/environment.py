"""A release of a runtime in a Python environment of its own, beside the one that is pinned here."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeprune import console
from edgeprune.cache import cache_dir
from edgeprune.errors import InputError

INSTALL_LIMIT_S = 1800.0


def here() -> Path:
    """The folder of this Python's own packages."""
    return Path(sysconfig.get_path("purelib"))


@dataclass(frozen=True)
class Environment:
    """A package at one version; installed once, when it is first used, and kept in the cache.

    Attributes:
        needs: further requirements.
        newest_python: the last that the release has packages for, if it is not this one.
        lent_by: gives a folder of packages, for what it needs and does not bring: torch is too
            large to be installed for each. Then no dependencies are installed.
    """

    package: str
    version: str
    needs: tuple[str, ...] = ()
    newest_python: tuple[int, int] | None = None
    lent_by: Callable[[], Path] | None = None

    @property
    def folder(self) -> Path:
        """In the cache; it need not exist."""
        return cache_dir() / f"{self.package}-{self.version}"

    def python(self) -> Path:
        """Its interpreter.

        Raises:
            InputError: there is no such release for this Python, or it cannot be installed.
        """
        self._check_python()
        python = self.folder / "bin" / "python"
        if not python.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with console.progress(f"installing {self.package} {self.version}", 1) as advance:
                with self._alone():
                    if not python.exists():
                        self._make()
                advance()
        return python

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: of two that made it, one would move its own into the other's."""
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def packages(self) -> Path:
        """The folder of its packages.

        Raises:
            InputError: as :meth:`python` does.
        """
        return self.python().parents[1] / here().relative_to(sys.prefix)

    def _check_python(self) -> None:
        newest, this = self.newest_python, sys.version_info[:2]
        if newest is not None and this > newest:
            last, found = (".".join(map(str, version)) for version in (newest, this))
            raise InputError(
                f"{self.package} {self.version} has packages for Python up to {last}, this is "
                f"{found}. Run edgeprune in Python {last}."
            )

    def _make(self) -> None:
        """Make it aside, so that no half of one is ever there."""
        folder, lender = self.folder, self.lent_by() if self.lent_by else None
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as aside:
            new = Path(aside, folder.name)
            flags = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
            pip = (str(new / "bin" / "python"), "-m", "pip", "install", *flags)
            alone = ("--no-deps",) if lender else ()
            self._run(sys.executable, "-m", "venv", str(new))
            self._run(*pip, *alone, f"{self.package}=={self.version}", *self.needs)
            if lender is not None:
                # Read last: its own packages come first.
                Path(new, here().relative_to(sys.prefix), "lent.pth").write_text(f"{lender}\n")
            shutil.move(new, folder)

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, env=clean()
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(
                f"{self.package} {self.version} cannot be installed: {reason[:300]}",
                detail=done.stderr,
            )


def clean() -> dict[str, str]:
    """The process's variables without what would lead another Python to this one's packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
