"""output_damage: how far the outputs move when one unit alone is masked, measured."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.sites import Site

# One forward pass a unit: affordable for heads, not for thousands of neurons.
MOST_UNITS = 64


@criterion(
    "output_damage",
    needs="data",
    across_layers=True,
    where=f"sites of up to {MOST_UNITS} units",
    applies=lambda evidence, site: site.units <= MOST_UNITS,
)
def output_damage(evidence: Evidence, site: Site) -> Tensor:
    """Relative squared movement of the outputs, unit by unit: [units]."""
    path = evidence.gated.paths[site.name]
    scores = []
    for unit in range(site.units):
        factors = torch.ones(site.units)
        factors[unit] = 0.0
        scores.append(evidence.movement({path: factors}))
    return torch.tensor(scores)
