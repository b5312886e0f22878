"""Programs to ExecuTorch ``.pte`` files with XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.errors import EdgepruneError
from edgeprune.lower.lowering import Lowered, Lowering, register_runtime
from edgeprune.lower.quiet import collector_paused, graphs_forgotten, quiet


@register_runtime("executorch", suffix=".pte")
def lower_executorch(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], lowering: Lowering
) -> Lowered:
    """Lower to a ``.pte``; see ``edgeprune.lower.lower_graph``."""
    try:
        with quiet(), graphs_forgotten(), collector_paused(), torch.no_grad():
            # Imported here: it takes seconds, and most commands never lower anything.
            from edgeprune.lower.xnnpack import to_executorch

            return Lowered(*to_executorch(module, _dense(inputs), lowering))
    except EdgepruneError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise EdgepruneError(
            f"ExecuTorch cannot lower this program at {lowering.precision}: "
            f"{type(error).__name__}: {reason.strip()[:300]}",
            detail=str(error),
        ) from error


def _dense(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies with plain strides: with one channel, strides can also mean channels last, and the
    file would then ask for inputs in that order."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)
