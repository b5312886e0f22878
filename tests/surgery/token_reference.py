"""What token selection should compute, said another way: nothing leaves, dropped tokens are hidden.

It runs the uncut graph and shares no code with surgery. Heads, neurons and sub-layers that the
plan removes are hidden in the same run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from models import QUERIES_PER_GROUP
from torch import Tensor, fx

from edgeprune.plan import Plan
from edgeprune.sites import Sites

ATEN = torch.ops.aten
HIDDEN = -1e9


class Reference(fx.Interpreter):
    """One run of the uncut program with everything that a plan removes hidden.

    Attributes:
        alive: which tokens are left after the selections so far, [batch, tokens].
        kept: the same after each selection.
        margin: smallest gap between the score of a kept and of a dropped token, where scores
            decided.
    """

    def __init__(self, sites: Sites, plan: Plan, real: Tensor | None = None) -> None:
        super().__init__(sites.program.module, garbage_collect_values=False)
        self.plan = plan
        self.alive: Tensor | None = real
        self.real: Tensor | None = None if real is None else real.bool()
        self.kept: list[Tensor] = []
        self.margin = math.inf
        self.received: dict[str, Tensor] = {}
        self.streams = {s.residual.add: s for s in sites.streams if s.name in plan.tokens}
        self.layer_of = {call: r.layer for r in sites.residuals for call in r.attentions}
        self.removed = {r.add: r.entry for r in sites.residuals if r.name in plan.kept}
        self.removed |= {e.exit: e.entry for e in sites.layers if e.name in plan.kept}
        self.columns = {
            path: units
            for name, units in plan.kept.items()
            if name.endswith(".neurons")
            for path, axis in sites.get(name).weights
            if axis == 1
        }

    def run_node(self, n: fx.Node) -> Any:
        result = self.compute(n)
        if n in self.removed:
            result = self.env[self.removed[n]]
        if n in self.streams:
            stream = self.streams[n]
            self.select(self.received[n.name], self.plan.tokens[stream.name], stream.pinned)
        return result

    def compute(self, n: fx.Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(n)
        if n.target is ATEN.scaled_dot_product_attention.default:
            return self.attend(n)
        if n.target is ATEN.linear.default:
            path = str(n.args[1].target)  # type: ignore[union-attr]
            return super().run_node(n) if path not in self.columns else self.narrow(path, *args)
        if self.kept and n.target is ATEN.sum.dim_IntList and self.pools(args):
            return (args[0] * self.counted_column(args[0])).sum(1)
        if self.kept and n.target is ATEN.mean.dim and self.pools(args):
            column = self.counted_column(args[0])
            return (args[0] * column).sum(1) / column.sum(1)
        return super().run_node(n)

    def pools(self, args: tuple[Any, ...]) -> bool:
        assert self.alive is not None
        return args[0].shape[:2] == self.alive.shape and list(args[1]) == [1]

    def counted_column(self, like: Tensor) -> Tensor:
        return self.counted()[:, :, None].to(like.dtype)

    def counted(self) -> Tensor:
        """Which tokens still say something, [batch, tokens]."""
        assert self.alive is not None
        return self.alive

    def narrow(self, path: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        keep = torch.zeros(x.shape[-1], dtype=x.dtype)
        keep[list(self.columns[path])] = 1
        return torch.nn.functional.linear(x * keep, weight, bias)

    def attend(self, n: fx.Node) -> Tensor:
        (q, k, v, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        scores = q @ k.mT * (kwargs.get("scale") or q.shape[-1] ** -0.5)
        if rest and rest[0] is not None:
            scores = scores + rest[0]
        if self.alive is None:
            self.alive = torch.ones(k.shape[0], k.shape[2])
        if self.real is None:
            self.real = torch.ones_like(self.alive, dtype=torch.bool)
        if k.shape[2] != self.alive.shape[1]:  # another sequence, as a decoder's
            return scores.softmax(-1) @ v
        if self.kept:
            scores = scores + (1.0 - self.counted().to(q.dtype))[:, None, None, :] * HIDDEN
        probabilities = scores.softmax(-1)
        heads = self.heads(n, q.shape[1]).to(q.dtype)[:, None, None]
        for add in self.streams:
            if self.streams[add].attention is n:
                asking = (self.real & self.alive.bool()).to(q.dtype)[:, None, :, None]
                self.received[add.name] = (probabilities * heads * asking).sum((1, 2))
        return probabilities @ v * heads

    def heads(self, n: fx.Node, count: int) -> Tensor:
        """1 for every query head that stays."""
        layer = self.layer_of[n]
        number = torch.arange(count)
        stays = torch.ones(count, dtype=torch.bool)
        for axis, unit in (
            ("heads", number),
            ("kv_groups", number // QUERIES_PER_GROUP),
            ("queries_per_group", number % QUERIES_PER_GROUP),
        ):
            if (units := self.plan.kept.get(f"{layer}.{axis}")) is not None:
                stays &= torch.isin(unit, torch.tensor(units))
        return stays

    def select(self, received: Tensor, keep: int, pinned: tuple[int, ...]) -> None:
        """Leave the ``keep`` best: pinned, then real by score, then padding; ties to the first."""
        assert self.alive is not None and self.real is not None
        alive = self.alive.bool() if self.kept else torch.ones_like(self.real)
        left = torch.zeros_like(alive)
        always = {position % alive.shape[1] for position in pinned}
        for row in range(alive.shape[0]):

            def rank(i: int, row: int = row) -> tuple[float, ...]:
                real = bool(self.real[row, i])  # type: ignore[index]
                score = received[row, i].item() if real else -1.0
                return (-(i in always), -score, i)

            order = sorted((i for i in range(alive.shape[1]) if alive[row, i]), key=rank)
            left[row, order[:keep]] = True
            if keep < len(order):
                last, first = rank(order[keep - 1]), rank(order[keep])
                if last[0] == first[0] and last[1] != first[1]:
                    self.margin = min(self.margin, first[1] - last[1])
        self.alive = left
        self.kept.append(left)
