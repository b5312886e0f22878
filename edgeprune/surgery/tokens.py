"""Length surgery: after a chosen attention sub-layer only the best tokens go on.

A token's score is the attention it receives from real tokens, summed over heads. The selection is
a one-hot matrix [kept, tokens]; every tensor that carries tokens is multiplied by it once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import fx

from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, shape, value
from edgeprune.sites.atoms import Dim
from edgeprune.sites.length import TokenStream
from edgeprune.surgery.draft import Draft, is_float
from edgeprune.surgery.selections import Selection


class Stage(NamedTuple):
    """One selection: how many tokens it leaves, its one-hot matrix [batch, kept, tokens], and the
    residual sum it selects from."""

    keep: int
    selection: fx.Node
    source: fx.Node


def cut_tokens(draft: Draft, plan: Plan) -> None:
    """Insert the plan's token selections; all that follows works on the kept tokens only."""
    chosen = [
        s for s in draft.sites.streams if plan.tokens.get(s.name, s.tokens.size) < s.tokens.size
    ]
    for tokens in dict.fromkeys(stream.tokens for stream in chosen):
        streams = [stream for stream in chosen if stream.tokens is tokens]
        _TokenCut(draft, plan, tokens).run(streams)


class _TokenCut:
    """Walks the graph once, counting selections passed; older tensors are brought up to date."""

    def __init__(self, draft: Draft, plan: Plan, tokens: Dim) -> None:
        self.draft = draft
        self.plan = plan
        self.tokens = tokens
        self.stages: list[Stage] = []
        self.stage: dict[fx.Node, int] = {}
        self.renewed: dict[tuple[fx.Node, int], fx.Node] = {}
        self.depends: dict[fx.Node, bool] = {}

    def run(self, streams: list[TokenStream]) -> None:
        points = {self.draft.copies[s.residual.add]: s for s in streams}
        for node in list(self.draft.module.graph.nodes):
            self._bring_up_to_date(node)
            if node in points:
                stream = points[node]
                if self.plan.tokens[stream.name] < self._size(self._now(node)):
                    self._select(stream, node)

    def _now(self, node: fx.Node) -> int:
        return self.stage.get(node, 0)

    def _size(self, stage: int) -> int:
        return self.stages[stage - 1].keep if stage else self.tokens.size

    def _bring_up_to_date(self, node: fx.Node) -> None:
        """Let ``node`` read every input at the stage of the latest one."""
        stage = max((self._now(n) for n in node.all_input_nodes), default=0)
        self._note(node, stage)
        if not stage:
            return
        graph = self.draft.module.graph
        with graph.inserting_before(node):
            for source in node.all_input_nodes:
                node.replace_input_with(source, self._renew(source, stage))

    def _note(self, node: fx.Node, stage: int) -> None:
        self.stage[node] = stage
        if stage and node in self.draft.origin:
            original, tokens = self.draft.origin[node]
            self.draft.origin[node] = (original, tokens | {self.tokens: self._size(stage)})

    def _renew(self, node: fx.Node, stage: int) -> fx.Node:
        """``node`` as it would be had it been computed from the tokens left at ``stage``."""
        if self._now(node) >= stage or not self._depends(node):
            return node
        key = (node, stage)
        if key not in self.renewed:
            self.renewed[key] = self._gathered(node, stage) or self._recomputed(node, stage)
        return self.renewed[key]

    def _depends(self, node: fx.Node) -> bool:
        """Whether anything that ``node`` is computed from carries the tokens."""
        if node not in self.depends:
            carries = any(dim.contains(self.tokens) for dim in self.draft.dims(node))
            self.depends[node] = carries or any(map(self._depends, node.all_input_nodes))
        return self.depends[node]

    def _recomputed(self, node: fx.Node, stage: int) -> fx.Node:
        copy = self.draft.module.graph.node_copy(node, lambda n: self._renew(n, stage))
        self._remember(copy, node, stage)
        return copy

    def _remember(self, new: fx.Node, old: fx.Node, stage: int) -> None:
        new.meta = dict(old.meta)
        self.draft.origin[new] = self.draft.origin[old]
        self._note(new, stage)

    def _gathered(self, node: fx.Node, stage: int) -> fx.Node | None:
        """The kept tokens of a tensor that has them as a dimension; None if it must be redone."""
        axes = [i for i, dim in enumerate(self.draft.dims(node)) if dim.root is self.tokens]
        if not axes or not (is_float(node) or node.op in ("placeholder", "get_attr")):
            return None
        source = self._renew(node, stage - 1) if stage > 1 else node
        emit = self.draft.emit
        result = source if is_float(node) else emit(ATEN.to.dtype, source, self._dtype(stage))
        for axis in axes:
            result = self._gather(result, axis - len(shape(node)), len(shape(node)), stage)
        if not is_float(node):
            kind = value(node)
            assert kind is not None
            result = emit(ATEN.to.dtype, result, kind.dtype)
        self._remember(result, node, stage)
        return result

    def _dtype(self, stage: int) -> torch.dtype:
        """The type that the selection's matrix has."""
        found = value(self.stages[stage - 1].source)
        assert found is not None
        return found.dtype

    def _gather(self, x: fx.Node, axis: int, rank: int, stage: int) -> fx.Node:
        """Multiply dimension ``axis`` (from the right) of ``x`` by the stage's one-hot matrix."""
        emit = self.draft.emit
        selection = self.stages[stage - 1].selection
        if rank == 2:  # [batch, tokens]
            column = emit(ATEN.unsqueeze.default, x, -1)
            return emit(ATEN.squeeze.dim, emit(ATEN.matmul.default, selection, column), -1)
        for _ in range(rank - 3):
            selection = emit(ATEN.unsqueeze.default, selection, 1)
        if axis == -1:
            return emit(ATEN.matmul.default, x, emit(ATEN.transpose.int, selection, -1, -2))
        if axis == -2:
            return emit(ATEN.matmul.default, selection, x)
        swapped = emit(ATEN.transpose.int, x, axis, -2)
        return emit(ATEN.transpose.int, emit(ATEN.matmul.default, selection, swapped), axis, -2)

    def _select(self, stream: TokenStream, add: fx.Node) -> None:
        """Select after ``add``; every later reader of it reads the kept tokens."""
        draft, graph = self.draft, self.draft.module.graph
        before = self._now(add)
        keep, size = self.plan.tokens[stream.name], self._size(before)
        readers = list(add.users)
        with graph.inserting_before(add.next):
            probabilities, mask = _write_out(draft, draft.copies[stream.attention])
            builder = Selection(draft, len(self.stages), size, keep, add.meta["val"].dtype)
            selection = builder.one_hot(builder.scores(probabilities, mask, stream.pinned))
            chosen = draft.emit(ATEN.matmul.default, selection, add)
        self.stages.append(Stage(keep, selection, add))
        self._remember(chosen, add, len(self.stages))
        for reader in readers:
            reader.replace_input_with(add, chosen)
        draft.stands_for[add] = chosen


def _write_out(draft: Draft, call: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Replace an attention call by its products and softmax; returns (probabilities, mask)."""
    query, key, values, *rest = call.args
    mask = rest[0] if rest else None
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
    scale = call.kwargs.get("scale") or 1 / math.sqrt(shape(query)[-1])
    with draft.module.graph.inserting_before(call):
        transposed = draft.emit(ATEN.transpose.int, key, -1, -2)
        scaled = draft.emit(ATEN.mul.Tensor, query, scale)
        scores = draft.emit(ATEN.matmul.default, scaled, transposed)
        if mask is not None:
            scores = draft.emit(ATEN.add.Tensor, scores, mask)
        probabilities = draft.emit(ATEN.softmax.int, scores, -1)
        output = draft.emit(ATEN.matmul.default, probabilities, values)
    output.meta = dict(call.meta)
    draft.replace(call, output)
    return probabilities, mask if isinstance(mask, fx.Node) else None
