"""The small CNN that criteria are compared on: three convolutions with batch norm, on digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

CHANNELS = (32, 64, 64)
TRAINING = 1200
BATCH = 64
STEPS = 300


class DigitsCnn(nn.Module):
    """Images [batch, 1, 8, 8] to class scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for number, channels in enumerate(CHANNELS):
            layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number == 1 else []
            width = channels
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


def trained(seed: int, steps: int = STEPS) -> DigitsCnn:
    """The network after ``steps`` batches of 64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsCnn()
    generator = torch.Generator().manual_seed(seed)
    data = digits()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(data.images), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(network(data.images[rows]), data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pace.step()
    return network.eval()


def accuracy(model: nn.Module) -> float:
    """Share of the test images that the model knows."""
    data = digits()
    with torch.no_grad():
        found = model(data.test_images).argmax(1)
    return float((found == data.test_labels).float().mean())
