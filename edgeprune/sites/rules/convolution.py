"""Convolution and pooling."""

from __future__ import annotations

from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN, shape
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, literals, rule


@rule(ATEN.conv1d, ATEN.conv2d, ATEN.conv3d)
def convolution(flow: Flow, node: fx.Node) -> Dims:
    """Ties channels to the weight; a depthwise convolution also ties input to output channels."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    groups = node.args[6] if len(node.args) > 6 else 1
    space = flow.fresh(node)[2:]
    flow.freeze((*x[2:], *space), f"{describe(node)} slides over it")
    for dim in weight[2:]:
        flow.role("kernel", dim)
    if groups == 1:
        flow.tie(x[1], weight[1], node)
    elif groups == x[1].size == weight[0].size:
        flow.tie(x[1], weight[0], node)
    else:
        flow.freeze((x[1], weight[0]), f"{describe(node)} groups its channels")
    if len(node.args) > 2 and node.args[2] is not None:
        flow.tie(weight[0], flow.of(node.args[2])[0], node)
    flow.role("channels", weight[0])
    return (x[0], weight[0], *space)


@literals(ATEN.conv1d, ATEN.conv2d, ATEN.conv3d)
def convolution_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """A depthwise convolution has as many groups as channels."""
    if len(node.args) > 6 and node.args[6] != 1 and node.args[6] == shape(node.args[0])[1]:
        return (*node.args[:6], sizes(node.args[0])[1])
    return node.args


@rule(ATEN.max_pool2d, ATEN.avg_pool2d, ATEN.adaptive_avg_pool2d, ATEN.avg_pool1d)
def pooling(flow: Flow, node: fx.Node) -> Dims:
    """Pools over space; batch and channels pass through."""
    x = flow.of(node.args[0])
    space = flow.fresh(node)[2:]
    flow.freeze((*x[2:], *space), f"{describe(node)} slides over it")
    return (*x[:2], *space)
