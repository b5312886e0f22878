"""A lowered program as a file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgeprune import files
from edgeprune.errors import InputError
from edgeprune.lower.delegation import FALLBACK, DelegationRow
from edgeprune.lower.lowering import Estimate, Lowering, lower_graph

if TYPE_CHECKING:
    from edgeprune.program import Program


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a lowered program: static ``shape``, ``dtype`` as in ``float32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """One of several ways into a file, each with shapes of its own."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Artifact:
    """A lowered program on disk.

    Attributes:
        delegation: one row per operator of the file.
        delegated_nodes: operators that a delegate runs.
        planned_memory_bytes: activation arena of the runtime's memory plan; a delegate's own
            workspace and packed weights come on top.
        seconds: how long the lowering took.
        signatures: of a file with several; ``inputs`` and ``outputs`` are then those of the first.
        portable: the same program as it went into an accelerator's compiler, as a file that this
            machine can run; None where there is none.
        estimate: of the accelerator's compiler, if it gives one.
    """

    path: Path
    lowering: Lowering
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    delegation: tuple[DelegationRow, ...]
    delegated_nodes: int
    planned_memory_bytes: int
    size_bytes: int
    sha256: str
    seconds: float
    signatures: tuple[Signature, ...] = ()
    portable: Path | None = None
    estimate: Estimate | None = None

    @property
    def runnable(self) -> Path | None:
        """What this machine can run of it; None for an accelerator's file with nothing beside."""
        return self.path if self.lowering.offload is None else self.portable

    @property
    def fallbacks(self) -> tuple[DelegationRow, ...]:
        """Operators on the CPU that should be on the accelerator."""
        return tuple(row for row in self.delegation if row.delegate == FALLBACK)

    def __fspath__(self) -> str:
        """Its path, so that an artifact goes wherever a file does."""
        return str(self.path)


def lower(
    program: Program,
    out: str | os.PathLike[str],
    lowering: Lowering,
    calibration: Sequence[tuple[torch.Tensor, ...]] = (),
) -> Artifact:
    """Lower ``program`` at batch 1 into the file ``out``, whole or not at all.

    For an accelerator whose compiler starts from a file that this machine can run, that one is
    written beside it. The same program gives the same bytes.

    Args:
        calibration: batches of inputs, for accelerators that need scales for activations; the
            program's few example inputs if not given.

    Raises:
        InputError: ``out`` cannot be written, or is named as another runtime's file.
        EdgepruneError: the runtime's compiler refused the program.
    """
    started = time.perf_counter()
    out = checked_name(out, lowering)
    given = tuple(map(program.fit, calibration)) or (program.example_inputs,)
    lowered = lower_graph(*static_graph(program), lowering, given)
    files.write_bytes(out, lowered.data)
    portable = None
    if lowered.portable is not None:
        portable = files.write_bytes(portable_name(out, lowering), lowered.portable)
    return Artifact(
        path=out,
        lowering=lowering,
        inputs=specs(program.input_names, lowered.inputs),
        outputs=specs(program.output_names, lowered.outputs),
        delegation=lowered.delegation,
        delegated_nodes=lowered.delegated_nodes,
        planned_memory_bytes=lowered.planned_memory_bytes,
        size_bytes=len(lowered.data),
        sha256=hashlib.sha256(lowered.data).hexdigest(),
        seconds=time.perf_counter() - started,
        portable=portable,
        estimate=lowered.estimate,
    )


def portable_name(out: Path, lowering: Lowering) -> Path:
    """Beside ``out``: the file that went into the accelerator's compiler."""
    return out.with_name(f"{out.stem}_{lowering.precision}{out.suffix}")


def checked_name(out: str | os.PathLike[str], lowering: Lowering) -> Path:
    """``out``, if it is named as the runtime's files are.

    Raises:
        InputError: it is not.
    """
    out = Path(out)
    if out.suffix != lowering.suffix:
        raise InputError(
            f"{out}: got a name ending in {out.suffix!r}, wanted {lowering.suffix!r}, as files for "
            f"{lowering.runtime} end. Give another name or another runtime."
        )
    return out


def static_graph(program: Program) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The program at batch 1, with example inputs: what ``lower_graph`` takes."""
    inputs = tuple(example[:1].contiguous() for example in program.example_inputs)
    return program.export(batch=1).module(), inputs


def specs(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> tuple[TensorSpec, ...]:
    """Names, shapes and types."""
    return tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    )
