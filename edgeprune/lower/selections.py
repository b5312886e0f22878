"""Token selections, which surgery writes in plain arithmetic, as our operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node

from edgeprune.lower.fuse_attention import fuse_scored_attention
from edgeprune.lower.graph import aten, constant, emit, is_call, replace, shape_of
from edgeprune.lower.ops import OURS
from edgeprune.surgery.selections import find_columns, ranked_by

VIEWS = (aten.reshape.default, aten.permute.default)
EACH_ALONE = (aten.mul.Tensor, aten.add.Tensor, aten.clamp.default, aten.reshape.default)


class Selection(NamedTuple):
    """What ``token_select`` is told beside what it selects from: ``[1, tokens]`` each."""

    scores: Node
    pinned: Node | None
    keep: int


def fuse_selections(module: GraphModule) -> None:
    """Scores in the pass that computes the attention; tokens picked, not multiplied out."""
    for columns in find_columns(module.graph):
        _, tokens, keep = shape_of(columns)
        scores, pinned = _without_pinned(ranked_by(columns))
        selection = Selection(_fused_scores(module, scores), pinned, keep)
        for gather, place, axis in list(_gathers(columns, keep, tokens)):
            x = gather.args[place]
            assert isinstance(x, Node)
            with module.graph.inserting_before(gather):
                replace(gather, _selected(module.graph, x, selection, axis, gather))
        module.graph.eliminate_dead_code()
        for matrix in [user for user in columns.users if shape_of(user) == (1, keep, tokens)]:
            _show(module, matrix, selection)
    module.graph.eliminate_dead_code()


def _without_pinned(scores: Node) -> tuple[Node, Node | None]:
    if is_call(scores, aten.add.Tensor) and _is_pinned(scores.args[1]):
        before, pinned = scores.args
        assert isinstance(before, Node) and isinstance(pinned, Node)
        return before, pinned
    return scores, None


def _is_pinned(node: object) -> bool:
    return isinstance(node, Node) and str(node.target).endswith(".pinned")


def _fused_scores(module: GraphModule, scores: Node) -> Node:
    """The scores from our attention, which replaces the one that was written out for them."""
    received, real = scores, None
    if is_call(scores, aten.add.Tensor):  # with padding
        received, real = scores.args[0].args  # type: ignore[union-attr]
    softmax = received.args[0]  # type: ignore[union-attr]
    while not is_call(softmax, aten.softmax.int):
        softmax = softmax.args[1]  # rows of it, weighed
    (mixed,) = (
        n for n in softmax.users if is_call(n, aten.matmul.default) and n.args[0] is softmax
    )
    with module.graph.inserting_before(mixed):
        if real is not None:
            _hoist(real, mixed)
            real = _chosen_later(real)
        attention = _attention_of(softmax, mixed.args[1])
        return fuse_scored_attention(module, attention, mixed, real) or scores


def _hoist(node: Node, reader: Node) -> None:
    """Compute it before ``reader``, which it must not depend on."""
    if not node < reader:
        for source in node.all_input_nodes:
            _hoist(source, reader)
        reader.prepend(node)


def _chosen_later(real: Node) -> Node:
    """Which tokens are real, chosen from what is known of all; not read off a mask of the chosen.

    What stands between two calls of ours would tear a region apart.
    """
    steps, node, graph = [], real, real.graph
    while is_call(node, *EACH_ALONE):
        steps.append(node)
        node = node.all_input_nodes[0]
    if not is_call(node, OURS.token_select.default):
        return real
    x, *chosen, axis = node.args
    tokens = shape_of(x)[axis]
    for step in reversed(steps):
        is_view = is_call(step, aten.reshape.default)
        x = emit(graph, step.target, x, *([[1, tokens]] if is_view else step.args[1:]))
    return emit(graph, OURS.token_select.default, _chosen_later(x), *chosen, -1)


def _attention_of(softmax: Node, value: object) -> Node:
    """softmax(scale q k' + mask) v as one call."""
    products, mask, graph = softmax.args[0], None, softmax.graph
    if is_call(products, aten.add.Tensor):
        products, mask = products.args
    scaled, keys = products.args
    query, scale = scaled.args
    turned = emit(graph, aten.permute.default, keys, [0, 1, 3, 2])
    if is_call(keys, aten.permute.default) and list(keys.args[1]) == [0, 1, 3, 2]:
        turned = keys.args[0]
    sdpa = aten.scaled_dot_product_attention.default
    return emit(graph, sdpa, query, turned, value, mask, scale=scale)


def _gathers(columns: Node, keep: int, tokens: int) -> Iterator[tuple[Node, int, int]]:
    """The products with the matrix, in any view of it.

    Yields:
        Each with the place of the other operand, and the dimension of its tokens.
    """
    for user in columns.users:
        if is_call(user, *VIEWS):
            yield from _gathers(user, keep, tokens)
        elif is_call(user, aten.matmul.default):
            left, right = user.args
            from_left = left is columns and shape_of(columns)[-2:] == (keep, tokens)
            from_right = right is columns and shape_of(columns)[-2:] == (tokens, keep)
            x = right if from_left else left
            if (from_left or from_right) and _fits(x, user):
                yield (user, 1, -2) if from_left else (user, 0, -1)


def _selected(graph: Graph, x: Node, selection: Selection, axis: int, reader: Node) -> Node:
    """The kept tokens of ``x``; what works on each token by itself is computed for those alone."""
    if axis == -2 and set(x.users) == {reader}:
        parts = x.args[:2]
        if is_call(x, aten.add.Tensor) and all(_is_like(part, x) for part in parts):
            kept = [_selected(graph, part, selection, axis, x) for part in parts]
            return emit(graph, aten.add.Tensor, *kept, **x.kwargs)
        if is_call(x, aten.linear.default):
            kept_rows = _selected(graph, x.args[0], selection, axis, x)
            return emit(graph, aten.linear.default, kept_rows, *x.args[1:])
    scores, pinned, keep = selection
    return emit(graph, OURS.token_select.default, x, scores, pinned, keep, axis)


def _fits(x: Node, product: Node) -> bool:
    """Whether a region can hold it, and the product has its dimensions."""
    like = x.meta["val"]
    return like.dtype == torch.float32 and like.dim() == len(shape_of(product)) <= 4


def _is_like(part: object, x: Node) -> bool:
    return isinstance(part, Node) and shape_of(part) == shape_of(x)


def _show(module: GraphModule, matrix: Node, selection: Selection) -> None:
    """Whoever reads the matrix itself sees what is selected."""
    graph, tokens = module.graph, torch.eye(shape_of(matrix)[2])[None]
    with graph.inserting_before(matrix):
        each = constant(module, "tokens", tokens, like=matrix)
        replace(matrix, _selected(graph, each, selection, -2, matrix))
