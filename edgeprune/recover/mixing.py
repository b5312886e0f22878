"""Few unlabelled images, mixed without end, to distil on.

GridMix, as FSS (few-shot slimming) recovers with it: every cell of a grid is one of two images'.
Without it a network learns fifty images by heart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgeprune.errors import InputError

BATCH = 32
CELLS = 4


def grid_mixed(images: Tensor, *, batch: int = BATCH, seed: int = 0) -> Iterator[tuple[Tensor]]:
    """Endless batches for ``train_batches()``, the same from the start in every run.

    Args:
        images: [n, channels, height, width], n at least 2.
        batch: mixed images in each.

    Raises:
        InputError: no images of such a shape, or fewer pixels than ``CELLS`` along a side.
    """
    if images.dim() != 4 or len(images) < 2 or min(images.shape[2:]) < CELLS:
        raise InputError(
            f"grid_mixed: got images of shape {tuple(images.shape)}, wanted [n, channels, height, "
            f"width] of at least 2 images and {CELLS} x {CELLS} pixels. Give more, or larger ones."
        )
    return _mixed(images, batch, torch.Generator().manual_seed(seed))


def _mixed(images: Tensor, batch: int, random: torch.Generator) -> Iterator[tuple[Tensor]]:
    rows, columns = (torch.arange(side) * CELLS // side for side in images.shape[2:])
    while True:
        one, two = images[torch.randint(len(images), (2, batch), generator=random)]
        first = torch.rand(batch, 1, CELLS, CELLS, generator=random) < 0.5
        yield (torch.where(first[:, :, rows][..., columns], one, two),)
