"""Convolutions: plain, grouped, depthwise and transposed.

With groups, channels are *groups x channels per group*: a group leaves whole, or the same channels
leave every group, so that all groups stay alike. A depthwise convolution has one channel a group.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN
from edgeprune.sites.atoms import Dim, product
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, literals, rule

CONVOLUTIONS = (ATEN.conv1d, ATEN.conv2d, ATEN.conv3d)
TRANSPOSED = (ATEN.conv_transpose1d, ATEN.conv_transpose2d, ATEN.conv_transpose3d)


def groups_of(node: fx.Node) -> Any:
    """How many groups a convolution of either kind has."""
    return node.args[6] if len(node.args) > 6 else 1


@rule(*CONVOLUTIONS)
def convolution(flow: Flow, node: fx.Node) -> Dims | list[Dims]:
    """x [batch, groups x in, ...], weight [groups x out, in, ...] -> [batch, groups x out, ...]."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    if len(x) != len(weight):
        return flow.without_rule(node)
    groups = Dim(groups_of(node))
    flow.tie(x[1], _times(groups, weight[1]), node)
    flow.tie(weight[0], _times(groups, Dim(weight[0].size // groups.size)), node)
    flow.use_up(node, node.args[0], weight[1])
    return _slide(flow, node, weight[0], groups)


@rule(*TRANSPOSED)
def transposed_convolution(flow: Flow, node: fx.Node) -> Dims | list[Dims]:
    """x [batch, groups x in, ...], weight [groups x in, out, ...] -> [batch, groups x out, ...]."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    if len(x) != len(weight):
        return flow.without_rule(node)
    groups = Dim(groups_of(node))
    flow.tie(x[1], weight[0], node)
    one_group = Dim(weight[0].size // groups.size)
    flow.tie(weight[0], _times(groups, one_group), node)
    flow.use_up(node, node.args[0], one_group)
    return _slide(flow, node, _times(groups, weight[1]), groups)


def _slide(flow: Flow, node: fx.Node, channels: Dim, groups: Dim) -> Dims:
    """What both kinds share: the bias, the space and what the dimensions are for."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    space = flow.fresh(node)[2:]
    flow.freeze((*x[2:], *space), f"{describe(node)} slides over it")
    if len(node.args) > 2 and node.args[2] is not None:
        flow.tie(channels, flow.of(node.args[2])[0], node)
    for dim in weight[2:]:
        flow.role("kernel", dim)
    flow.role("channels", channels)
    if 1 < groups.size < x[1].size:
        flow.role("groups", groups)
    return (x[0], channels, *space)


def _times(groups: Dim, channels: Dim) -> Dim:
    """Groups x channels per group, without a factor of 1."""
    return product([dim for dim in (groups, channels) if dim.size > 1] or [channels])


@literals(*CONVOLUTIONS, *TRANSPOSED)
def convolution_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """As many groups as one group's channels fit into all."""
    if groups_of(node) == 1:
        return node.args
    # The weight's second dimension is one group's: of inputs, or of outputs where transposed.
    whole = sizes(node if node.target.overloadpacket in TRANSPOSED else node.args[0])[1]
    one = sizes(node.args[1])[1]
    assert whole is not None and one is not None
    return (*node.args[:6], whole // one, *node.args[7:])
