"""Volumes computed as pictures: the same numbers, and no operator on volumes is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families.checks import runs
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgepruneError
from edgeprune.lower import Lowering, lower
from edgeprune.lower.prepare import prepare
from edgeprune.program import capture

CHANNELS, SHAPE = 6, (7, 9, 8)


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def resized(**how: object) -> nn.Module:
    return Do(lambda x: functional.interpolate(x, **how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(6, 8, 3, padding=1),
        nn.Conv3d(6, 8, (3, 2, 1), stride=(2, 1, 3), padding=(2, 1, 0), bias=False),
        nn.Conv3d(6, 9, 3, groups=3, dilation=(2, 1, 2), padding=2),
        nn.Conv3d(6, 6, (5, 1, 1), groups=6, stride=(3, 1, 1)),
        nn.ConvTranspose3d(6, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose3d(6, 4, (4, 2, 2), stride=(3, 2, 1), groups=2, dilation=(1, 2, 1)),
        nn.MaxPool3d((3, 2, 2), stride=(2, 1, 2), padding=1, dilation=(2, 1, 1), ceil_mode=True),
        nn.AvgPool3d(3, stride=2, padding=1),
        nn.AvgPool3d((2, 3, 3), padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool3d((3, 2, 5)),
        resized(scale_factor=2),
        resized(size=(9, 5, 11)),
        resized(scale_factor=(1.5, 2, 2), mode="trilinear"),
        resized(size=(9, 5, 11), mode="trilinear", align_corners=True),
    ],
)
@torch.no_grad()
def test_a_volume_operator_becomes_pictures_and_computes_the_same(layer: nn.Module) -> None:
    x = torch.randn(1, CHANNELS, *SHAPE)
    graph = prepare(layer.eval(), (x,))
    assert not [n for n in graph.graph.nodes if n.op == "call_function" and "3d" in str(n.target)]
    torch.testing.assert_close(graph(x), layer(x), atol=1e-5, rtol=1e-5)


def test_a_video_network_lowers_and_runs() -> None:
    net = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)
    )
    net.append(nn.ConvTranspose3d(8, 4, 2, stride=2))
    inputs = (torch.randn(2, 3, 4, 6, 6),)
    assert runs(capture(net, inputs), inputs) <= 1e-5


def test_an_operator_without_a_kernel_is_named_in_one_line(tmp_path: Path) -> None:
    net = Do(lambda x: functional.avg_pool3d(x, 2, divisor_override=5))
    with pytest.raises(
        EdgepruneError, match=r"^executorch has no kernel for aten\.avg_pool3d"
    ) as no:
        lower(capture(net, (torch.randn(2, 3, 4, 4, 4),)), tmp_path / "net.pte", Lowering())
    assert len(str(no.value).splitlines()) == 1
