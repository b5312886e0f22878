"""Operators on space: pooling, resampling, padding, shifting; channels pass through them."""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN, is_call, op_name
from edgeprune.sites.atoms import Dim, product
from edgeprune.sites.flow import Dims, Flow, describe, rule

POOLS = (
    *(ATEN.max_pool1d, ATEN.max_pool2d, ATEN.max_pool3d),
    *(ATEN.avg_pool1d, ATEN.avg_pool2d, ATEN.avg_pool3d),
)
ADAPTIVE_MEANS = (ATEN.adaptive_avg_pool1d, ATEN.adaptive_avg_pool2d, ATEN.adaptive_avg_pool3d)
ADAPTIVE_MAXIMA = (ATEN.adaptive_max_pool1d, ATEN.adaptive_max_pool2d, ATEN.adaptive_max_pool3d)
UPSAMPLING = (
    *(ATEN.upsample_nearest1d, ATEN.upsample_nearest2d, ATEN.upsample_nearest3d),
    *(ATEN._upsample_nearest_exact1d, ATEN._upsample_nearest_exact2d),
    *(ATEN.upsample_linear1d, ATEN.upsample_bilinear2d, ATEN.upsample_bicubic2d),
    ATEN.upsample_trilinear3d,
)
PADDING = (ATEN.pad, ATEN.constant_pad_nd)


@rule(*POOLS, *ADAPTIVE_MEANS, *UPSAMPLING)
def resampled(flow: Flow, node: fx.Node) -> Dims:
    """The last one to three dimensions, as the operator's name says, get another size."""
    rank = _space_rank(node)
    x, space = flow.of(node.args[0]), flow.fresh(node)[-rank:]
    flow.freeze((*x[-rank:], *space), f"{describe(node)} slides over it")
    return (*x[:-rank], *space)


@rule(*ADAPTIVE_MAXIMA)
@rule(ATEN.max_pool1d_with_indices, ATEN.max_pool2d_with_indices, ATEN.max_pool3d_with_indices)
def pooled_with_places(flow: Flow, node: fx.Node) -> list[Dims]:
    """The maxima, and where they were."""
    rank = _space_rank(node)
    x = flow.of(node.args[0])
    space = tuple(Dim(int(size)) for size in node.meta["val"][0].shape[-rank:])
    flow.freeze((*x[-rank:], *space), f"{describe(node)} slides over it")
    return [(*x[:-rank], *space)] * 2


def _space_rank(node: fx.Node) -> int:
    found = re.search(r"(\d)d", op_name(node))
    assert found is not None
    return int(found[1])


@rule(*PADDING)
def padded(flow: Flow, node: fx.Node) -> Dims:
    """What gets a border cannot be cut; the rest passes through."""
    dims, after = list(flow.of(node.args[0])), flow.fresh(node)
    borders = node.args[1]
    assert isinstance(borders, (list, tuple))
    for place in range(len(borders) // 2):
        if any(borders[2 * place : 2 * place + 2]):
            axis = -1 - place
            flow.freeze((dims[axis], after[axis]), f"{describe(node)} gives it a border")
            dims[axis] = after[axis]
    return tuple(dims)


@rule(ATEN.roll, ATEN.flip)
def moved(flow: Flow, node: fx.Node) -> Dims:
    """Entries change places along some dimensions; those without a list, along all."""
    dims = flow.of(node.args[0])
    place = 1 if is_call(node, ATEN.flip) else 2
    axes: Any = node.args[place] if len(node.args) > place else []
    moving = [dims[axis] for axis in axes] or dims
    flow.freeze(moving, f"{describe(node)} moves its entries")
    return dims


@rule(ATEN.pixel_shuffle)
def pixel_shuffle(flow: Flow, node: fx.Node) -> Dims:
    """[..., channels x r x r, height, width] -> [..., channels, height x r, width x r]."""
    x, after = flow.of(node.args[0]), flow.fresh(node)
    _channels_and_places(flow, node, x[-3], after[-3])
    flow.freeze((*x[-2:], *after[-2:]), f"{describe(node)} spreads channels over it")
    return (*x[:-3], *after[-3:])


@rule(ATEN.pixel_unshuffle)
def pixel_unshuffle(flow: Flow, node: fx.Node) -> Dims:
    """[..., channels, height x r, width x r] -> [..., channels x r x r, height, width]."""
    x, after = flow.of(node.args[0]), flow.fresh(node)
    _channels_and_places(flow, node, after[-3], x[-3])
    flow.freeze((*x[-2:], *after[-2:]), f"{describe(node)} gathers channels from it")
    return (*x[:-3], *after[-3:])


def _channels_and_places(flow: Flow, node: fx.Node, many: Dim, few: Dim) -> None:
    places = Dim(many.size // few.size)
    places.freeze(f"{describe(node)} spreads it over space")
    flow.tie(many, product([few, places]) if few.size > 1 else places, node)


@rule(ATEN.channel_shuffle)
def channel_shuffle(flow: Flow, node: fx.Node) -> Dims:
    """Channels as groups x others become others x groups; the number of groups is the code's."""
    x = flow.of(node.args[0])
    count = node.args[1]
    assert isinstance(count, int)
    groups, others = Dim(count), Dim(x[1].size // count)
    groups.freeze(f"{describe(node)} deals channels out to it")
    flow.tie(x[1], product([groups, others]), node)
    return (x[0], product([others, groups]), *x[2:])
