"""The small CNN that criteria are compared on: three convolutions with batch norm, on digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from edgeprune.program import Program

CHANNELS = (32, 64, 64)
TRAINING = 1200
BATCH = 64
STEPS = 300


class DigitsCnn(nn.Module):
    """Images [batch, 1, 8, 8] to class scores [batch, 10]."""

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for number, wider in enumerate(channels):
            layers += [nn.Conv2d(width, wider, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(wider), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number == 1 else []
            width = wider
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layers(image).mean((2, 3)))


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8] in 0...1 and their digits [n], to train on and to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@cache
def digits() -> Digits:
    """1,200 images to train on, the other 597 to test on; the same split always."""
    found = load_digits()
    images = (found.images / 16).astype(np.float32)[:, None]
    split = train_test_split(
        images, found.target, train_size=TRAINING, random_state=0, stratify=found.target
    )
    images, test_images, labels, test_labels = map(torch.from_numpy, split)
    return Digits(images, labels, test_images, test_labels)


def untrained(seed: int) -> DigitsCnn:
    """The network as it starts, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsCnn().eval()


def trained(seed: int, steps: int = STEPS) -> DigitsCnn:
    """The network after ``steps`` batches of 64, in eval mode."""
    return train(untrained(seed), seed, steps)


def train(network: DigitsCnn, seed: int, steps: int = STEPS, images: int = TRAINING) -> DigitsCnn:
    """The network itself, trained on the first ``images``; in eval mode."""
    network.train()
    generator = torch.Generator().manual_seed(seed)
    data = digits()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(images, (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(network(data.images[rows]), data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pace.step()
    return network.eval()


def narrower(program: Program) -> DigitsCnn:
    """A cut program as a network of fewer channels that can be trained."""
    weights = program.tensors
    convolutions = [each for each in weights.values() if each.dim() == 4]
    network = DigitsCnn([len(each) for each in convolutions])
    network.load_state_dict(weights, strict=False)
    return network


def accuracy(model: nn.Module) -> float:
    """Share of the test images that the model knows."""
    data = digits()
    with torch.no_grad():
        found = model(data.test_images).argmax(1)
    return float((found == data.test_labels).float().mean())
