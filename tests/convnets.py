"""Convolutional networks whose widths span several parts, and tasks made of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.program import Program, capture
from edgeprune.task import Batch, Predict, Score, Task

PIXELS, CLASSES = 12, 5


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inward, inward, 3, stride, 1, groups=inward, bias=False)
        self.pointwise = nn.Conv2d(inward, outward, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(inward), nn.BatchNorm2d(outward)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.pointwise(self.norm1(self.depthwise(x)).relu())).relu()


class Keyword(nn.Module):
    """A DS-CNN in miniature: no residual anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.blocks = nn.Sequential(Separable(32, 32, 1), Separable(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(pixels).relu()).mean((2, 3)))


class Basic(nn.Module):
    """Two convolutions around a shortcut, which has one of its own where the shape changes."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        stride = 1 if inward == outward else 2
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outward), nn.BatchNorm2d(outward)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inward, outward, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Staged(nn.Module):
    """A residual network of two stages in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(Basic(16, 16), Basic(16, 32), Basic(32, 32))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(pixels).relu()).mean((2, 3)))


def pictures(batch: int, seed: int = 0) -> Tensor:
    """Noise ``[batch, 1, 12, 12]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, PIXELS, PIXELS, generator=generator)


def convnet(kind: type[nn.Module]) -> nn.Module:
    """The same weights every time, batch norms that are not the identity."""
    torch.manual_seed(0)
    network = kind().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
    return network


def captured(kind: type[nn.Module]) -> Program:
    return capture(convnet(kind), (pictures(2),))


class Pictures(Task):
    """A network without labels."""

    kind: type[nn.Module] = Keyword

    def model(self) -> nn.Module:
        return convnet(self.kind)

    def example_inputs(self) -> Batch:
        return (pictures(2),)

    def calibration(self) -> Iterable[Batch]:
        return [(pictures(16, seed),) for seed in (1, 2)]

    def evaluate(self, predict: Predict) -> Score:
        return 0.0


class StagedPictures(Pictures):
    """The same with residuals."""

    kind = Staged


def same(x: Tensor, y: Tensor) -> bool:
    """Equal to rounding."""
    return functional.mse_loss(x, y).item() <= 1e-10 * y.square().mean().item()
