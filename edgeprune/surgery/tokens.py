"""Length surgery: after a chosen attention sub-layer only the best tokens go on.

A token's score is the attention it receives from real tokens, summed over heads. The selection is
a one-hot matrix [kept, tokens]; every tensor that carries tokens is multiplied by it once.

Where the others are merged, activations are multiplied by an averaging matrix instead. From then on
a token weighs as many as it stands for: in attention (its size's logarithm is added to the mask),
and in sums and means over tokens.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import fx

from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, ancestors, get_attribute, is_call, is_size, shape, value
from edgeprune.sites.atoms import Dim
from edgeprune.sites.length import TokenStream, selectable
from edgeprune.sites.rules.reduction import reduced
from edgeprune.surgery.draft import Draft, is_float
from edgeprune.surgery.merging import Merge
from edgeprune.surgery.selections import Selection


class Stage(NamedTuple):
    """One selection.

    Attributes:
        keep: how many tokens it leaves.
        selection: its one-hot matrix [batch, kept, tokens].
        source: the residual sum that it selects from.
        matrix: what activations are multiplied by: ``selection``, or an average of tokens.
        sizes: how many tokens each kept one stands for, [batch, kept]; None: all for themselves.
    """

    keep: int
    selection: fx.Node
    source: fx.Node
    matrix: fx.Node
    sizes: fx.Node | None


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
        self.unweighed: dict[fx.Node, Any] = {}
        self.log_sizes: dict[int, fx.Node] = {}

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
            self._weigh(node, stage)

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
            made_of_them = carries or any(map(self._depends, node.all_input_nodes))
            self.depends[node] = made_of_them and not is_size(node)  # counts examples, no tokens
        return self.depends[node]

    def _recomputed(self, node: fx.Node, stage: int) -> fx.Node:
        graph = self.draft.module.graph
        copy = graph.node_copy(node, lambda n: self._renew(n, stage))
        self._remember(copy, node, stage)
        with graph.inserting_before(copy):
            self._weigh(copy, stage)
        return copy

    def _remember(self, new: fx.Node, old: fx.Node, stage: int) -> None:
        new.meta = dict(old.meta)
        self.draft.origin[new] = self.draft.origin[old]
        self._note(new, stage)

    def _gathered(self, node: fx.Node, stage: int) -> fx.Node | None:
        """The kept tokens of a tensor that has them as a dimension; None if it must be redone."""
        dims = self.draft.dims(node)
        if not selectable(node, dims, self.tokens):
            return None
        source = self._renew(node, stage - 1) if stage > 1 else node
        made_by = self.stages[stage - 1]
        matrix = made_by.matrix if _is_activation(node) else made_by.selection
        emit = self.draft.emit
        result = source if is_float(node) else emit(ATEN.to.dtype, source, self._dtype(stage))
        for axis, dim in enumerate(dims):
            if dim.root is self.tokens:
                result = self._gather(result, axis - len(dims), len(dims), matrix)
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

    def _gather(self, x: fx.Node, axis: int, rank: int, selection: fx.Node) -> fx.Node:
        """Multiply dimension ``axis`` (from the right) of ``x`` by [batch, kept, tokens]."""
        emit = self.draft.emit
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
        attention = draft.copies[stream.attention]
        keys = attention.args[1]
        assert isinstance(keys, fx.Node)
        with graph.inserting_before(add.next):
            probabilities, mask = _write_out(draft, attention)
            mask = self.unweighed.get(mask, mask)
            builder = Selection(draft, len(self.stages), size, keep, add.meta["val"].dtype)
            real = builder.real(mask) if isinstance(mask, fx.Node) else None
            selection = matrix = builder.one_hot(builder.scores(probabilities, real, stream.pinned))
            sizes = self.stages[before - 1].sizes if before else None
            if stream.name in self.plan.merge:
                merge = Merge(draft, builder, selection, real, stream.pinned)
                matrix, sizes = merge.matrix(keys, sizes)
            elif sizes is not None:
                sizes = self._gather(sizes, -1, 2, selection)
            chosen = draft.emit(ATEN.matmul.default, matrix, add)
        self.stages.append(Stage(keep, selection, add, matrix, sizes))
        self._remember(chosen, add, len(self.stages))
        for reader in readers:
            reader.replace_input_with(add, chosen)
        draft.stands_for[add] = chosen

    def _weigh(self, node: fx.Node, stage: int) -> None:
        """Let a reader of several tokens at once weigh each by how many it stands for."""
        sizes = self.stages[stage - 1].sizes if stage else None
        if sizes is None:
            return
        if is_call(node, ATEN.scaled_dot_product_attention):
            self._weigh_attention(node, sizes, stage)
        elif is_call(node, ATEN.sum, ATEN.mean):
            self._weigh_sum(node, sizes)

    def _weigh_attention(self, node: fx.Node, sizes: fx.Node, stage: int) -> None:
        """A key that stands for n tokens gets n times the attention: + log n before softmax."""
        if self.draft.dims(node.args[1])[2].root is not self.tokens:  # type: ignore[arg-type]
            return
        emit = self.draft.emit
        if stage not in self.log_sizes:
            rows = emit(ATEN.unsqueeze.default, emit(ATEN.log.default, sizes), 1)
            self.log_sizes[stage] = emit(ATEN.unsqueeze.default, rows, 1)
        mask = node.args[3] if len(node.args) > 3 else None
        weighed = self.log_sizes[stage]
        if isinstance(mask, fx.Node):
            weighed = emit(ATEN.add.Tensor, mask, weighed)
        self.unweighed[weighed] = mask
        node.args = (*node.args[:3], weighed, *node.args[4:])

    def _weigh_sum(self, node: fx.Node, sizes: fx.Node) -> None:
        """A sum over tokens, or a mean: of all that they stand for."""
        emit, source = self.draft.emit, node.args[0]
        assert isinstance(source, fx.Node)
        dims = self.draft.dims(source)
        axes = [i for i in reduced(node) if dims[i].root is self.tokens]
        if not axes:
            return
        if is_call(node, ATEN.mean):
            sizes = emit(ATEN.div.Tensor, sizes, emit(ATEN.mean.dim, sizes, [-1], True))
        around = [
            -1 if i == 0 else self._size(self._now(node)) if i in axes else 1
            for i in range(len(dims))
        ]
        factor = emit(ATEN.reshape.default, sizes, around)
        weighed = emit(ATEN.mul.Tensor, source, factor)
        node.replace_input_with(source, weighed)


def _is_activation(node: fx.Node) -> bool:
    """Whether weights made it from the inputs: no table, and no mask."""
    made_from = ancestors(node)
    module = node.graph.owning_module
    return any(n.op == "placeholder" for n in made_from) and any(
        n.op == "get_attr" and isinstance(get_attribute(module, str(n.target)), torch.nn.Parameter)
        for n in made_from
    )


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
