"""Networks drawn at random from some fifty operators, for the oracle to be tried on.

A network is a list of steps; each reads values that earlier ones made and makes one of its own.
What nothing reads in the end is averaged and goes through a linear layer into the output.
"""

from __future__ import annotations

import random

import operators
import torch
from drafts import OPS, Draft, Shape
from torch import Tensor, nn

assert operators  # importing them registers each

CLASSES = 3


class Network(nn.Module):
    """The network of a seed."""

    def __init__(self, seed: int, length: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        draft = Draft(random.Random(seed))
        image = draft.draw.random() < 0.5
        draft.shapes.append((draft.draw.choice((2, 3)), 8, 8) if image else (6, 5))
        self.input_shape = draft.shapes[0]
        self._start(draft)
        for _ in range(200):
            if len(draft.steps) >= length:
                break
            name = draft.draw.choice(list(OPS))
            if OPS[name](draft):
                draft.names.append(name)
        ends = [i for i in range(len(draft.shapes)) if i not in draft.read]
        heads = [draft.layer(nn.Linear(_features(draft.shapes[i]), CLASSES)) for i in ends]
        self.layers, self.steps, self.names = draft.layers, draft.steps, tuple(draft.names)
        self.ends = tuple(zip(ends, heads, strict=True))

    def _start(self, draft: Draft) -> None:
        """Away from the input, whose channels are the model's interface."""
        OPS["conv2d" if len(self.input_shape) == 3 else "linear"](draft)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for sources, compute in self.steps:
            values.append(compute(*(values[source] for source in sources)))
        return torch.stack([head(_pooled(values[i])) for i, head in self.ends]).sum(0)

    def draw(self, batch: int, seed: int) -> Tensor:
        """Inputs in float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.input_shape, generator=generator, dtype=torch.float64)


def _features(shape: Shape) -> int:
    return shape[-1] if len(shape) < 3 else shape[0]


def _pooled(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.ndim == 3 else x
