"""Which Python and packages are at work."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

PACKAGES = ("edgeprune", "torch", "executorch", "numpy")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python's, and those of packages, as installed; one that is not is left out.

    Args:
        packages: by default what captures, lowers and runs.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
