"""Operators that only move, split or join what is there."""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from torch import fx

from edgeprune.program.graph import ATEN, is_call, shape, slice_arguments
from edgeprune.sites.atoms import Dim, concat, cut_at, unify_sequences
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, literals, rule

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
    """Every size in numbers, but for the batch and what is computed from it.

    Of these, one that is not repeated is -1: it may be a product of the batch and of what is cut.
    """
    before, after = shape(node.args[0]), shape(node)
    before = (0,) * (len(after) - len(before)) + before
    new = [
        size if size is not None and not isinstance(old, fx.Node) else old if had != has else -1
        for old, size, had, has in zip(node.args[1], sizes(node), before, after, strict=True)
    ]
    return (node.args[0], new, *node.args[2:])


def _sizes(given: Any, new: tuple[int | None, ...]) -> list[Any]:
    return [
        _symbolic(old) if size is None or isinstance(old, fx.Node) else size
        for old, size in zip(given, new, strict=True)
    ]


def _symbolic(size: Any) -> Any:
    return size if _is_batch(size) else -1


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
        elif isinstance(size, fx.Node):
            after[-offset].freeze(f"{describe(node)} computes its size from the batch")
        if offset <= len(before) and before[-offset].size == after[-offset].size:
            after[-offset] = before[-offset]
    return tuple(after)


@rule(ATEN.repeat)
def repeat(flow: Flow, node: fx.Node) -> Dims:
    """A repeated dimension cannot be cut; the others stay as they are."""
    before, after = flow.of(node.args[0]), list(flow.fresh(node))
    for offset, times in enumerate(reversed(node.args[1]), start=1):
        repeated = before[-offset] if offset <= len(before) else Dim(1)
        if times == 1:
            after[-offset] = repeated
        else:
            flow.freeze((repeated, after[-offset]), f"{describe(node)} repeats it")
    return tuple(after)


@rule(ATEN.gather)
def gather(flow: Flow, node: fx.Node) -> Dims:
    """One entry of a dimension for each number in a table; the other dimensions are the table's."""
    source, axis, table = node.args[:3]
    dims, taken = flow.of(source), flow.of(table)
    dims[axis].freeze(f"{describe(node)} takes entries by their number")
    for i, (mine, theirs) in enumerate(zip(taken, dims, strict=True)):
        if i == axis % len(dims):
            continue
        if mine.size == theirs.size:
            flow.tie(mine, theirs, node)
        else:
            flow.freeze((mine, theirs), f"{describe(node)} reads its first entries")
    return taken


@rule(ATEN.slice)
def sliced(flow: Flow, node: fx.Node) -> Dims:
    """A range of one dimension: the dimension is a concatenation of what is in and what is out."""
    dims = list(flow.of(node.args[0]))
    axis, start, end, step = slice_arguments(node)
    size = dims[axis].size
    if step != 1 or not _known(start, end) or not shape(node)[axis]:
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
    if step != 1 or before is None or after is None or not _known(start, end):
        return node.args
    if not start:
        return (node.args[0], axis, 0, after)
    old = shape(node.args[0])[axis]
    if range(old)[slice(start, end)].stop == old:
        return (node.args[0], axis, before - after, before)
    return node.args


def _known(start: object, end: object) -> bool:
    """Whether a slice's ends are numbers, and not computed from the batch."""
    return all(each is None or isinstance(each, int) for each in (start, end))


@rule(ATEN.select)
def select(flow: Flow, node: fx.Node) -> Dims:
    """One entry of a dimension is taken by its number."""
    dims = list(flow.of(node.args[0]))
    dims[node.args[1]].freeze(f"{describe(node)} takes one entry by its number")
    del dims[node.args[1]]
    return tuple(dims)


@rule(ATEN.index_select)
def index_select(flow: Flow, node: fx.Node) -> Dims:
    """Entries of a dimension are taken by numbers that are data."""
    dims, axis = list(flow.of(node.args[0])), node.args[1]
    dims[axis].freeze(f"{describe(node)} takes entries by their number")
    taken = flow.of(node.args[2]) or (Dim(1),)
    dims[axis] = taken[0]
    return tuple(dims)


@rule(ATEN.cat)
def cat(flow: Flow, node: fx.Node) -> Dims:
    """The joined dimension is the concatenation of its parts; the others are the same."""
    rank = len(shape(node))
    # A list without entries may be joined to anything.
    parts = [dims for dims in map(flow.of, node.args[0]) if len(dims) == rank]
    axis = (node.args[1] if len(node.args) > 1 else 0) % rank
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


@rule(ATEN.glu)
def glu(flow: Flow, node: fx.Node) -> Dims:
    """One half of a dimension gates the other: the two have the same units."""
    dims = list(flow.of(node.args[0]))
    axis = node.args[1] if len(node.args) > 1 else -1
    half = Dim(shape(node)[axis])
    flow.tie(dims[axis], concat([half, half]), node)
    dims[axis] = half
    return tuple(dims)


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
