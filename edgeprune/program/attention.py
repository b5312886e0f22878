"""Attention written out as products and a softmax becomes one call of PyTorch's own.

Then heads, tokens, scores and kernels find it where they look for it, whoever wrote the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    calls,
    drop_dead,
    emit,
    is_call,
    shape,
)
from edgeprune.program.masks import Blocks, constant_number, dtype_of, read_fill

PRODUCTS = (ATEN.matmul, ATEN.bmm)


@dataclass(frozen=True)
class _Scores:
    """``scale * query key^T + biases``, as the graph writes it.

    Attributes:
        query: [..., queries, head_dim].
        key: transposed, [..., head_dim, keys].
        scale: of the product.
        biases: what is added, in the order of the graph.
    """

    query: fx.Node
    key: fx.Node
    scale: float = 1.0
    biases: tuple[_Bias, ...] = ()


class _Bias(NamedTuple):
    """A tensor that broadcasts to the scores; a boolean one says which of them count."""

    tensor: fx.Node
    rank: int  # of the scores where it is added
    factor: float = 1.0


class _Operands(NamedTuple):
    query: fx.Node
    key: fx.Node
    value: fx.Node

    def fit(self, batch: int) -> bool:
        """Whether attention takes them: [batch, heads, ...], or [batch, ...] of one head."""
        leading = {shape(each)[:-2] for each in self}
        return len(leading) == 1 and len(first := leading.pop()) in (1, 2) and first[0] == batch


def join_attention(module: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Replace softmax(scale * q k^T + bias) v by ``scaled_dot_product_attention``.

    Only where that is exact: the softmax runs over the keys, q, k and v are [batch, heads, ...]
    (or were, before batch and heads were joined), and nothing else reads the scores.
    """
    blocks = Blocks(module)
    for softmax in calls(module.graph, ATEN.softmax, ATEN._softmax):
        mixed = _only_reader(softmax)
        if mixed is None or not is_call(mixed, *PRODUCTS) or not _runs_over_keys(softmax):
            continue
        scores = _read(module, softmax.args[0], softmax)
        if scores is None or _behind_regrouping(mixed.args[0]) is not softmax:
            continue
        with module.graph.inserting_before(mixed):
            key = _turned(scores.key)
        operands = _Operands(*map(_split, (scores.query, key, mixed.args[1])))
        if operands.fit(example_inputs[0].shape[0]):
            with module.graph.inserting_before(mixed):
                mask = _sum_of(blocks, scores.biases, operands)
                attend = ATEN.scaled_dot_product_attention.default
                joined = emit(module.graph, attend, *operands, mask, scale=scores.scale)
            _put(mixed, joined)
    drop_dead(module.graph)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one that reads the node, also after its leading dimensions are regrouped."""
    while len(node.users) == 1:
        (reader,) = node.users
        if not _regroups(reader):
            return reader
        node = reader
    return None


def _regroups(node: fx.Node) -> bool:
    """Whether a reshape leaves the last two dimensions alone."""
    if not is_call(node, ATEN.reshape):
        return False
    before, after = shape(node.args[0]), shape(node)
    return min(len(before), len(after)) > 2 and before[-2:] == after[-2:]


def _behind_regrouping(node: fx.Node) -> fx.Node:
    while _regroups(node):
        node = node.args[0]
    return node


def _runs_over_keys(softmax: fx.Node) -> bool:
    dtype = softmax.args[2] if len(softmax.args) > 2 else None
    kept = is_call(softmax, ATEN._softmax) or dtype in (None, dtype_of(softmax.args[0]))
    return kept and softmax.args[1] in (-1, len(shape(softmax)) - 1)


def _read(module: fx.GraphModule, node: object, reader: fx.Node) -> _Scores | None:
    """Follow scores down to their product; None where they are something else or are shared."""
    if not isinstance(node, fx.Node) or list(node.users) != [reader]:
        return None
    if is_call(node, *PRODUCTS):
        query, one = _unscaled(module, node.args[0])
        key, two = _unscaled(module, node.args[1])
        return _Scores(query, key, one * two)
    if _regroups(node):
        return _read(module, node.args[0], node)
    if is_call(node, ATEN.add.Tensor) and not node.kwargs:
        one, two = node.args
        return _add(module, node, one, two) or _add(module, node, two, one)
    fill = read_fill(module, node)
    if fill is not None:
        return _add(module, node, *fill)
    factor = _factor(module, node)
    found = None if factor is None else _read(module, node.args[0], node)
    return found and replace(
        found,
        scale=found.scale * factor,
        biases=tuple(bias._replace(factor=bias.factor * factor) for bias in found.biases),
    )


def _add(module: fx.GraphModule, node: fx.Node, inner: object, bias: object) -> _Scores | None:
    """The scores ``inner`` and a bias on top."""
    found = _read(module, inner, node)
    if found is None or shape(inner) != shape(node):
        return None
    if not isinstance(bias, fx.Node):  # the same for all keys: a softmax is blind to it
        return found
    return replace(found, biases=(*found.biases, _Bias(bias, len(shape(node)))))


def _unscaled(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float]:
    """(what a number multiplies, that number)."""
    scale = 1.0
    while (factor := _factor(module, node)) is not None:
        node, scale = node.args[0], scale * factor
    return node, scale


def _factor(module: fx.GraphModule, node: fx.Node) -> float | None:
    """The number by which a call multiplies its first operand; None for any other call."""
    if (
        not is_call(node, ATEN.mul, ATEN.div)
        or node.kwargs
        or not isinstance(node.args[0], fx.Node)
    ):
        return None
    number = constant_number(module, node.args[1])
    if not number:
        return None
    return 1.0 / number if is_call(node, ATEN.div) else number


def _turned(key: fx.Node) -> fx.Node:
    """[..., keys, head_dim] of a transposed key."""
    last = len(shape(key)) - 1
    if is_call(key, ATEN.mT):
        return key.args[0]
    if is_call(key, ATEN.transpose) and {a % (last + 1) for a in key.args[1:3]} == {last - 1, last}:
        return key.args[0]
    return emit(key.graph, ATEN.transpose.int, key, -1, -2)


def _split(node: fx.Node) -> fx.Node:
    """[batch, heads, ...] from before batch and heads were joined."""
    joined = len(shape(node)) == 3 and _regroups(node) and len(shape(node.args[0])) == 4
    return node.args[0] if joined else node


def _sum_of(blocks: Blocks, biases: tuple[_Bias, ...], operands: _Operands) -> fx.Node | None:
    """One additive mask, or none."""
    graph, total = blocks.module.graph, None
    split = len(shape(operands.query)) == 4
    for tensor, rank, factor in biases:
        if split and rank == 3 and len(shape(tensor)) == 3 and shape(tensor)[0] > 1:
            sizes = [-1, shape(operands.query)[1], *shape(tensor)[1:]]
            tensor = emit(graph, ATEN.reshape.default, tensor, sizes)
        if dtype_of(tensor) == torch.bool:
            tensor = blocks.additive(tensor, dtype_of(operands.query))
            if tensor is None:  # it never blocks anything
                continue
        if factor != 1.0:
            tensor = emit(graph, ATEN.mul.Tensor, tensor, factor)
        total = tensor if total is None else emit(graph, ATEN.add.Tensor, total, tensor)
    return total


def _put(mixed: fx.Node, joined: fx.Node) -> None:
    """Let the readers of the written-out product read the attention."""
    for reader in list(mixed.users):
        if _regroups(reader) and shape(reader) == shape(joined):
            reader.replace_all_uses_with(joined)
    if shape(mixed) == shape(joined):
        mixed.replace_all_uses_with(joined)
        return
    with joined.graph.inserting_after(joined):
        sizes = [-1, *shape(mixed)[1:]]
        regrouped = emit(joined.graph, ATEN.reshape.default, joined, sizes)
    mixed.replace_all_uses_with(regrouped)
