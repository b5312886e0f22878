"""The Family noun: one architecture as people deploy it, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from edgeprune.program import Program, capture
from edgeprune.program.graph import annotate, set_tensor
from edgeprune.registry import Registry
from edgeprune.sites import Sites, find_sites

Inputs: TypeAlias = Callable[[int, torch.Generator], tuple[Tensor, ...]]
"""(batch, generator) -> inputs; float32 where they are floats."""

FAMILIES: Registry[Family] = Registry("family")

# Of the transformers' configurations: those of Hugging Face call them so.
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: as in the table: ``bert``.
        model: builds it, two layers and at most 64 wide.
        inputs: draws inputs for a batch.
        axes: those that must be found and cut; others may be.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Inputs
    axes: tuple[str, ...]

    def build(self) -> nn.Module:
        """The model with the same random weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model().eval()

    def draw(self, batch: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Inputs; what is a float has the wanted type."""
        drawn = self.inputs(batch, torch.Generator().manual_seed(seed))
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in drawn)

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """Its program; in float64 for the oracle."""
        program = capture(self.build().to(dtype), self.draw(2, 0, dtype))
        if dtype is torch.float64:
            _widen(program)
        return program

    def sites(self, dtype: torch.dtype = torch.float32) -> Sites:
        """What can be cut of it, found once a process; not to be changed."""
        return _sites(self, dtype)


def _widen(program: Program) -> None:
    """Compute in float64 also what a model computes in float32 whatever its type, as norms do."""
    for node in program.module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = tree_map(
                lambda each: torch.float64 if each is torch.float32 else each,
                (node.args, node.kwargs),
            )
    for path, tensor in program.tensors.items():
        if tensor.dtype is torch.float32:
            set_tensor(program.module, path, tensor.double())
    program.module.recompile()
    annotate(program.module, program.example_inputs)


@cache
def _sites(family: Family, dtype: torch.dtype) -> Sites:
    return find_sites(family.capture(dtype))


def family(
    name: str, inputs: Inputs, axes: tuple[str, ...]
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a function that builds a model."""

    def register(model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        FAMILIES.add(name, Family(name, model, inputs, axes))
        return model

    return register


def words(tokens: int = 12, vocabulary: int = 50) -> Inputs:
    """Token ids [batch, tokens]."""
    return lambda batch, generator: (
        torch.randint(0, vocabulary, (batch, tokens), generator=generator),
    )


def padded_words(tokens: int = 12, vocabulary: int = 50) -> Inputs:
    """Token ids [batch, tokens] and a mask of the same shape: 1 for words, then 0 for padding."""

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        real = torch.randint(2, tokens + 1, (batch, 1), generator=generator)
        ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
        return ids, (torch.arange(tokens)[None] < real).long()

    return draw


def pixels(size: int = 32, channels: int = 3) -> Inputs:
    """Images [batch, channels, size, size]."""
    return lambda batch, generator: (torch.randn(batch, channels, size, size, generator=generator),)
