"""Small models with an input that can be made smaller: pictures, sounds, clips, clouds."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.program import Program, capture


class Cloud(nn.Module):
    """PointNet in miniature, its alignment network included."""

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Conv1d(3, 8, 1)
        self.turn = nn.Linear(8, 9)
        self.conv1, self.conv2 = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 12, 1)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, points: Tensor) -> Tensor:
        turn = self.turn(self.align(points).relu().amax(2)).view(-1, 3, 3)
        x = (turn @ points).relu()
        x = self.norm(self.conv2(self.conv1(x).relu()))
        return self.head(x.amax(2))


class Keywords(nn.Module):
    """A convolution over time, with a pooling window that covers all that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 8, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 6)

    def forward(self, sound: Tensor) -> Tensor:
        x = self.norm(self.conv2(self.conv1(sound).relu()))
        return self.head(functional.avg_pool1d(x, x.shape[-1]).flatten(1))


class Frames(nn.Module):
    """An encoder over ready-made frames with a table of positions and a class token."""

    def __init__(self, frames: int = 20) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 16)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, frames + 1, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, frames: Tensor) -> Tensor:
        first = self.first.expand(frames.shape[0], -1, -1)
        x = torch.cat([first, self.inward(frames)], dim=1) + self.places
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return (x + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0]


class Clip(nn.Module):
    """3-D convolutions over a clip [batch, channels, time, height, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 6, 3, stride=(1, 2, 2), padding=1)
        self.conv2 = nn.Conv3d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(clip).relu()).relu().mean((2, 3, 4)))


class Picture(nn.Module):
    """Convolutions with skip connections, pooling, and a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 8, 2, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, picture: Tensor) -> Tensor:
        x = functional.max_pool2d(self.norm(self.stem(picture)).relu(), 3, stride=2, padding=1)
        x = x + self.conv(x).relu()
        x = functional.adaptive_avg_pool2d(self.last(x), 1)
        return self.head(x.flatten(1))


class Patches(nn.Module):
    """Patches cut by reshaping, a table [1, height, width, features], windows, and a mean."""

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(4 * 4, 8)
        self.places = nn.Parameter(torch.randn(1, side, side, 8))
        self.inside, self.out = nn.Linear(4 * 8, 4 * 8), nn.Linear(8, 3)

    def forward(self, picture: Tensor) -> Tensor:
        batch, size = picture.shape[0], picture.shape[-1]
        side = size // 4
        x = picture.view(batch, side, 4, side, 4).transpose(2, 3).reshape(batch, side, side, 16)
        x = self.embed(x) + self.places
        x = x.view(batch, side // 2, 2, side // 2, 2, 8).transpose(2, 3)
        x = self.inside(x.reshape(batch, side // 2, side // 2, 32)).relu()
        return self.out(x.view(batch, -1, 8)).mean(1)


SHAPES = {
    "cloud": (Cloud, (3, 30)),
    "keywords": (Keywords, (4, 24)),
    "frames": (Frames, (20, 6)),
    "clip": (Clip, (1, 6, 16, 12)),
    "picture": (Picture, (3, 32, 32)),
    "patches": (Patches, (16, 16)),
}


@cache
def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Program]:
    """A model with settled numbers, and its capture."""
    kind, size = SHAPES[name]
    torch.manual_seed(0)
    model = kind().to(dtype).eval()
    return model, capture(model, (torch.randn(3, *size, dtype=dtype),))
