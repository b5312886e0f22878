"""Attention as the mobile runtimes like it: two batch matmuls and one softmax, nothing else.

The stock decomposition of ``scaled_dot_product_attention`` guards against fully masked rows
("safe softmax") with comparisons and selections that XNNPACK does not take; at 128 tokens they
cost more than the attention itself. A program's masks are additive and finite, so the guard is
not needed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgeprune.errors import EdgepruneError
from edgeprune.lower.graph import (
    argument,
    aten,
    attribute_of,
    constant,
    emit,
    is_call,
    replace,
    shape_of,
)

MASKED_OUT = -1e9
"""Added to a score that must not count; finite, so a fully masked row stays a number."""

SHAPE_OPS = (aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int)


@dataclass(frozen=True)
class Attention:
    """One attention call: ``query`` [batch, heads, T, d] seen as [batch·groups, repeats·T, d].

    At batch 1 the program's own windows are what is left of a batch.
    """

    node: Node
    query: Node
    key: Node
    value: Node
    mask: Node | None
    batch: int
    heads: int
    groups: int
    tokens: int
    keys: int
    width: int
    scale: float
    is_causal: bool

    @property
    def not_causal(self) -> Attention:
        """The same with the caller's mask alone."""
        return dataclasses.replace(self, is_causal=False)

    @property
    def rows(self) -> int:
        """Query rows per key/value head."""
        return self.heads // self.groups * self.tokens


def rewrite_attention(module: GraphModule) -> int:
    """Replace every ``scaled_dot_product_attention`` by bmm, softmax, bmm; returns how many.

    Key/value heads that several query heads share are read in place: their query heads become
    more rows of one matmul, and explicit ``repeat_kv`` copies are bypassed. The scale goes into
    the query projection's weights where the query comes from one ``linear``.

    Args:
        module: ATen graph with propagated values, changed in place.

    Raises:
        EdgepruneError: an attention with dropout.
    """
    calls = attentions(module)
    for attention in calls:
        with module.graph.inserting_before(attention.node):
            replace(attention.node, _plain(module, attention))
    module.graph.eliminate_dead_code()
    return len(calls)


def attentions(module: GraphModule) -> list[Attention]:
    """Every attention call, read."""
    return [
        read_attention(node)
        for node in module.graph.nodes
        if is_call(node, aten.scaled_dot_product_attention.default)
    ]


def read_attention(node: Node) -> Attention:
    """A call of ``scaled_dot_product_attention``, read.

    Raises:
        EdgepruneError: dropout.
    """
    query, key, value = (_operand(node, index) for index in range(3))
    if argument(node, 4, "dropout_p", 0.0) > 0:
        raise EdgepruneError(f"{node.name}: attention with dropout. Put the model in eval mode.")
    *_, heads, tokens, width = (1, *shape_of(query))
    scale = argument(node, 6, "scale")
    key, value = _without_repeat(key), _without_repeat(value)
    if shape_of(key)[-3] != shape_of(value)[-3]:
        key, value = _operand(node, 1), _operand(node, 2)
    *_, groups, keys, _ = (1, *shape_of(key))
    return Attention(
        node=node,
        query=query,
        key=key,
        value=value,
        mask=argument(node, 3, "attn_mask"),
        batch=math.prod(shape_of(query)[:-3]),
        heads=heads,
        groups=groups,
        tokens=tokens,
        keys=keys,
        width=width,
        scale=1.0 / math.sqrt(width) if scale is None else float(scale),
        is_causal=bool(argument(node, 5, "is_causal", False)),
    )


def _operand(node: Node, index: int) -> Node:
    operand = node.args[index]
    assert isinstance(operand, Node)
    return operand


def _without_repeat(node: Node) -> Node:
    """The tensor before ``repeat_kv``: [1, groups, T, d] expanded to [1, groups, r, T, d]."""
    source = node
    while is_call(source, aten.view.default, aten.reshape.default, aten.clone.default):
        source = source.all_input_nodes[0]
    if not is_call(source, aten.expand.default):
        return node
    expanded, before = shape_of(source), source.all_input_nodes[0]
    if len(expanded) != 5 or shape_of(before) != (*expanded[:2], 1, *expanded[3:]):
        return node
    merged = (expanded[0], expanded[1] * expanded[2], *expanded[3:])
    if shape_of(node) != merged:
        return node
    with node.graph.inserting_before(node):
        return emit(node.graph, aten.reshape.default, before, [*expanded[:2], *expanded[3:]])


def _plain(module: GraphModule, attention: Attention) -> Node:
    a, graph = attention, module.graph
    count = a.batch * a.groups
    query = _scaled_query(module, a)
    query = emit(graph, aten.reshape.default, query, [count, a.rows, a.width])
    key = emit(graph, aten.reshape.default, a.key, [count, a.keys, shape_of(a.key)[-1]])
    key = emit(graph, aten.permute.default, key, [0, 2, 1])
    value = emit(graph, aten.reshape.default, a.value, [count, a.keys, shape_of(a.value)[-1]])
    scores = emit(graph, aten.bmm.default, query, key)
    for mask in masks_of(module, a):
        scores = _add_mask(graph, scores, mask, a)
    scores = emit(graph, aten.softmax.int, scores, -1)
    scores = emit(graph, aten.reshape.default, scores, [count, a.rows, a.keys])
    out = emit(graph, aten.bmm.default, scores, value)
    return emit(graph, aten.reshape.default, out, list(shape_of(a.node)))


def _scaled_query(module: GraphModule, a: Attention) -> Node:
    """The query times the scale, by way of the projection's weights where that is possible."""
    if a.scale == 1.0:
        return a.query
    source = a.query
    while is_call(source, *SHAPE_OPS) and len(source.users) == 1:
        source = source.all_input_nodes[0]
    weight = attribute_of(module, argument(source, 1, "weight"))
    if is_call(source, aten.linear.default) and len(source.users) == 1 and weight is not None:
        with module.graph.inserting_before(source):
            _scale_linear(module, source, weight, a.scale)
        return a.query
    return emit(module.graph, aten.mul.Tensor, a.query, a.scale)


def _scale_linear(module: GraphModule, linear: Node, weight: torch.Tensor, scale: float) -> None:
    scaled = [constant(module, f"{linear.name}_weight_scaled", weight * scale, like=linear)]
    bias = argument(linear, 2, "bias")
    if bias is not None:
        value = attribute_of(module, bias)
        scaled.append(
            emit(module.graph, aten.mul.Tensor, bias, scale)
            if value is None
            else constant(module, f"{linear.name}_bias_scaled", value * scale, like=linear)
        )
    linear.args, linear.kwargs = (linear.args[0], *scaled), {}


def masks_of(module: GraphModule, a: Attention) -> list[Node]:
    """The additive masks of this attention: the caller's, then the causal one."""
    graph, masks = module.graph, []
    if isinstance(a.mask, Node):
        mask = a.mask
        if mask.meta["val"].dtype == torch.bool:
            blocked = emit(graph, aten.logical_not.default, mask)
            blocked = emit(graph, aten.to.dtype, blocked, a.query.meta["val"].dtype)
            mask = emit(graph, aten.mul.Tensor, blocked, MASKED_OUT)
        masks.append(mask)
    if a.is_causal:
        future = torch.ones(a.tokens, a.keys, dtype=torch.bool).triu(1)
        value = torch.zeros(a.tokens, a.keys).masked_fill(future, MASKED_OUT)
        masks.append(constant(module, "causal_mask", value, like=a.query))
    return masks


def _add_mask(graph: torch.fx.Graph, scores: Node, mask: Node, a: Attention) -> Node:
    """Add a mask that broadcasts to [batch, heads, T, keys], without copying it out."""
    if a.batch > 1:
        whole = [a.batch, a.heads, a.tokens, a.keys]
        scores = emit(graph, aten.reshape.default, scores, whole)
        mask = emit(graph, aten.reshape.default, mask, list((1, 1, 1, 1) + shape_of(mask))[-4:])
        return emit(graph, aten.add.Tensor, scores, mask)
    heads, tokens, keys = ((1, 1, 1) + shape_of(mask))[-3:]
    if a.rows != a.tokens and (tokens, heads) != (1, 1):
        scores = emit(graph, aten.reshape.default, scores, [a.heads, a.tokens, a.keys])
    mask = emit(graph, aten.reshape.default, mask, [heads, tokens, keys])
    return emit(graph, aten.add.Tensor, scores, mask)
