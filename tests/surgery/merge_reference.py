"""What merging should compute, said another way: no token leaves, those of a group become equal.

A group of equal tokens gets as much attention, and counts as much in a mean, as one token that
stands for all of them. So the uncut graph runs with every group's tokens set to their mean.
"""

from __future__ import annotations

from typing import Any

import torch
from token_reference import Reference
from torch import Tensor, fx
from torch.nn.functional import cosine_similarity

from edgeprune.plan import Plan
from edgeprune.sites import Sites


class MergeReference(Reference):
    """One run of the uncut program with merged tokens made equal, token by token.

    Attributes:
        stands: for every token the one that stands for it, or -1, [batch, tokens].
        gap: smallest difference of cosines between the best and the second best match.
    """

    def __init__(self, sites: Sites, plan: Plan, real: Tensor | None = None) -> None:
        super().__init__(sites, plan, real)
        self.stands = torch.empty(0)
        self.keys: dict[str, Tensor] = {}
        self.gap = 1.0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.streams and self.streams[n].name in self.plan.merge:
            return self.averaged(result)
        return result

    def counted(self) -> Tensor:
        return self.stands >= 0

    def attend(self, n: fx.Node) -> Tensor:
        (_, k, *_), _ = self.fetch_args_kwargs_from_env(n)
        if not len(self.stands):
            self.stands = torch.arange(k.shape[2]).expand(k.shape[0], -1).clone()
        for stream in self.streams.values():
            if stream.attention is n:
                self.keys[stream.name] = k.sum(1)
        return super().attend(n)

    def select(self, received: Tensor, keep: int, pinned: tuple[int, ...]) -> None:
        whole = torch.zeros_like(received)
        whole.scatter_add_(1, self.stands.clamp(min=0), received * self.counted())
        super().select(whole, keep, pinned)
        (name,) = {s.name for s in self.streams.values() if s.name not in self.done} & {
            s.name for s in self.streams.values() if s.name in self.keys
        }
        self.done.append(name)
        always = {position % received.shape[1] for position in pinned}
        for row in range(len(received)):
            self.match(row, always, name)

    @property
    def done(self) -> list[str]:
        return self.__dict__.setdefault("_done", [])

    def match(self, row: int, always: set[int], name: str) -> None:
        """Let every token that goes join its best match, and all that it stood for with it."""
        assert self.alive is not None and self.real is not None
        kept = [i for i in range(self.alive.shape[1]) if self.alive[row, i]]
        taking = [i for i in kept if self.real[row, i] and i not in always]
        keys, stands = self.keys[name][row], self.stands[row].clone()
        for token in set(self.stands[row].tolist()) - {-1} - set(kept):
            joined = -1
            if name in self.plan.merge and self.real[row, token]:
                cosines = cosine_similarity(keys[token][None], keys[taking])
                best = cosines.sort(descending=True).values
                if len(best) > 1 and best[0] != best[1]:
                    self.gap = min(self.gap, (best[0] - best[1]).item())
                joined = taking[int(cosines.argmax())]
            stands[self.stands[row] == token] = joined
        self.stands[row] = stands

    def averaged(self, x: Tensor) -> Tensor:
        x = x.clone()
        for row, stands in enumerate(self.stands):
            for token in set(stands.tolist()) - {-1}:
                group = stands == token
                x[row, group] = x[row, group].mean(0)
        return x
