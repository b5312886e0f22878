"""int8 before lowering: linear layers with per-channel weights and dynamic activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def quantise_dynamic(module: GraphModule, inputs: Sequence[torch.Tensor]) -> GraphModule:
    """A copy of an ATen graph whose linears hold int8 weights, one scale per output row.

    Activations are quantised at run time, so ``inputs`` only serve to run the weight observers
    once; no calibration data is needed.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, config)
    prepared = prepare_pt2e(module, quantizer)
    prepared(*inputs)
    return convert_pt2e(prepared)
