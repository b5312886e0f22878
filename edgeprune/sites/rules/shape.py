"""Operators that only move, split or join what is there."""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN, is_call, shape, slice_arguments
from edgeprune.sites.atoms import Dim, concat, cut_at, unify_sequences
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, is_tensor, literals, rule

RESHAPES = (ATEN.reshape, ATEN._unsafe_view)


@rule(*RESHAPES, ATEN.flatten, ATEN.squeeze, ATEN.unsqueeze)
def reshape(flow: Flow, node: fx.Node) -> Dims:
    """The same entries in the same order: both sides are one sequence of factors."""
    before = [dim for dim in flow.of(node.args[0]) if dim.size != 1]
    after = flow.fresh(node)
    unify_sequences(before, [d for d in after if d.size != 1], "product", describe(node))
    return after


@literals(*RESHAPES)
def reshape_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """Every size in numbers; the one that carries the batch stays symbolic or becomes -1."""
    return (node.args[0], _sizes(node.args[1], sizes(node)))


@literals(ATEN.expand)
def expand_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """Every size in numbers, but for the batch."""
    return (node.args[0], _sizes(node.args[1], sizes(node)), *node.args[2:])


def _sizes(given: Any, new: tuple[int | None, ...]) -> list[Any]:
    symbolic = [each if _is_batch(each) else -1 for each in given]
    return [old if size is None else size for old, size in zip(symbolic, new, strict=True)]


def _is_batch(size: Any) -> bool:
    return is_call(size, ATEN.sym_size)


@rule(ATEN.transpose, ATEN.permute, ATEN.t, ATEN.mT, ATEN.movedim.int)
def permute(flow: Flow, node: fx.Node) -> Dims:
    """Dimensions in another order."""
    dims = list(flow.of(node.args[0]))
    if is_call(node, ATEN.permute):
        return tuple(dims[i] for i in node.args[1])
    one, two = (-2, -1) if is_call(node, ATEN.t, ATEN.mT) else node.args[1:3]
    if is_call(node, ATEN.movedim.int):
        dims.insert(two % len(dims), dims.pop(one))
    else:
        dims[one], dims[two] = dims[two], dims[one]
    return tuple(dims)


@rule(ATEN.expand)
def expand(flow: Flow, node: fx.Node) -> Dims:
    """A dimension of size 1 is repeated: the repeats are an atom of their own."""
    before, after = flow.of(node.args[0]), list(flow.fresh(node))
    for offset in range(1, len(after) + 1):
        size = node.args[1][-offset]
        if _is_batch(size):
            after[-offset] = flow.batch
        if offset <= len(before) and before[-offset].size == after[-offset].size:
            after[-offset] = before[-offset]
    return tuple(after)


@rule(ATEN.slice)
def sliced(flow: Flow, node: fx.Node) -> Dims:
    """A range of one dimension: the dimension is a concatenation of what is in and what is out."""
    dims = list(flow.of(node.args[0]))
    axis, start, end, step = slice_arguments(node)
    size = dims[axis].size
    symbolic = not all(isinstance(each, (int, type(None))) for each in (start, end))
    if step != 1 or symbolic or not shape(node)[axis]:
        taken = Dim(shape(node)[axis])
        flow.freeze((dims[axis], taken), f"{describe(node)} takes entries by their place")
        dims[axis] = taken
        return tuple(dims)
    first, last = (range(size)[slice(start, end)].start, range(size)[slice(start, end)].stop)
    marks = sorted({first, last, size} - {0})
    segments = cut_at(dims[axis], marks, describe(node))
    dims[axis] = segments[marks.index(last)]
    return tuple(dims)


@literals(ATEN.slice)
def slice_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """A slice that starts at 0 ends at its new size; one that ends at the end starts before it."""
    axis, start, end, step = slice_arguments(node)
    before, after = sizes(node.args[0])[axis], sizes(node)[axis]
    if step != 1 or before is None or after is None:
        return node.args
    if not start:
        return (node.args[0], axis, 0, after)
    old = shape(node.args[0])[axis]
    if range(old)[slice(start, end)].stop == old:
        return (node.args[0], axis, before - after, before)
    return node.args


@rule(ATEN.select)
def select(flow: Flow, node: fx.Node) -> Dims:
    """One entry of a dimension is taken by its number."""
    dims = list(flow.of(node.args[0]))
    dims[node.args[1]].freeze(f"{describe(node)} takes one entry by its number")
    del dims[node.args[1]]
    return tuple(dims)


@rule(ATEN.cat)
def cat(flow: Flow, node: fx.Node) -> Dims:
    """The joined dimension is the concatenation of its parts; the others are the same."""
    parts = [flow.of(source) for source in node.args[0] if is_tensor(source)]
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(parts[0])
    result = list(parts[0])
    for other in parts[1:]:
        for i, dim in enumerate(other):
            if i != axis:
                flow.tie(result[i], dim, node)
    result[axis] = concat([part[axis] for part in parts])
    return tuple(result)


@rule(ATEN.stack)
def stack(flow: Flow, node: fx.Node) -> Dims:
    """A new dimension; the others are the same."""
    parts = [flow.of(source) for source in node.args[0]]
    for other in parts[1:]:
        for mine, theirs in zip(parts[0], other, strict=True):
            flow.tie(mine, theirs, node)
    result = list(parts[0])
    axis = (node.args[1] if len(node.args) > 1 else 0) % (len(result) + 1)
    stacked = Dim(len(parts))
    stacked.freeze(f"{describe(node)} makes it, one entry for each tensor")
    result.insert(axis, stacked)
    return tuple(result)


@rule(ATEN.split_with_sizes)
def split(flow: Flow, node: fx.Node) -> list[Dims]:
    """Consecutive segments of one dimension."""
    dims = flow.of(node.args[0])
    axis = _split_axis(node) % len(dims)
    marks = list(accumulate(node.args[1]))
    segments = cut_at(dims[axis], marks, describe(node))
    return [(*dims[:axis], segment, *dims[axis + 1 :]) for segment in segments]


@literals(ATEN.split_with_sizes)
def split_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """Every segment's new size."""
    axis = _split_axis(node)
    parts = list(node.args[1])
    for user in node.users:
        parts[user.args[1]] = sizes(user)[axis]
    return (node.args[0], parts, axis)


def _split_axis(node: fx.Node) -> int:
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis


@rule(ATEN.unbind)
def unbind(flow: Flow, node: fx.Node) -> list[Dims]:
    """One dimension becomes that many tensors."""
    dims = list(flow.of(node.args[0]))
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(dims)
    count = dims[axis].size
    dims[axis].freeze(f"{describe(node)} takes its entries apart")
    del dims[axis]
    return [tuple(dims)] * count


@rule(operator.getitem)
def getitem(flow: Flow, node: fx.Node) -> Dims:
    """One of an operator's several outputs."""
    outputs = flow.dims[node.args[0]]
    assert isinstance(outputs, list)
    return outputs[node.args[1]]
