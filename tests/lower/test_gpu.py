"""Files for Vulkan and CoreML: lowered whole, with none of our operators in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeprune.lower import Lowered, Lowering, lower_graph

BACKENDS = {"vulkan": b"VulkanBackend", "coreml": b"CoreMLBackend"}


class Small(nn.Module):
    """A convolution, a clipped activation, attention's softmax and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.relu6(self.conv(image)).flatten(2).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.head(mixed)


def lowered_for(accelerator: str, module: nn.Module) -> Lowered:
    lowering = Lowering("fp16").asked(accelerator=accelerator)
    return lower_graph(module.eval(), (torch.randn(1, 1, 4, 4),), lowering)


@pytest.mark.parametrize("accelerator", BACKENDS)
def test_a_small_network_is_lowered_whole(accelerator: str) -> None:
    lowered = lowered_for(accelerator, Small())
    assert BACKENDS[accelerator] in lowered.data
    assert {row.delegate for row in lowered.delegation} == {accelerator}
    assert not any("edgeprune" in row.op for row in lowered.delegation)
    assert lowered.estimate is None and lowered.portable is None


@pytest.mark.nightly
def test_work_that_a_gpu_leaves_to_the_cpu_is_a_fallback() -> None:
    class Longer(nn.Module):
        """A transposed convolution over one axis, which Vulkan has no shader for."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.ConvTranspose1d(4, 2, 3)

        def forward(self, image: Tensor) -> Tensor:
            return self.conv(image[:, 0]).sigmoid()

    rows = lowered_for("vulkan", Longer()).delegation
    (fallen,) = (row for row in rows if row.delegate == "fallback")
    assert fallen.op == "aten.convolution.default" and "vulkan" in fallen.why_not
