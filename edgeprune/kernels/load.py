"""Our library in this process, for runtimes that call it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from edgeprune.kernels.build import build_library

# What a .pte calls our delegate, and what a runtime without it says is not registered.
BACKEND = "EdgepruneDelegate_of_libedgeprune_executorch_so"


def load_for_executorch(path: str | Path) -> None:
    """Load our library if a ``.pte`` needs it and it is not here yet.

    Raises:
        InputError, EdgepruneError: it cannot be compiled here.
    """
    from executorch.extension.pybindings import _C

    # A second copy would abort the process.
    if BACKEND not in _C._get_registered_backend_names() and needs_library(path):
        ctypes.CDLL(str(build_library("executorch")))


def needs_library(path: str | Path) -> bool:
    """Whether a ``.pte`` calls our delegate."""
    with Path(path).open("rb") as file:
        head = file.read(64)
        # The graph comes first; weights, in segments after it, are not read: they would count as
        # memory of whoever measures it.
        size = int.from_bytes(head[16:24], "little") if head[8:12] == b"eh00" else -1
        return BACKEND.encode() in head + file.read(size)
