"""Attention as one call of ours, on tensors as projections write them."""

from __future__ import annotations

import operator

from torch.fx import Graph, GraphModule, Node

from edgeprune.lower.attention import Attention, attentions, masks_of, read_attention
from edgeprune.lower.graph import aten, emit, replace, shape_of
from edgeprune.lower.ops import OURS

MOST_HEAD_DIM = 128


def fuse_attention(module: GraphModule) -> None:
    """What the kernel does not take stays as it is."""
    for attention in attentions(module):
        if _takes(attention):
            with module.graph.inserting_before(attention.node):
                call = emit(
                    module.graph, OURS.slim_attention.default, *_arguments(module, attention)
                )
                replace(attention.node, _split(call, attention))


def fuse_scored_attention(
    module: GraphModule, node: Node, mixed: Node, real: Node | None
) -> Node | None:
    """One call for attention whose probabilities are also summed up to scores.

    Args:
        node: the attention, as a call of ``scaled_dot_product_attention``.
        mixed: what stands in its place.
        real: ``[1, tokens]``, 1 for tokens and 0 for padding.

    Returns:
        The scores ``[1, tokens]``; None where the kernel does not take it.
    """
    graph, attention = module.graph, read_attention(node)
    if not _takes(attention):
        return None
    q, k, v, mask, *scalars = _arguments(module, attention)
    both = emit(graph, OURS.slim_attention_scores.default, q, k, v, mask, real, *scalars)
    out, scores = (emit(graph, operator.getitem, both, part) for part in (0, 1))
    replace(mixed, _split(out, attention))
    return scores


def _takes(a: Attention) -> bool:
    return a.batch == 1 and a.width <= MOST_HEAD_DIM and shape_of(a.value)[-1] == a.width


def _arguments(module: GraphModule, a: Attention) -> tuple[object, ...]:
    """Of ``slim_attention``."""
    graph = module.graph
    operands = [_joined(graph, each) for each in (a.query, a.key, a.value)]
    mask = None
    for each in masks_of(module, a.not_causal):
        whole = emit(graph, aten.reshape.default, each, list((1, 1, 1, 1) + shape_of(each))[-4:])
        mask = whole if mask is None else emit(graph, aten.add.Tensor, mask, whole)
    return (*operands, mask, a.heads, a.groups, a.scale, a.is_causal)


def _joined(graph: Graph, split: Node) -> Node:
    """[1, heads, tokens, head_dim] as [1, tokens, heads x head_dim]: what the projection wrote."""
    *_, heads, tokens, width = (1, *shape_of(split))
    whole = emit(graph, aten.reshape.default, split, [1, heads, tokens, width])
    turned = emit(graph, aten.permute.default, whole, [0, 2, 1, 3])
    return emit(graph, aten.reshape.default, turned, [1, tokens, heads * width])


def _split(out: Node, a: Attention) -> Node:
    """The way back, for those who read the attention."""
    split = emit(out.graph, aten.reshape.default, out, [1, a.tokens, a.heads, a.width])
    turned = emit(out.graph, aten.permute.default, split, [0, 2, 1, 3])
    return emit(out.graph, aten.reshape.default, turned, list(shape_of(a.node)))
