"""Models that are neither text nor pictures: points, sounds, tables, generators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.family import Inputs, family
from families.weights import lively


def points(count: int = 32) -> Inputs:
    """Point clouds [batch, 3, count]."""
    return lambda batch, generator: (torch.randn(batch, 3, count, generator=generator),)


class PointNet(nn.Module):
    """The same small network for every point, the maximum over points, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1)
        self.conv3 = nn.Conv1d(32, 48, 1)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm1d(n) for n in (16, 32, 48))
        self.hidden, self.head = nn.Linear(48, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        x = self.norm3(self.conv3(x)).max(2).values
        return self.head(self.hidden(x).relu())


@family("pointnet", points(), ("channels", "ffn"))
def pointnet() -> nn.Module:
    """Qi et al. 2016, without the alignment networks."""
    return lively(PointNet())


def spectrogram(frames: int = 25, bands: int = 10) -> Inputs:
    """Log-mel spectrograms [batch, 1, frames, bands]."""
    return lambda batch, generator: (torch.randn(batch, 1, frames, bands, generator=generator),)


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        *(nn.BatchNorm2d(width), nn.ReLU()),
        nn.Conv2d(width, width, 1),
        *(nn.BatchNorm2d(width), nn.ReLU()),
    )


class Keywords(nn.Module):
    """Depthwise separable convolutions over a spectrogram."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1))
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(_separable(width) for _ in range(2)))
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.head(functional.avg_pool2d(x, x.shape[2:]).flatten(1))


@family("ds-cnn", spectrogram(), ("channels",))
def keywords() -> nn.Module:
    """Zhang et al. 2017, "Hello Edge": keyword spotting."""
    return lively(Keywords())


FIELDS, WORDS = 6, 40


def records() -> Inputs:
    """A user's fields and an item's: two tables of ids [batch, fields]."""
    return lambda batch, generator: (
        torch.randint(0, WORDS, (batch, FIELDS), generator=generator),
        torch.randint(0, WORDS, (batch, FIELDS), generator=generator),
    )


class Interaction(nn.Module):
    """Self-attention among fields, with a projected shortcut."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.shortcut = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = (x.shape[0], FIELDS, self.heads, -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (mixed + self.shortcut(x)).relu()


class Tower(nn.Module):
    """Embedded fields, two interactions, one vector."""

    def __init__(self, width: int = 16, inner: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.layers = nn.Sequential(
            Interaction(width, inner, heads), Interaction(inner, inner, heads)
        )
        self.hidden = nn.Linear(FIELDS * inner, 24)
        self.out = nn.Linear(24, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.hidden(self.layers(self.table(ids)).flatten(1)).relu())


class TwoTowers(nn.Module):
    """A user's vector times an item's."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = Tower(), Tower()

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.item(item)).sum(1, keepdim=True)


@family("two-towers", records(), ("heads", "ffn"))
def two_towers() -> nn.Module:
    """Song et al. 2018 (AutoInt) for each side of a recommendation."""
    return lively(TwoTowers())


def noise(width: int = 16) -> Inputs:
    """Random vectors [batch, width]."""
    return lambda batch, generator: (torch.randn(batch, width, generator=generator),)


class Generator(nn.Module):
    """A vector to a 16 x 16 picture, by transposed convolutions."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.start = nn.ConvTranspose2d(16, width, 4)
        self.up1 = nn.ConvTranspose2d(width, 16, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(16)
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.start(x[:, :, None, None])).relu()
        x = self.norm2(self.up1(x)).relu()
        return self.out(functional.leaky_relu(self.up2(x), 0.2)).tanh()


@family("gan-generator", noise(), ("channels",))
def generator() -> nn.Module:
    """Radford et al. 2015 (DCGAN)."""
    return lively(Generator())
