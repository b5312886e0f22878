"""Programs to LiteRT ``.tflite`` files with XNNPACK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgeprune.lower.lowering import Lowered, Lowering, register_runtime
from edgeprune.lower.quiet import muted

if TYPE_CHECKING:
    from edgeprune.lower.tflite import Graphs

DEFAULT = "serving_default"
"""The only signature of a file, as LiteRT calls it."""


@register_runtime(
    "litert", suffix=".tflite", packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
)
def lower_litert(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], lowering: Lowering
) -> Lowered:
    """Lower to a ``.tflite``; see ``edgeprune.lower.lower_graph``."""
    return lower_graphs({DEFAULT: (module, inputs)}, lowering)[DEFAULT]


def lower_graphs(graphs: Graphs, lowering: Lowering) -> dict[str, Lowered]:
    """Lower several to one ``.tflite``; see ``edgeprune.lower.tflite.to_tflite``."""
    with muted():
        # Imported here: it takes seconds, and most commands never lower anything.
        from edgeprune.lower.tflite import to_tflite

        return to_tflite(graphs, lowering)
