"""A network being drawn, and the registry of what it may be drawn from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]
"""Of one example: (channels, height, width), (tokens, width) or (width,)."""
Compute: TypeAlias = Callable[..., Tensor]
WIDTHS = (4, 6, 8, 12)


@dataclass
class Draft:
    """A network being drawn.

    Attributes:
        draw: the source of chance.
        shapes: of the values so far.
        steps: (numbers of the values read, what is computed from them).
        layers: what has weights.
        read: numbers of the values that something reads.
        names: operators drawn.
    """

    draw: random.Random
    shapes: list[Shape] = field(default_factory=list)
    steps: list[tuple[tuple[int, ...], Compute]] = field(default_factory=list)
    layers: nn.ModuleList = field(default_factory=nn.ModuleList)
    read: set[int] = field(default_factory=set)
    names: list[str] = field(default_factory=list)

    def add(self, compute: Compute, *sources: int) -> bool:
        """One more step; its shape is found by running it."""
        inputs = [torch.zeros(2, *self.shapes[source]) for source in sources]
        with torch.no_grad():
            made = compute(*inputs)
        self.steps.append((sources, compute))
        self.shapes.append(tuple(made.shape[1:]))
        self.read.update(sources)
        return True

    def layer(self, module: nn.Module) -> nn.Module:
        """A layer that the network owns, in eval mode, with statistics that matter."""
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                low, high = (0.5, 1.5) if "var" in name else (-0.7, 0.7)
                with torch.no_grad():
                    tensor.uniform_(low, high)
        self.layers.append(module.eval())
        return module

    def pick(self, *ranks: int) -> int | None:
        """The number of a value of one of these ranks (without the batch); late ones more often."""
        found = [i for i, shape in enumerate(self.shapes) if len(shape) in ranks]
        return self.draw.choice(found[-4:]) if found else None

    def partner(self, one: int) -> int | None:
        """Another value of the same shape."""
        found = [i for i, s in enumerate(self.shapes) if i != one and s == self.shapes[one]]
        return self.draw.choice(found) if found else None

    def width(self) -> int:
        """A number of channels or neurons."""
        return self.draw.choice(WIDTHS)


Op: TypeAlias = Callable[[Draft], bool]
OPS: dict[str, Op] = {}


def op(function: Op) -> Op:
    """Register an operator; it says whether it found something to work on."""
    OPS[function.__name__] = function
    return function
