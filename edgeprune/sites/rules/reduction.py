"""Operators that reduce or normalise over a dimension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN, shape
from edgeprune.sites.atoms import Dim, product
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, literals, rule


def reduced(node: fx.Node) -> list[int]:
    """Which dimensions a reduction reduces, counted from 0."""
    rank = len(shape(node.args[0]))
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == [] or isinstance(given, bool):  # a variance's ``unbiased``
        return list(range(rank))
    listed = given if isinstance(given, (list, tuple)) else [given]
    return [dim % rank for dim in listed]


def _keep(flow: Flow, node: fx.Node, given: list[int] | None = None) -> Dims:
    """The dimensions that are left; ``given`` are reduced where the call lists them elsewhere."""
    dims = flow.of(node.args[0])
    gone = reduced(node) if given is None else given
    flow.use_up(node, node.args[0], *(dims[i] for i in gone))
    if len(shape(node)) == len(dims):
        fresh = flow.fresh(node)
        return tuple(fresh[i] if i in gone else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in gone)


@rule(ATEN.sum, ATEN.mean)
def summed(flow: Flow, node: fx.Node) -> Dims:
    """A sum does not notice a removed term that was 0; surgery keeps what a mean divides by."""
    return _keep(flow, node)


@rule(ATEN.linalg_vector_norm)
def length(flow: Flow, node: fx.Node) -> Dims | list[Dims]:
    """The root of a sum of squares does not notice a removed 0 either."""
    x, order, *rest = node.args
    if order != 2 or not rest:
        return flow.without_rule(node)
    return _keep(flow, node, [dim % len(shape(x)) for dim in rest[0]])


@rule(ATEN.var, ATEN.std)
def spread(flow: Flow, node: fx.Node) -> Dims:
    """A variance is taken about the mean of what is left: cutting it is not exact."""
    for dim in reduced(node):
        flow.of(node.args[0])[dim].disturb(f"{describe(node)} runs over it")
    return _keep(flow, node)


@rule(ATEN.amax, ATEN.amin, ATEN.argmax, ATEN.argmin, ATEN.logsumexp, ATEN.prod)
@rule(ATEN.all, ATEN.any)
def extreme(flow: Flow, node: fx.Node) -> Dims:
    """A maximum, product or sum of exponentials notices a removed term that was 0."""
    for dim in reduced(node):
        flow.of(node.args[0])[dim].freeze(f"{describe(node)} runs over it")
    return _keep(flow, node)


@rule(ATEN.max.dim, ATEN.min.dim, ATEN.median.dim)
def extremes(flow: Flow, node: fx.Node) -> list[Dims]:
    """The largest, smallest or middle entries along one dimension, and which they were."""
    dims = list(flow.of(node.args[0]))
    axis, keep = (*node.args[1:], False)[:2]
    assert isinstance(axis, int)
    dims[axis].freeze(f"{describe(node)} runs over it")
    dims[axis : axis + 1 or None] = [Dim(1)] if keep else []
    return [tuple(dims)] * 2


@rule(ATEN.topk, ATEN.sort)
def in_order(flow: Flow, node: fx.Node) -> list[Dims]:
    """The entries of one dimension from the largest on, all or some, and which they were."""
    dims, taken = list(flow.of(node.args[0])), node.target is ATEN.topk.default
    axis = (*node.args[2 if taken else 1 :], node.kwargs.get("dim", -1))[0]
    dims[axis].freeze(f"{describe(node)} runs over it")
    if taken:
        dims[axis] = Dim(node.args[1])
        dims[axis].freeze(f"{describe(node)} orders it")
    return [tuple(dims)] * 2


@rule(ATEN.softmax, ATEN._softmax, ATEN.log_softmax, ATEN.cumsum)
def normalised_along(flow: Flow, node: fx.Node) -> Dims:
    """A softmax (or running sum) couples all entries along its dimension."""
    dims = flow.of(node.args[0])
    dims[node.args[1]].freeze(f"{describe(node)} runs over it")
    return dims


@rule(ATEN.layer_norm)
def layer_norm(flow: Flow, node: fx.Node) -> Dims:
    """Subtracts the mean of what is left: cutting what it normalises over is not exact."""
    dims = flow.of(node.args[0])
    last = dims[len(dims) - len(node.args[1]) :]
    for dim in last:
        dim.disturb(f"{describe(node)} normalises over it")
    for weight in node.args[2:4]:
        for mine, theirs in zip(flow.of(weight), last, strict=False):
            flow.tie(mine, theirs, node)
    return dims


@rule(ATEN.batch_norm)
def batch_norm(flow: Flow, node: fx.Node) -> Dims:
    """Per-channel statistics and weights belong to the channel."""
    return _by_channel(flow, node, node.args[1:5])


def _by_channel(flow: Flow, node: fx.Node, tensors: Iterable[Any]) -> Dims:
    dims = flow.of(node.args[0])
    for tensor in tensors:
        for dim in flow.of(tensor):
            flow.tie(dim, dims[1], node)
    return dims


@rule(ATEN.instance_norm)
def instance_norm(flow: Flow, node: fx.Node) -> Dims:
    """Each channel by itself, over its space."""
    dims = _by_channel(flow, node, node.args[1:5])
    flow.freeze(dims[2:], f"{describe(node)} normalises over it")
    return dims


@rule(ATEN.group_norm)
def group_norm(flow: Flow, node: fx.Node) -> Dims:
    """Whole groups may leave. A single group is as a layer norm: cutting it is not exact."""
    dims = flow.of(node.args[0])
    groups = Dim(_group_count(node))
    within = Dim(dims[1].size // groups.size)
    flow.tie(dims[1], product([d for d in (groups, within) if d.size > 1] or [groups]), node)
    reason = f"{describe(node)} normalises over it"
    flow.freeze(dims[2:], reason)
    if groups.size == 1:
        within.disturb(reason)
    else:
        within.freeze(reason)
    if groups.size < dims[1].size:
        flow.role("groups", groups)
    return _by_channel(flow, node, node.args[2:4])


@literals(ATEN.group_norm)
def group_norm_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """As many groups as are left; none of several got smaller."""
    if _group_count(node) == 1:
        return node.args
    within = shape(node)[1] // _group_count(node)
    channels = sizes(node)[1]
    assert channels is not None
    return (node.args[0], channels // within, *node.args[2:])


def _group_count(node: fx.Node) -> int:
    count = node.args[1]
    assert isinstance(count, int)
    return count


@literals(ATEN.layer_norm)
def layer_norm_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """``normalized_shape`` is the tail of the input's shape."""
    tail = list(sizes(node)[-len(node.args[1]) :])
    return (node.args[0], tail, *node.args[2:])
