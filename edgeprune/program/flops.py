"""Arithmetic of one operator."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import fx

from edgeprune.program.graph import ATEN, is_call, shape

PRODUCTS = (
    *(ATEN.linear, ATEN.matmul, ATEN.bmm, ATEN.mm, ATEN.addmm),
    *(ATEN.convolution, ATEN.conv1d, ATEN.conv2d, ATEN.conv3d),
    ATEN.scaled_dot_product_attention,
)
"""What is counted: matrix products, convolutions and attention."""


def flops(node: fx.Node, shape: Callable[[fx.Node], tuple[int, ...]] = shape) -> int:
    """Floating point operations of one of ``PRODUCTS``; 0 of the rest.

    Args:
        node: the call.
        shape: of the call and what it reads; by default as it is in the graph.
    """
    if is_call(node, ATEN.linear, ATEN.matmul, ATEN.bmm, ATEN.mm):
        return 2 * math.prod(shape(node)) * shape(_source(node, 0))[-1]
    if is_call(node, ATEN.addmm):
        return 2 * math.prod(shape(node)) * shape(_source(node, 1))[-1]
    if is_call(node, ATEN.convolution, ATEN.conv1d, ATEN.conv2d, ATEN.conv3d):
        return 2 * math.prod(shape(node)) * math.prod(shape(_source(node, 1))[1:])
    if is_call(node, ATEN.scaled_dot_product_attention):
        queries, keys = shape(_source(node, 0)), shape(_source(node, 1))
        products = 2 * math.prod(queries) * keys[-2]
        return 2 * products
    return 0


def _source(node: fx.Node, place: int) -> fx.Node:
    source = node.args[place]
    assert isinstance(source, fx.Node)
    return source
