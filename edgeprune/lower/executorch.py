"""Programs to ExecuTorch ``.pte`` files with XNNPACK."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgeprune import files
from edgeprune.errors import EdgepruneError
from edgeprune.lower.artifact import Artifact, Precision, TensorSpec, register_runtime
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.quiet import collector_paused, graphs_forgotten, quiet

if TYPE_CHECKING:
    from edgeprune.program import Program


@dataclass(frozen=True)
class Lowered:
    """A lowered graph in memory; fields as in ``Artifact``."""

    data: bytes
    outputs: tuple[torch.Tensor, ...]
    delegation: tuple[DelegationRow, ...]
    planned_memory_bytes: int

    @property
    def delegated_nodes(self) -> int:
        """Operators that XNNPACK runs."""
        return sum(row.delegate != "cpu" for row in self.delegation)


def lower_graph(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], precision: Precision = "fp32"
) -> Lowered:
    """Lower any exportable module for static ``inputs`` (batch 1); ``module`` is not changed.

    Masks must be additive and finite. Safe to call from a worker process; not from two threads
    at once.

    Raises:
        EdgepruneError: torch or ExecuTorch refused the graph; their words in ``detail``.
    """
    try:
        with quiet(), graphs_forgotten(), collector_paused(), torch.no_grad():
            # Imported here: it takes seconds, and most commands never lower anything.
            from edgeprune.lower.xnnpack import to_executorch

            return Lowered(*to_executorch(module, _dense(inputs), precision))
    except EdgepruneError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise EdgepruneError(
            f"ExecuTorch cannot lower this program at {precision}: "
            f"{type(error).__name__}: {reason.strip()[:300]}",
            detail=str(error),
        ) from error


def _dense(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies with plain strides: with one channel, strides can also mean channels last, and the
    file would then ask for inputs in that order."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)


@register_runtime("executorch")
def lower_executorch(program: Program, out: Path, precision: Precision) -> Artifact:
    """Lower ``program`` at batch 1 to a ``.pte`` file; see ``edgeprune.lower.lower``."""
    started = time.perf_counter()
    exported = program.export(batch=1)
    inputs = tuple(example[:1].contiguous() for example in program.example_inputs)
    lowered = lower_graph(exported.module(), inputs, precision)
    files.write_bytes(out, lowered.data)
    return Artifact(
        path=out,
        runtime="executorch",
        precision=precision,
        inputs=_specs(program.input_names, inputs),
        outputs=_specs(program.output_names, lowered.outputs),
        delegation=lowered.delegation,
        delegated_nodes=lowered.delegated_nodes,
        planned_memory_bytes=lowered.planned_memory_bytes,
        size_bytes=len(lowered.data),
        sha256=hashlib.sha256(lowered.data).hexdigest(),
        seconds=time.perf_counter() - started,
    )


def _specs(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    )
