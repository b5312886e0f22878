"""A module as the graph that every runtime's road starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeprune.lower.attention import rewrite_attention
from edgeprune.lower.graph import propagate
from edgeprune.lower.matmul import rewrite_matmul
from edgeprune.lower.norms import fold_batch_norm
from edgeprune.lower.simplify import simplify
from edgeprune.lower.volume import rewrite_volumes

Tensors = tuple[torch.Tensor, ...]


def prepare(
    module: torch.nn.Module, inputs: Tensors, *fuse: Callable[[GraphModule], object]
) -> GraphModule:
    """A new ATen graph of ``module`` for these static shapes, in the form that lowers best.

    Args:
        fuse: passes that put what a delegate of ours runs into one node each; what they leave is
            rewritten for XNNPACK.
    """
    exported = torch.export.export(module, inputs, strict=False)
    if any(_writes_in_place(node) for node in exported.graph.nodes):
        exported = exported.run_decompositions({})
    graph = exported.module()
    assert isinstance(graph, GraphModule)
    propagate(graph, inputs)
    simplify(graph)
    for run in fuse:
        run(graph)
    rewrite_attention(graph)
    rewrite_matmul(graph)
    fold_batch_norm(graph)
    rewrite_volumes(graph)
    simplify(graph)
    graph.recompile()
    return graph


def _writes_in_place(node: Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
