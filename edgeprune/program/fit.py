"""Inputs brought to the size that a program takes after its input lengths were cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Resized:
    """One input whose dimensions were made smaller.

    Attributes:
        input: its number.
        axis: "resolution", "time" or "points".
        dims: which of its dimensions.
        full, sizes: their sizes before and after.
    """

    input: int
    axis: str
    dims: tuple[int, ...]
    full: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Resized:
        """The inverse of ``asdict``, also after a trip through JSON text."""
        dims, full, sizes = (tuple(body[key]) for key in ("dims", "full", "sizes"))
        return cls(body["input"], body["axis"], dims, full, sizes)

    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The batch with that input at its new size; one that has another size stays."""
        tensor = batch[self.input]
        if tuple(tensor.shape[dim] for dim in self.dims) != self.full:
            return batch
        small = resample(tensor, self.dims, self.sizes, self.axis)
        return (*batch[: self.input], small, *batch[self.input + 1 :])


def resample(tensor: Tensor, dims: Sequence[int], sizes: Sequence[int], axis: str) -> Tensor:
    """``tensor`` with other sizes in some of its dimensions.

    Images and recordings are averaged as they shrink (linear, antialiased). Of points, and of what
    is no number (a mask), evenly spaced entries stay: the order of points says nothing, and
    between two of them there need not be a third.
    """
    if axis == "points" or not tensor.is_floating_point():
        for dim, size in zip(dims, sizes, strict=True):
            full = tensor.shape[dim]
            chosen = torch.tensor([(2 * i + 1) * full // (2 * size) for i in range(size)])
            tensor = tensor.index_select(dim, chosen)
        return tensor
    last = range(tensor.ndim - len(dims), tensor.ndim)
    moved = tensor.movedim(list(dims), list(last))
    lead, kept = moved.shape[: -len(dims)], tuple(moved.shape[-len(dims) :])
    plane = moved.reshape(len(tensor), -1, *((1,) if len(dims) == 1 else ()), *kept)
    wanted = (*((1,) if len(dims) == 1 else ()), *sizes)
    small = functional.interpolate(plane, wanted, mode="bilinear", antialias=True)
    return small.reshape(*lead, *sizes).movedim(list(last), list(dims)).contiguous()
