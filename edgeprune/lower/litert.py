"""Programs to LiteRT ``.tflite`` files with XNNPACK."""

from __future__ import annotations

import importlib.util

import torch

from edgeprune.errors import InputError
from edgeprune.lower.lowering import Lowered, Lowering, register_runtime
from edgeprune.lower.quiet import muted


@register_runtime(
    "litert", suffix=".tflite", packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
)
def lower_litert(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], lowering: Lowering
) -> Lowered:
    """Lower to a ``.tflite``; see ``edgeprune.lower.lower_graph``.

    Raises:
        InputError: this system has no converter.
    """
    if importlib.util.find_spec("litert_torch") is None:
        raise InputError(
            "runtime litert: litert-torch is not installed, and its converter exists for x86-64 "
            "Linux alone. Build there: the .tflite runs on any processor."
        )
    with muted():
        # Imported here: it takes seconds, and most commands never lower anything.
        from edgeprune.lower.tflite import to_tflite

        return to_tflite(module, inputs, lowering)
