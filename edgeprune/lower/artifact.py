"""A lowered program as a file, and the runtimes that can make one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from edgeprune.errors import InputError
from edgeprune.lower.delegation import DelegationRow

if TYPE_CHECKING:
    from edgeprune.program import Program

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a lowered program: static ``shape``, ``dtype`` as in ``float32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Artifact:
    """A lowered program on disk.

    Attributes:
        delegation: one row per operator of the file.
        delegated_nodes: operators that a delegate runs.
        planned_memory_bytes: activation arena of the runtime's memory plan; a delegate's own
            workspace and packed weights come on top.
        seconds: how long the lowering took.
    """

    path: Path
    runtime: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    delegation: tuple[DelegationRow, ...]
    delegated_nodes: int
    planned_memory_bytes: int
    size_bytes: int
    sha256: str
    seconds: float


Runtime: TypeAlias = "Callable[[Program, Path, Precision], Artifact]"
RUNTIMES: dict[str, Runtime] = {}


def register_runtime(name: str) -> Callable[[Runtime], Runtime]:
    """Decorate ``lower(program, out, precision) -> Artifact`` to offer it under ``name``."""

    def add(runtime: Runtime) -> Runtime:
        if name in RUNTIMES:
            raise ValueError(f"runtime {name!r} is registered twice: {RUNTIMES[name]}, {runtime}")
        RUNTIMES[name] = runtime
        return runtime

    return add


def lower(
    program: Program,
    out: str | os.PathLike[str],
    precision: Precision = "fp32",
    runtime: str = "executorch",
) -> Artifact:
    """Lower ``program`` at batch 1 into the file ``out``, whole or not at all.

    The same program gives the same bytes.

    Args:
        precision: ``fp32``, or ``int8`` for dynamic per-channel int8 linear layers.
        runtime: one of ``RUNTIMES``.

    Raises:
        InputError: unknown precision or runtime; ``out`` cannot be written.
        EdgepruneError: the runtime's compiler refused the program.
    """
    if precision not in get_args(Precision):
        wanted = ", ".join(get_args(Precision))
        raise InputError(f"got precision {precision!r}, wanted one of: {wanted}")
    if runtime not in RUNTIMES:
        raise InputError(f"got runtime {runtime!r}, wanted one of: {', '.join(sorted(RUNTIMES))}")
    return RUNTIMES[runtime](program, Path(out), precision)
