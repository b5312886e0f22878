"""Programs to LiteRT ``.tflite`` files with XNNPACK."""

from __future__ import annotations

import torch

from edgeprune.lower.lowering import Lowered, Lowering, register_runtime
from edgeprune.lower.quiet import muted


@register_runtime(
    "litert", suffix=".tflite", packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
)
def lower_litert(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], lowering: Lowering
) -> Lowered:
    """Lower to a ``.tflite``; see ``edgeprune.lower.lower_graph``."""
    with muted():
        # Imported here: it takes seconds, and most commands never lower anything.
        from edgeprune.lower.tflite import to_tflite

        return to_tflite(module, inputs, lowering)
