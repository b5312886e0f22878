"""digits-vit: a small vision transformer on scikit-learn digits, trained in half a minute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from edgeprune.cache import cache_dir
from edgeprune.console import progress
from edgeprune.files import content_hash, sha256_of, write_torch
from edgeprune.task import Batch, Predict, Score, Task, batches, predict_all

SEED = 0
STEPS = 800
CLASSES = 10
SPLITS = {"calibration": 240, "validation": 240, "test": 360}
"""Sizes of the stratified splits; the other 957 images train the model."""


class Attention(nn.Module):
    """Multi-head self-attention on ``[batch, tokens, dim]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block on ``[batch, tokens, dim]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Images ``[batch, 1, 8, 8]`` in 0…1 to class scores ``[batch, 10]``: 16 patches and CLS."""

    def __init__(self, dim: int = 48, heads: int = 6, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(image.shape[0], -1, -1), patches], dim=1)
        hidden: Tensor = self.norm(self.blocks(tokens + self.positions))
        logits: Tensor = self.head(hidden[:, 0])
        return logits


class DigitsVit(Task):
    """Ten digits, 8×8 pixels; score = accuracy on 360 test images."""

    name = "digits-vit"
    score_name = "accuracy"
    licence = "model: Apache-2.0 (trained by edgeprune); data: BSD-3-Clause (scikit-learn digits)"
    preprocessing = "grey image 8x8, pixel values divided by 16"
    input_names = ("image",)
    output_names = ("logits",)

    def model(self) -> nn.Module:
        """The trained network; the first call on a machine trains it and caches the weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = VisionTransformer()
        path = _weights_path()
        if not path.exists():
            images, labels = self.splits["train"]
            write_torch(path, train(network, images, labels).state_dict())
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()

    def example_inputs(self) -> Batch:
        return (self.splits["calibration"][0][:2],)

    def calibration(self) -> Iterable[Batch]:
        return batches((self.splits["calibration"][0],), 16)

    def calibration_labels(self) -> Iterable[Tensor]:
        return self.splits["calibration"][1].split(16)

    def train_batches(self) -> Iterator[Batch]:
        """Batches of 32 training images, half of them shifted by up to a pixel."""
        generator = torch.Generator().manual_seed(SEED)
        images, _ = self.splits["train"]
        while True:
            rows = torch.randint(len(images), (32,), generator=generator)
            yield (_shift(images[rows], generator),)

    def evaluate(self, predict: Predict) -> Score:
        return self._hits("test", predict)

    def validate(self, predict: Predict) -> Score:
        return self._hits("validation", predict)

    def _hits(self, split: str, predict: Predict) -> np.ndarray:
        """Per image of the split, whether the right digit scores highest: ``bool[images]``."""
        images, labels = self.splits[split]
        found: np.ndarray = predict_all(predict, (images,)).argmax(-1).numpy() == labels.numpy()
        return found

    @cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name → images ``[n, 1, 8, 8]`` and labels ``[n]``."""
        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[:, None]
        rest, splits = np.arange(len(images)), {}
        for name, size in SPLITS.items():
            labels = digits.target[rest]
            rest, splits[name] = train_test_split(
                rest, test_size=size, random_state=SEED, stratify=labels
            )
        splits["train"] = rest
        return {
            name: (torch.from_numpy(images[rows]), torch.from_numpy(digits.target[rows]))
            for name, rows in splits.items()
        }


def _weights_path() -> Path:
    """Keyed by this file, which is the recipe, and by torch."""
    key = content_hash(torch.__version__, sha256_of(__file__))
    return cache_dir() / "digits-vit" / f"weights-{key}.pt"


def train(network: nn.Module, images: Tensor, labels: Tensor, seed: int = SEED) -> nn.Module:
    """Train by steps, not by seconds, so that slow machines end with the same weights."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    network.train()
    with progress("training digits-vit", STEPS, "steps") as advance:
        for step in range(STEPS):
            pace = min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimiser.param_groups[0]["lr"] = 2e-3 * pace
            rows = torch.randint(len(images), (64,), generator=generator)
            logits = network(_shift(images[rows], generator))
            loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1, f"loss {loss.item():.2f}")
    return network


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move half of the images ``[batch, 1, 8, 8]`` by up to a pixel each way, filling with black.

    Moving all of them cost two points of accuracy.
    """
    count = len(images)
    moved = torch.rand(count, 1, generator=generator) < 0.5
    offsets = torch.where(moved, torch.randint(3, (2, count, 1), generator=generator), 1)
    rows, columns = torch.arange(8) + offsets
    padded = nn.functional.pad(images[:, 0], (1, 1, 1, 1))
    which = torch.arange(count)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]][:, None]
