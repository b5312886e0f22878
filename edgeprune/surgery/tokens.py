"""Length surgery: after a chosen attention sub-layer only the best tokens go on.

A token's score is the attention it receives from real tokens, summed over heads. Selection is
written in arithmetic that every runtime delegates: rank by pairwise comparison, a one-hot matrix
[kept, tokens], and one batch matmul per tensor that carries tokens. Nothing is sorted.
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

# Above every score: attention received is at most heads x queries.
PINNED = 1e6
# Below every score: a real token's is at least 0.
PADDING = -1.0
# Any difference of two distinct scores times this is at least 1, so that clamping it is a sign.
STEEP = 1e30
# A mask entry times this, plus 1, is below 0; a learned bias stays next to 1.
OPEN = 1e-6


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
        if any(dim.contains(self.tokens) for dim in self.draft.dims(node)):
            return True
        return any(self._depends(source) for source in node.all_input_nodes)

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
            name = f"select_{len(self.stages)}_{keep}_of_{size}"
            builder = _Selection(draft, name, size, keep, add.meta["val"].dtype)
            selection = builder.one_hot(builder.scores(probabilities, mask, stream.pinned))
            chosen = draft.emit(ATEN.matmul.default, selection, add)
        self.stages.append(Stage(keep, selection, add))
        self._remember(chosen, add, len(self.stages))
        for reader in readers:
            reader.replace_input_with(add, chosen)
        draft.stream[add] = chosen


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


class _Selection:
    """Builds one selection: scores [batch, tokens], then the one-hot matrix."""

    def __init__(self, draft: Draft, name: str, size: int, keep: int, dtype: torch.dtype) -> None:
        self.draft = draft
        self.name = name
        self.size = size
        self.keep = keep
        self.dtype = dtype

    def scores(
        self, probabilities: fx.Node, mask: fx.Node | None, pinned: tuple[int, ...]
    ) -> fx.Node:
        """Attention received from real tokens, with padding below and pinned tokens above all."""
        emit = self.draft.emit
        if mask is None:
            received = emit(ATEN.sum.dim_IntList, probabilities, [1, 2])
        else:
            real = self._real(mask)
            weights = emit(ATEN.unsqueeze.default, emit(ATEN.unsqueeze.default, real, 1), 1)
            rows = emit(ATEN.matmul.default, weights, probabilities)
            received = emit(ATEN.sum.dim_IntList, rows, [1, 2])
            padded = emit(ATEN.mul.Tensor, emit(ATEN.sub.Tensor, real, 1.0), -PADDING)
            received = emit(ATEN.add.Tensor, emit(ATEN.mul.Tensor, received, real), padded)
        if pinned:
            bonus = torch.zeros(1, self.size)
            bonus[0, list(pinned)] = PINNED
            received = emit(ATEN.add.Tensor, received, self._constant("pinned", bonus))
        # Training must not follow the scores: through STEEP their gradients would be infinite.
        return emit(ATEN.detach.default, received)

    def _real(self, mask: fx.Node) -> fx.Node:
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
        before = self._constant("earlier", earlier)
        beats = emit(ATEN.add.Tensor, better, emit(ATEN.mul.Tensor, tied, before))
        rank = emit(ATEN.sum.dim_IntList, beats, [-1], True)
        kept = emit(ATEN.clamp.default, emit(ATEN.rsub.Scalar, rank, self.keep), 0.0, 1.0)
        place = emit(ATEN.matmul.default, before, kept)
        places = self._constant("places", torch.arange(self.keep)[None, None])
        distance = emit(ATEN.abs.default, emit(ATEN.sub.Tensor, place, places))
        near = emit(ATEN.clamp.default, emit(ATEN.rsub.Scalar, distance, 1.0), 0.0, 1.0)
        columns = emit(ATEN.mul.Tensor, near, kept)
        return emit(ATEN.transpose.int, columns, 1, 2)

    def _constant(self, what: str, tensor: torch.Tensor) -> fx.Node:
        return self.draft.buffer(f"{self.name}.{what}", tensor.to(self.dtype))
