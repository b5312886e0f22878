"""Token merging: dropped tokens are averaged into their most similar kept tokens.

Bolya et al. 2022 (ToMe) match tokens by the cosine of their attention keys and weigh each by how
many it already stands for. Which tokens stay is decided as for dropping; the matching is between
those that go and those that stay, in arithmetic that every runtime delegates: nothing is sorted.
"""

from __future__ import annotations

import torch
from torch import fx

from edgeprune.program.graph import ATEN
from edgeprune.surgery.draft import Draft
from edgeprune.surgery.selections import STEEP, Selection

# Takes a token out of the matching: cosines lie between -1 and 1.
APART = 4.0
# Keeps the length of a key that is 0 from dividing by 0.
TINY = 1e-12


class Merge:
    """Builds the matrix of one merging selection.

    Args:
        builder: of the selection.
        selection: its one-hot matrix [batch, kept, tokens].
        real: 1 for real tokens, 0 for padding, [batch, tokens]; None where all are real.
        pinned: positions that stay and take no other token in.
    """

    def __init__(
        self,
        draft: Draft,
        builder: Selection,
        selection: fx.Node,
        real: fx.Node | None,
        pinned: tuple[int, ...],
    ) -> None:
        self.emit = draft.emit
        self.builder = builder
        self.selection = selection
        self.real = real
        self.pinned = pinned

    def matrix(self, keys: fx.Node, sizes: fx.Node | None) -> tuple[fx.Node, fx.Node]:
        """The averaging matrix and the new sizes.

        Args:
            keys: of the attention, [batch, heads, tokens, head_dim].
            sizes: how many tokens each stands for, [batch, tokens]; None where each is itself.

        Returns:
            [batch, kept, tokens], whose rows sum to 1, and [batch, kept].
        """
        emit = self.emit
        joined = emit(ATEN.add.Tensor, self.selection, self._joins(self._cosines(keys)))
        if sizes is not None:
            joined = emit(ATEN.mul.Tensor, joined, emit(ATEN.unsqueeze.default, sizes, 1))
        total = emit(ATEN.sum.dim_IntList, joined, [-1], True)
        return emit(ATEN.div.Tensor, joined, total), emit(ATEN.squeeze.dim, total, -1)

    def _cosines(self, keys: fx.Node) -> fx.Node:
        """Of every kept token with every token, [batch, kept, tokens], over all heads' keys."""
        emit = self.emit
        # Which token joins which is a choice: training must not follow it through STEEP.
        keys = emit(ATEN.detach.default, emit(ATEN.sum.dim_IntList, keys, [1]))
        squares = emit(ATEN.sum.dim_IntList, emit(ATEN.mul.Tensor, keys, keys), [-1], True)
        length = emit(ATEN.sqrt.default, emit(ATEN.add.Tensor, squares, TINY))
        unit = emit(ATEN.div.Tensor, keys, length)
        kept = emit(ATEN.matmul.default, self.selection, unit)
        return emit(ATEN.matmul.default, kept, emit(ATEN.transpose.int, unit, 1, 2))

    def _joins(self, cosines: fx.Node) -> fx.Node:
        """1 where a dropped real token joins a kept one, of equals the first.

        Returns:
            [batch, kept, tokens].
        """
        emit = self.emit
        taking = self._taking()
        if taking is not None:
            apart = emit(ATEN.mul.Tensor, emit(ATEN.sub.Tensor, taking, 1.0), APART)
            cosines = emit(ATEN.add.Tensor, cosines, apart)
        best = emit(ATEN.amax.default, cosines, [1], True)
        below = emit(ATEN.mul.Tensor, emit(ATEN.sub.Tensor, cosines, best), STEEP)
        equal = emit(ATEN.clamp.default, emit(ATEN.add.Tensor, below, 1.0), 0.0, 1.0)
        earlier = torch.ones(self.builder.keep, self.builder.keep).tril(-1)[None]
        before = emit(ATEN.matmul.default, self.builder.constant("earlier_kept", earlier), equal)
        first = emit(ATEN.clamp.default, emit(ATEN.rsub.Scalar, before, 1.0), 0.0, 1.0)
        kept = emit(ATEN.sum.dim_IntList, self.selection, [1], True)
        leaving = emit(ATEN.rsub.Scalar, kept, 1.0)
        if self.real is not None:
            leaving = emit(ATEN.mul.Tensor, leaving, emit(ATEN.unsqueeze.default, self.real, 1))
        return emit(ATEN.mul.Tensor, emit(ATEN.mul.Tensor, equal, first), leaving)

    def _taking(self) -> fx.Node | None:
        """1 for every kept token that may take others in, [batch, kept, 1]; None: all may."""
        emit, taking = self.emit, self.real
        if self.pinned:
            free = torch.ones(1, self.builder.size)
            free[0, list(self.pinned)] = 0.0
            free_ = self.builder.constant("free", free)
            taking = free_ if taking is None else emit(ATEN.mul.Tensor, taking, free_)
        if taking is None:
            return None
        column = emit(ATEN.unsqueeze.default, taking, -1)
        return emit(ATEN.matmul.default, self.selection, column)
