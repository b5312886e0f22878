"""Our library in this process, for runtimes that call it."""

from __future__ import annotations

import ctypes
from mmap import ACCESS_READ, mmap
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


def libraries_for_litert(path: str | Path) -> list[Path]:
    """Our LiteRT delegate, if a ``.tflite`` has composites for it.

    Raises:
        InputError, EdgepruneError: it cannot be compiled here.
    """
    return [build_library("litert")] if has_composites(path) else []


def has_composites(path: str | Path) -> bool:
    """Whether a ``.tflite`` calls composites; not if it is no sound file."""
    from ai_edge_litert import schema_py_generated as schema

    # Mapped: pages that are not looked at do not count as memory of whoever measures it.
    try:
        with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            model = schema.Model.GetRootAs(data, 0)
            codes = map(model.OperatorCodes, range(model.OperatorCodesLength()))
            wanted = schema.BuiltinOperator.STABLEHLO_COMPOSITE
            return any(code.BuiltinCode() == wanted for code in codes)
    except Exception:  # whatever a damaged file leads to; the runtime says what is wrong with it
        return False
