"""Scaled dot-product attention."""

from __future__ import annotations

from torch import fx

from edgeprune.program.graph import ATEN
from edgeprune.sites.flow import Dims, Flow, rule


@rule(ATEN.scaled_dot_product_attention)
def attention(flow: Flow, node: fx.Node) -> Dims | list[Dims]:
    """q [batch, heads, queries, d], k and v [batch, heads, keys, d]."""
    q, k, v = (flow.of(argument) for argument in node.args[:3])
    if len(q) != 4:
        return flow.without_rule(node)
    mask = flow.of(node.args[3]) if len(node.args) > 3 else ()
    for other in (k, v):
        flow.tie(q[0], other[0], node)
    heads = q[1]
    flow.tie(heads, k[1], node)
    flow.tie(heads, v[1], node)
    flow.tie(q[3], k[3], node)
    flow.tie(k[2], v[2], node)
    flow.freeze((q[3],), "it is the head dimension, which sets attention's scale")
    flow.freeze((k[2],), "attention's softmax runs over it")
    for mine, theirs in zip(reversed(mask), reversed((q[0], heads, q[2], k[2])), strict=False):
        flow.tie(mine, theirs, node)
    flow.role("heads", heads)
    flow.role("tokens", q[2])
    flow.role("tokens", k[2])
    return (q[0], heads, q[2], v[3])
