"""Small models that the device tests share, and a look at the processes that run them."""

from __future__ import annotations

import psutil
from torch import Tensor, nn

WIDTH = 256


class Attention(nn.Module):
    """A linear layer and attention of two heads on what it gives: ``[1, 6, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        split = self.mix(x).unflatten(2, (2, 8)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(split, split, split)
        return mixed.transpose(1, 2).flatten(2)


def workers() -> list[int]:
    """Our worker processes."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "edgeprune.devices.worker" in child.cmdline()]
