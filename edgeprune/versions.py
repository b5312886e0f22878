"""Which Python and packages are at work."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("edgeprune", "torch", "executorch", "numpy")


@cache
def versions() -> dict[str, str]:
    """Python's, and those of what captures, lowers and runs, as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
