"""Token selections in a graph: built, found again, and made visible to whoever checks them.

A selection is written in arithmetic that every runtime delegates: rank by pairwise comparison,
then a one-hot matrix [kept, tokens]. Nothing is sorted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from edgeprune.program.graph import ATEN, is_call, shape
from edgeprune.program.program import Program, as_tuple
from edgeprune.surgery.draft import Draft

# Above every score: attention received is at most heads x queries.
PINNED = 1e6
# Below every score: a real token's is at least 0.
PADDING = -1.0
# Any difference of two distinct scores times this is at least 1, so that clamping it is a sign.
STEEP = 1e30
# A mask entry times this, plus 1, is below 0; a learned bias stays next to 1.
OPEN = 1e-6
PLACES = re.compile(r"select_\d+_\d+_of_\d+\.places")


class Selection:
    """Builds one selection: scores [batch, tokens], then the one-hot matrix.

    Args:
        number: of the selection in its program, from 0.
        size: tokens before it.
        keep: tokens after it.
        dtype: of the stream.
    """

    def __init__(self, draft: Draft, number: int, size: int, keep: int, dtype: torch.dtype) -> None:
        self.draft = draft
        self.name = f"select_{number}_{keep}_of_{size}"
        self.size = size
        self.keep = keep
        self.dtype = dtype

    def scores(
        self, probabilities: fx.Node, real: fx.Node | None, pinned: tuple[int, ...]
    ) -> fx.Node:
        """Attention received from real tokens, with padding below and pinned tokens above all."""
        emit = self.draft.emit
        if real is None:
            received = emit(ATEN.sum.dim_IntList, probabilities, [1, 2])
        else:
            weights = emit(ATEN.unsqueeze.default, emit(ATEN.unsqueeze.default, real, 1), 1)
            rows = emit(ATEN.matmul.default, weights, probabilities)
            received = emit(ATEN.sum.dim_IntList, rows, [1, 2])
            padded = emit(ATEN.mul.Tensor, emit(ATEN.sub.Tensor, real, 1.0), -PADDING)
            received = emit(ATEN.add.Tensor, emit(ATEN.mul.Tensor, received, real), padded)
        if pinned:
            bonus = torch.zeros(1, self.size)
            bonus[0, list(pinned)] = PINNED
            received = emit(ATEN.add.Tensor, received, self.constant("pinned", bonus))
        # Training must not follow the scores: through STEEP their gradients would be infinite.
        return emit(ATEN.detach.default, received)

    def real(self, mask: fx.Node) -> fx.Node:
        """1 for every token that some query may attend to, else 0: [batch, tokens]."""
        emit = self.draft.emit
        for _ in range(4 - len(shape(mask))):  # a table [tokens, tokens]
            mask = emit(ATEN.unsqueeze.default, mask, 0)
        scaled = emit(ATEN.mul.Tensor, mask, OPEN)
        open_ = emit(ATEN.clamp.default, emit(ATEN.add.Tensor, scaled, 1.0), 0.0, 1.0)
        return emit(ATEN.amax.default, open_, [1, 2])

    def one_hot(self, scores: fx.Node) -> fx.Node:
        """[batch, kept, tokens]: row r has its 1 at the r-th kept token, in ascending order."""
        emit, size = self.draft.emit, self.size
        earlier = torch.ones(size, size).tril(-1)[None]  # [i, j] = 1 where j comes before i
        row, column = (emit(ATEN.unsqueeze.default, scores, axis) for axis in (1, 2))
        sign = emit(ATEN.sub.Tensor, row, column)
        for _ in range(2):
            sign = emit(ATEN.clamp.default, emit(ATEN.mul.Tensor, sign, STEEP), -1.0, 1.0)
        better = emit(ATEN.clamp.default, sign, 0.0, 1.0)
        tied = emit(ATEN.rsub.Scalar, emit(ATEN.mul.Tensor, sign, sign), 1.0)
        before = self.constant("earlier", earlier)
        beats = emit(ATEN.add.Tensor, better, emit(ATEN.mul.Tensor, tied, before))
        rank = emit(ATEN.sum.dim_IntList, beats, [-1], True)
        kept = emit(ATEN.clamp.default, emit(ATEN.rsub.Scalar, rank, self.keep), 0.0, 1.0)
        place = emit(ATEN.matmul.default, before, kept)
        places = self.constant("places", torch.arange(self.keep)[None, None])
        distance = emit(ATEN.abs.default, emit(ATEN.sub.Tensor, place, places))
        near = emit(ATEN.clamp.default, emit(ATEN.rsub.Scalar, distance, 1.0), 0.0, 1.0)
        columns = emit(ATEN.mul.Tensor, near, kept)
        return emit(ATEN.transpose.int, columns, 1, 2)

    def constant(self, what: str, tensor: torch.Tensor) -> fx.Node:
        """A buffer of the selection's own, and a node that reads it."""
        return self.draft.buffer(f"{self.name}.{what}", tensor.to(self.dtype))


def find_selections(program: Program) -> tuple[fx.Node, ...]:
    """The one-hot matrices ``[batch, kept, tokens]`` by which token surgery selects, in order.

    They are recognised by the constant they are built with, so also in a program that was saved
    and loaded.
    """
    return tuple(
        _downward(columns, ATEN.transpose.int) for columns in find_columns(program.module.graph)
    )


def find_columns(graph: fx.Graph) -> list[fx.Node]:
    """The transposes ``[batch, tokens, kept]`` of these matrices in any ATen graph."""
    constants = [n for n in graph.nodes if n.op == "get_attr" and PLACES.search(str(n.target))]
    used = {distance for constant in constants for distance in constant.users}
    return [_downward(n, ATEN.mul.Tensor) for n in graph.nodes if n in used]


def scores_of(selection: fx.Node) -> fx.Node:
    """The scores ``[batch, tokens]`` that one of ``find_selections`` ranks its tokens by."""
    columns = selection.args[0]
    assert isinstance(columns, fx.Node)
    return ranked_by(columns)


def ranked_by(columns: fx.Node) -> fx.Node:
    """The same for one of ``find_columns``."""
    difference = _upward(columns.args[1], lambda node: is_call(node, ATEN.sub.Tensor))
    row = difference.args[0]
    assert isinstance(row, fx.Node) and isinstance(row.args[0], fx.Node)
    return row.args[0]


def with_selections(program: Program) -> Program:
    """The same program with its selections as further outputs ``select_0``, ``select_1``…

    It shares its weights with ``program``. Lowered, it tells which tokens a runtime keeps.
    """
    found = find_selections(program)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = as_tuple(graph.graph_copy(program.module.graph, copies))  # type: ignore[arg-type]
    shown = (*outputs, *(copies[node] for node in found))
    graph.output(shown[0] if len(shown) == 1 else shown)  # type: ignore[arg-type]
    names = (*program.output_names, *(f"select_{i}" for i in range(len(found))))
    return replace(program, module=fx.GraphModule(program.module, graph), output_names=names)


def _downward(node: fx.Node, target: object) -> fx.Node:
    while not is_call(node, target):
        (node,) = node.users
    return node


def _upward(node: object, wanted: Callable[[fx.Node], bool]) -> fx.Node:
    while isinstance(node, fx.Node) and not wanted(node):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node
