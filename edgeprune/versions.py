"""Which Python and packages are at work."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

COMMON = ("edgeprune", "torch", "numpy")
RUNTIMES = ("executorch", "ai-edge-litert", "litert-torch", "ai-edge-quantizer")
PACKAGES = (*COMMON, *RUNTIMES)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python's, and those of packages, as installed; one that is not is left out.

    Args:
        packages: by default all that captures, lowers and runs.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
