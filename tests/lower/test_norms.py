"""Batch norms that become part of the layer before them."""

from __future__ import annotations

import pytest
import torch
from families.weights import lively
from torch import nn

from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.prepare import prepare


@pytest.mark.parametrize(
    ("layers", "shape", "left"),
    [
        ([nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8)], (6, 9), 0),
        ([nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)], (6, 7, 7), 0),
        ([nn.Conv3d(6, 8, 3, bias=False), nn.BatchNorm3d(8, affine=False)], (6, 7, 7, 7), 0),
        ([nn.ConvTranspose2d(6, 8, 3, groups=2, stride=2), nn.BatchNorm2d(8)], (6, 7, 7), 0),
        ([nn.Linear(6, 8), nn.BatchNorm1d(8)], (6,), 0),
        # Here the norm's channels are not what the linear layer makes.
        ([nn.Linear(6, 8), nn.BatchNorm1d(6)], (6, 6), 1),
        ([nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)], (6, 7, 7), 1),
    ],
)
@torch.no_grad()
def test_a_norm_joins_the_layer_that_makes_its_channels(
    layers: list[nn.Module], shape: tuple[int, ...], left: int
) -> None:
    torch.manual_seed(0)
    net, x = lively(nn.Sequential(*layers)).eval(), torch.randn(1, *shape)
    graph = prepare(net, (x,))
    assert sum(is_call(node, aten.batch_norm.default) for node in graph.graph.nodes) == left
    torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_norm_stays_where_others_read_the_layer_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    net, x = lively(Both()).eval(), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(prepare(net, (x,))(x), net(x), atol=1e-5, rtol=1e-5)
