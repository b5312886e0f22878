"""meta: what a scorer learned on other networks about who matters (Zhang et al. 2020, "SMP").

The paper's single-shot meta-pruner learns, on several tasks, which heads may go so that the
distribution of representations stays. Here a scorer learns to weigh cheap criteria, whose scores
it sees as ranks inside each site, so that they predict how far masking a unit moves the outputs;
on a new network no unit is masked at all. ``meta`` is a toy that shows the way: it has seen three
small networks. :func:`learn` makes one from your own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.importance.criterion import CRITERIA, criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.output_damage import output_damage
from edgeprune.sites import Site

LOOKED_AT = ("l1", "activation", "taylor_fo", "next_layer_recon")
RIDGE = 1e-2


@dataclass(frozen=True)
class MetaScorer:
    """Learned weights of criteria; called as one itself.

    Attributes:
        weights: of each criterion in ``LOOKED_AT``.
    """

    weights: tuple[float, ...]

    def __call__(self, evidence: Evidence, site: Site) -> Tensor:
        """Predicted rank of the damage of masking each unit: [units]."""
        return ranks_of(evidence, site) @ torch.tensor(self.weights, dtype=torch.float64)


def learn(evidence: Iterable[Evidence]) -> MetaScorer:
    """A scorer taught by really masking units of some networks, one after the other.

    Args:
        evidence: of each network; its width sites of up to 64 units teach.
    """
    seen, wanted = [], []
    for each in evidence:
        for site in each.sites.cuttable:
            if site.kind == "width" and CRITERIA["output_damage"].applies(each, site):
                seen.append(ranks_of(each, site))
                wanted.append(ranked(output_damage(each, site)))
    x, y = torch.cat(seen), torch.cat(wanted)
    ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return MetaScorer(tuple(torch.linalg.solve(x.T @ x + ridge, x.T @ y).tolist()))


def ranks_of(evidence: Evidence, site: Site) -> Tensor:
    """Every criterion's ranks of the units, 0 where it does not apply: [units, criteria]."""
    columns = []
    for name in LOOKED_AT:
        asked = CRITERIA[name]
        applies = asked.applies(evidence, site)
        scores = asked.score(evidence, site) if applies else torch.zeros(site.units)
        columns.append(ranked(scores) if applies else scores.double())
    return torch.stack(columns, dim=1)


def ranked(scores: Tensor) -> Tensor:
    """Ranks of scores, -1 the lowest to 1 the highest: [units]."""
    order = scores.argsort(stable=True)
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.linspace(-1, 1, len(scores), dtype=torch.float64)
    return ranks


TOY = MetaScorer((0.035, 0.312, 0.291, 0.334))
"""Learned on a text encoder, a vision transformer of 2 layers each, and a CNN on digits."""


@criterion("meta", needs="gradients", across_layers=False)
def meta(evidence: Evidence, site: Site) -> Tensor:
    """What the toy scorer predicts: [units]."""
    return TOY(evidence, site)
