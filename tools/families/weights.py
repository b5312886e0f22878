"""Random weights as training would leave them: nothing is 0, 1 or all alike."""

from __future__ import annotations

import torch
from torch import nn


def lively(model: nn.Module) -> nn.Module:
    """Move whatever is still at a constant: biases, norms' scales, class tokens, layer scales.

    Running statistics get means and variances that matter.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if weight.numel() and bool((weight == weight.flatten()[0]).all()):
                weight.add_(0.2 * torch.randn_like(weight))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model
