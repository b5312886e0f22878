"""Repeats in one form: a dimension of their own, by ``expand``, then joined with what repeats."""

from __future__ import annotations

import operator

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    calls,
    emit,
    get_attribute,
    is_call,
    replace,
    shape,
)


def write_repeats_out(module: fx.GraphModule) -> None:
    """Write ``repeat_interleave``, and taking entries in such an order, by ``expand``.

    So are the keys and values of grouped queries repeated where attention does not do it itself.
    """
    for node in calls(module.graph, ATEN.repeat_interleave.self_int):
        source, times, axis = (*node.args, node.kwargs.get("dim"))[:3]
        if isinstance(times, int) and axis is not None:
            _write(module, node, source, times, axis)
    for node in calls(module.graph, ATEN.index_select, ATEN.index.Tensor):
        axis, index = _taken(node)
        times = _times(module, index, shape(node.args[0])[axis])
        if times > 1:
            _write(module, node, node.args[0], times, axis)


def write_samples_apart(module: fx.GraphModule) -> None:
    """Write by ``expand`` what is repeated for each sample of a batch that is joined with heads.

    Such attention computes [batch x heads, T, d]: tables of all heads are repeated for each sample,
    those for any head for each head of each sample.
    """
    for node in calls(module.graph, ATEN.repeat.default):
        source, times = node.args
        if len(times) == len(shape(source)) and set(times[1:]) <= {1}:
            _spread(module, node, source, [times[0], *shape(source)])
    for node in calls(module.graph, ATEN.expand.default):
        source, sizes = node.args[:2]
        once = len(sizes) == len(shape(source)) and shape(source)[:1] == (1,)
        if once and is_call(sizes[0], operator.mul):
            heads, samples = sorted(sizes[0].args, key=lambda each: isinstance(each, fx.Node))
            _spread(module, node, source, [samples, heads, *sizes[1:]])


def repeat_shared_heads(module: fx.GraphModule) -> None:
    """Write ``enable_gqa`` out: each key and value head is repeated for its query heads."""
    for node in calls(module.graph, ATEN.scaled_dot_product_attention):
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "enable_gqa"}
        if len(shape(node)) != 4:
            continue
        heads = shape(node)[1]
        for place in (1, 2):  # key and value
            groups = shape(node.args[place])[1]
            if groups != heads:
                with module.graph.inserting_before(node):
                    node.update_arg(place, _repeated(node.args[place], heads // groups, 1))


def _write(module: fx.GraphModule, node: fx.Node, source: fx.Node, times: int, axis: int) -> None:
    axis %= len(shape(source))
    if axis == 0 or times < 2:  # the batch
        return
    with module.graph.inserting_before(node):
        new = _repeated(source, times, axis)
    replace(node, new)


def _repeated(source: fx.Node, times: int, axis: int) -> fx.Node:
    graph, sizes = source.graph, list(shape(source))
    tall = emit(graph, ATEN.unsqueeze.default, source, axis + 1)
    spread = [-1] * (len(sizes) + 1)
    spread[axis + 1] = times
    wide = emit(graph, ATEN.expand.default, tall, spread)
    sizes[axis] *= times
    return emit(graph, ATEN.reshape.default, wide, [-1, *sizes[1:]])


def _spread(module: fx.GraphModule, node: fx.Node, source: fx.Node, sizes: list[object]) -> None:
    """Let the first two of ``sizes``, joined, stand for ``node``, where the first is the batch."""
    if not is_call(sizes[0], ATEN.sym_size) or isinstance(sizes[1], fx.Node):
        return
    with module.graph.inserting_before(node):
        wide = emit(module.graph, ATEN.expand.default, source, sizes)
        new = emit(module.graph, ATEN.reshape.default, wide, [-1, *shape(node)[1:]])
    replace(node, new)


def _taken(node: fx.Node) -> tuple[int, object]:
    """The dimension along which entries are taken, and by what; of several indices, none."""
    if node.target is ATEN.index_select.default:
        _, axis, index = node.args
        return axis, index
    found = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]
    return found[0] if len(found) == 1 else (0, None)


def _times(module: fx.GraphModule, index: object, size: int) -> int:
    """How often an index takes every entry in a row; 0 where it does something else."""
    if not isinstance(index, fx.Node) or index.op != "get_attr":
        return 0
    taken = get_attribute(module, str(index.target))
    times = taken.numel() // size
    in_a_row = torch.arange(size).repeat_interleave(times)
    return times if taken.ndim == 1 and torch.equal(taken.long(), in_a_row) else 0
