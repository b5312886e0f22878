"""Runtimes for other machines: the native part of their wheels, kept in the cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from edgeprune import console
from edgeprune.cache import cache_dir
from edgeprune.errors import InputError
from edgeprune.kernels.targets import Target, host_target, target_named

DOWNLOAD_LIMIT_S = 1800.0
LITERT = "libLiteRt.so"
# Wheels are tagged by the oldest C library that they run with; ours may be as new as zig's target.
_GLIBC = ("2_28", "2_27", "2_17")


def sdk(package: str, target: str) -> Path:
    """A package as its wheel for the target has it; the installed one, for this machine.

    Raises:
        InputError: there is no such wheel, or it cannot be had.
    """
    if target == host_target():
        found = importlib.util.find_spec(package.replace("-", "_"))
        assert found and found.submodule_search_locations
        return Path(found.submodule_search_locations[0])
    version = metadata.version(package)
    folder = cache_dir() / "sdk" / f"{package}-{version}-{target}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _download(package, version, target_named(target), Path(aside))
            if not folder.exists():
                Path(aside, "unpacked").rename(folder)
    return folder / package.replace("-", "_")


def _download(package: str, version: str, target: Target, folder: Path) -> None:
    machine = target.triple.partition("-")[0]
    platforms = (flag for each in _GLIBC for flag in ("--platform", f"manylinux_{each}_{machine}"))
    words = (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", *platforms, "--dest", str(folder)),
        f"{package}=={version.partition('+')[0]}",
    )
    with console.progress(f"downloading {package} {version} for {machine}", 1) as advance:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S)
        advance()
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"{package} {version} for {machine} cannot be downloaded: {reason[:300]}",
            detail=ended.stderr,
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(folder / "unpacked", [name for name in held.namelist() if _is_native(name)])


def _is_native(name: str) -> bool:
    """Of a wheel's files, a fifth: the rest is Python."""
    return name.split("/")[1] in ("include", "lib", LITERT)
