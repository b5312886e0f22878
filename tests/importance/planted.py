"""A small model with structure planted in it that a criterion should find."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models import HEADS, WIDTH, FusedBlock, inputs, model
from torch import Tensor, nn

from edgeprune.importance import Evidence
from edgeprune.program import capture
from edgeprune.sites import find_sites

HEAD_DIM = WIDTH // HEADS
HEAD_SITE, NEURON_SITE = "layers.0.heads", "layers.0.neurons"
Plant = Callable[[FusedBlock], None]


def planted(plant: Plant, batches: int = 2, examples: int = 6) -> Evidence:
    """Evidence about the two-layer model after ``plant`` has changed its first layer."""
    module = model("fused")
    assert isinstance(module.layers, nn.ModuleList)
    block = module.layers[0]
    assert isinstance(block, FusedBlock)
    with torch.no_grad():
        plant(block)
    sites = find_sites(capture(module, inputs("fused")))
    return Evidence(sites, [inputs("fused", examples, seed) for seed in range(1, batches + 1)])


def rows_of(head: int) -> slice:
    """Where a head lies in a matrix of [heads x head_dim] rows or columns."""
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def parts(block: FusedBlock) -> tuple[list[Tensor], list[Tensor]]:
    """Views of the query, key and value rows: weights and biases."""
    return list(block.qkv.weight.chunk(3)), list(block.qkv.bias.chunk(3))


def silence_head(block: FusedBlock, head: int) -> None:
    """Let nothing read the head."""
    block.proj.weight[:, rows_of(head)] = 0


def silence_neuron(block: FusedBlock, neuron: int) -> None:
    """Let nothing read the neuron."""
    block.down.weight[:, neuron] = 0


def empty_head(block: FusedBlock, head: int) -> None:
    """Set all weights of the head to zero."""
    silence_head(block, head)
    for tensor in (*parts(block)[0], *parts(block)[1]):
        tensor[rows_of(head)] = 0


def empty_neuron(block: FusedBlock, neuron: int) -> None:
    """Set all weights of the neuron to zero."""
    silence_neuron(block, neuron)
    block.up.weight[neuron] = 0
    block.up.bias[neuron] = 0


def copy_head(block: FusedBlock, source: int, target: int) -> None:
    """Let one head compute what another does; both are read as before."""
    for tensor in (*parts(block)[0], *parts(block)[1]):
        tensor[rows_of(target)] = tensor[rows_of(source)]


def copy_neuron(block: FusedBlock, source: int, target: int) -> None:
    """Let one neuron compute what another does; both are read as before."""
    block.up.weight[target] = block.up.weight[source]
    block.up.bias[target] = block.up.bias[source]


def blur_head(block: FusedBlock, head: int) -> None:
    """Let the head attend evenly to all tokens, whatever it is asked."""
    weights, biases = parts(block)
    weights[0][rows_of(head)] = 0
    biases[0][rows_of(head)] = 0
