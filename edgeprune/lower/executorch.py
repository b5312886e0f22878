"""Programs to ExecuTorch ``.pte`` files with XNNPACK."""

from __future__ import annotations

import torch

from edgeprune.lower.lowering import Lowered, Lowering, register_runtime


@register_runtime("executorch", suffix=".pte", packages=("executorch", "torchao"))
def lower_executorch(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], lowering: Lowering
) -> Lowered:
    """Lower to a ``.pte``; see ``edgeprune.lower.lower_graph``."""
    # Imported here: it takes seconds, and most commands never lower anything.
    from edgeprune.lower.xnnpack import to_executorch

    return to_executorch(module, inputs, lowering)
