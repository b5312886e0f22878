"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

import torch
from torch import fx

from edgeprune.program.graph import ATEN, is_call
from edgeprune.sites.atoms import Dim
from edgeprune.sites.flow import Dims, Flow, rule


@rule(torch.Tag.pointwise, ATEN.to, ATEN._to_copy, ATEN.where, ATEN.masked_fill, ATEN.dropout)
@rule(ATEN.expand_as, ATEN.detach, ATEN.type_as, ATEN.zeros_like, ATEN.ones_like, ATEN.full_like)
def pointwise(flow: Flow, node: fx.Node) -> Dims:
    """Dimensions aligned from the right are the same, but for those of size 1."""
    result = list(flow.fresh(node))
    only_type = is_call(node, ATEN.type_as, ATEN.to.other)  # is taken of the second tensor
    for source in node.all_input_nodes[: 1 if only_type else None]:
        _align(flow, node, result, flow.of(source))
    return tuple(result)


@rule(ATEN.prelu)
def prelu(flow: Flow, node: fx.Node) -> Dims:
    """One slope for all, or one for each channel, which is dimension 1."""
    dims, slopes = flow.of(node.args[0]), flow.of(node.args[1])
    if slopes and len(dims) > 1:
        flow.tie(dims[1], slopes[0], node)
    return dims


def _align(flow: Flow, node: fx.Node, result: list[Dim], dims: Dims) -> None:
    for offset in range(1, len(dims) + 1):
        flow.tie(result[-offset], dims[-offset], node)
